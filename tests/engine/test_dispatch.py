"""The bookkeeping between a source and its lanes, without lanes."""

from __future__ import annotations

import pytest
from engine_fakes import Staged, Watch, packs

from mup_tune.engine.dispatch import Dispatcher, LaneLostError
from mup_tune.engine.events import Lanes
from mup_tune.engine.work import Work
from mup_tune.trial import Pack, PackResult


class Bench:
    """A dispatcher of two lanes whose hand-outs are kept in ``sent`` by lane."""

    def __init__(self, *stages: list[Work]) -> None:
        self.source, self.watch, self.sent = Staged(list(stages)), Watch(), {}
        self.dispatcher = Dispatcher(self.source, lambda: 2, self._send, self.watch)

    def _send(self, lane: str, attempt: int, work: Work) -> None:
        self.sent[lane] = (attempt, work)

    def answer(self, lane: str, attempt: int, work: Work) -> None:
        assert isinstance(work, Pack)
        self.dispatcher.finished(lane, attempt, PackResult(work, (), {}, {"attempt": attempt}))


def test_the_first_lane_knows_of_the_second() -> None:
    bench = Bench([*packs("ok", 1)])
    bench.dispatcher.joined("lane-0")
    assert bench.source.asked_with == {2}


def test_an_answer_to_an_older_attempt_is_refused() -> None:
    """The lane was given up, its work ran elsewhere, and then its answer turns up after all."""
    (pack,) = packs("ok", 1)
    bench = Bench([pack])
    bench.dispatcher.joined("lane-0")
    old, _ = bench.sent["lane-0"]
    bench.dispatcher.left("lane-0", LaneLostError("node gone"))
    bench.dispatcher.joined("lane-0")  # the lane comes back under its name
    new, again = bench.sent["lane-0"]
    assert again == pack
    bench.answer("lane-0", old, pack)
    assert not bench.source.committed
    bench.answer("lane-0", new, pack)
    bench.answer("lane-0", new, pack)  # and nothing counts twice
    ((_, outcome),) = bench.source.committed
    assert isinstance(outcome, PackResult)
    assert outcome.record == {"attempt": new}
    assert bench.dispatcher.done


def test_a_waiting_lane_takes_over_what_another_lost() -> None:
    (pack,) = packs("ok", 1)
    bench = Bench([pack])
    bench.dispatcher.joined("lane-0")
    bench.dispatcher.joined("lane-1")
    assert "lane-1" not in bench.sent
    bench.dispatcher.left("lane-0", LaneLostError("killed"))
    assert bench.sent["lane-1"][1] == pack
    assert [event.n for event in bench.watch.of(Lanes) if isinstance(event, Lanes)] == [1, 2, 1]


def test_all_waiting_lanes_wake_at_a_barrier() -> None:
    bench = Bench([*packs("one", 1)], [*packs("two", 2, 1, 50)])
    bench.dispatcher.joined("lane-0")
    bench.dispatcher.joined("lane-1")
    bench.answer("lane-0", *bench.sent["lane-0"])
    assert {bench.sent[lane][1].stage for lane in ("lane-0", "lane-1")} == {"two"}  # type: ignore[union-attr]


def test_a_source_that_waits_for_nothing() -> None:
    bench = Bench()
    bench.source.stages, bench.source.out = [[]], list(packs("ghost", 1))
    with pytest.raises(RuntimeError, match="nothing is running"):
        bench.dispatcher.joined("lane-0")


@pytest.mark.parametrize("error", [LaneLostError("x"), ValueError("y")])
def test_losing_an_unknown_lane_changes_nothing(error: Exception) -> None:
    bench = Bench([*packs("ok", 1)])
    bench.dispatcher.left("lane-9", error)
    assert not bench.source.losses
    assert not bench.watch.events

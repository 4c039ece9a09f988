"""What every driver promises. A test class that inherits this has ``drive(source, make_runner, on_event)``.

Few and long scenarios: on Ray each start of a run costs seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_fakes import Staged, Watch, factory, packs, trials

from mup_tune.engine.events import Event, Finished, Lanes, Lost, Started
from mup_tune.engine.work import Calibrate, Calibration, OutOfMemoryError, Progress, RunnerFactory
from mup_tune.errors import UserError
from mup_tune.interrupts import cause, stop_signals
from mup_tune.trial import Pack, PackResult

Drive = Callable[[Staged, RunnerFactory, Callable[[Event], None]], None]


class DriverContract:
    drive: Drive

    def test_a_run(self, tmp_path: Path) -> None:
        """Calibration, packs, a failing one, one that does not fit, barriers: all commit exactly once."""
        (talkative,) = packs("talk", 1, 2, 30_000)
        (failing,) = packs("raise", 1, 2, 40_000)
        (too_large,) = packs("memory", 1, 4, 50_000)
        source = Staged(
            [
                [Calibrate(trials(1)[0], (1, 2, 4))],
                [*packs("ok", 7, 3), failing, *packs("ok", 3, 1, 20_000)],
                [talkative, too_large],
            ],
            retries=4,
        )
        watch = Watch()

        def listen(event: Event) -> None:
            watch(event)
            if len(watch.of(Progress)) == 2:
                (tmp_path / "heard").touch()

        self.drive(source, factory(tmp_path), listen)

        calibration = source.committed[0][1]
        assert isinstance(calibration, Calibration)
        assert calibration.tokens_per_s == {1: 1.0, 2: 2.0, 4: 4.0}
        assert set(source.seeds().values()) == {1}
        assert len(source.seeds()) == 7 * 3 + 2 + 3 + 2 + 4
        for work, outcome in source.committed[1:]:
            assert isinstance(outcome, PackResult)
            assert outcome.pack == work
            assert [row.loss for row in outcome.rows] == [float(row.trial.seed) for row in outcome.rows]

        (raised,) = [error for work, error in source.losses if work == failing]
        assert "the third step went wrong" in str(raised)
        did_not_fit = [error for work, error in source.losses if work != failing]
        assert len(did_not_fit) == 3  # 4, 2 and 2 members
        assert all(isinstance(error, OutOfMemoryError) for error in did_not_fit)

        assert len(watch.of(Started)) == len(watch.of(Finished)) + len(watch.of(Lost))
        assert isinstance(watch.events[0], Lanes)
        said = [event for event in watch.of(Progress) if isinstance(event, Progress)]
        (talked,) = [each for work, each in source.committed if work == talkative and isinstance(each, PackResult)]
        assert 2 <= len(said) < talked.record["words"]  # now and then, while the pack runs
        assert {event.pack_id for event in said} == {talkative.id}
        assert [event.fraction for event in said] == sorted(event.fraction for event in said)

        # No barrier was crossed early.
        order = [work for work, _ in source.committed]
        second_stage = [work for work in order if isinstance(work, Pack) and work.trials[0].seed < 30_000]
        assert max(order.index(work) for work in second_stage) < order.index(talkative)

    def test_a_runner_that_cannot_be_built_ends_the_run(self, tmp_path: Path) -> None:
        """The user sees the lane's own UserError, with its field and its fix."""

        def broken(lane: str) -> object:
            raise UserError("no such backend", field="backend", fix="Take another")

        with pytest.raises(UserError) as caught:
            self.drive(Staged([[*packs("ok", 2)]]), broken, Watch())  # type: ignore[arg-type]
        assert (caught.value.field, caught.value.fix) == ("backend", "Take another")
        assert str(caught.value) == "backend: no such backend. Take another"

    def test_a_signal_interrupts_and_nothing_more_is_committed(self, tmp_path: Path) -> None:
        """Tune would leave its loop at SIGUSR1, as if all were done."""
        source = Staged([[*packs("slow 0.2", 6)]])

        def press(event: Event) -> None:
            if isinstance(event, Started) and len(source.handed) > 3:
                signal.raise_signal(signal.SIGUSR1)

        with stop_signals():
            with pytest.raises(KeyboardInterrupt):
                self.drive(source, factory(tmp_path), press)
            assert cause() == signal.SIGUSR1
        assert 1 <= len(source.committed) <= 3
        assert not source.losses

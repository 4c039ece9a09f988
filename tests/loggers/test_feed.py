from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from told_run import BUDGET, CONFIRMING, GAIN, REFERENCE, SHAPE, START, TUNING, Recorder, opened, steps, words

from mup_tune.errors import UserError
from mup_tune.loggers import loggers
from mup_tune.loggers.feed import Feed, logged
from mup_tune.loggers.logger import Committed, Concluded, Logger
from mup_tune.run.tables import slug
from mup_tune.trial import Trial


def told(path: Path, kinds: list[type[Logger]] | None = None) -> tuple[Feed, list[str]]:
    """A run that was logged from its first pack to its end."""
    folder, journal = opened(path)
    said: list[str] = []
    with folder:
        feed = Feed(folder, journal, words, said.append)
        feed.open([Recorder] if kinds is None else kinds)
        for _ in steps(journal):
            feed.update()
            feed.update()  # again is nothing new
        feed.close()
    return feed, said


def recorder(feed: Feed) -> Recorder:
    (logger,) = feed.loggers
    assert isinstance(logger, Recorder)
    return logger


def test_every_pack_and_conclusion_is_told_once_with_what_is_known_by_then(tmp_path: Path) -> None:
    feed, said = told(tmp_path)
    logger = recorder(feed)
    assert said == ["--log recorder: in a list"]
    assert logger.closed == [True]
    kinds = [Committed, Committed, Concluded, Committed, Committed, Concluded]
    assert [type(each) for each in logger.told] == kinds
    first, second, tuning, wide, last, confirming = logger.told
    assert isinstance(first, Committed) and isinstance(last, Committed) and isinstance(wide, Committed)  # noqa: PT018
    assert first.values == {
        "run/diverged": 1.0,
        "run/flops": 2 * Trial(shape=SHAPE, budget=BUDGET, settings=START, seed=0).flops,
        "run/device_seconds": 2.0,
        "run/tokens_per_s": 1000.0,
        f"best_loss/{TUNING}": 3.0,
    }
    assert isinstance(second, Committed)
    assert (second.trials, second.values[f"best_loss/{TUNING}"]) == (4, 2.5)
    assert f"best_loss/{CONFIRMING}" not in wide.values  # losses of another Shape do not compare
    assert (last.trials, last.values[f"best_loss/{CONFIRMING}"]) == (7, pytest.approx(2.58))
    assert last.values["run/device_seconds"] == 8.0
    assert isinstance(tuning, Concluded)
    assert isinstance(confirming, Concluded)
    assert (tuning.trials, tuning.title, tuning.sentences) == (4, f"Title of {TUNING}", [f"{TUNING} is over."])
    assert [confirming.gains[f"{key}/{CONFIRMING}"] for key in ("gain", "gain_low", "gain_high")] == [
        GAIN.value,
        GAIN.low,
        GAIN.high,
    ]
    assert confirming.row["gain_over"] == REFERENCE
    assert not tuning.row["gain"] > 0


def test_curves_are_medians_of_what_had_ended_and_of_the_plans_own_size(tmp_path: Path) -> None:
    feed, _ = told(tmp_path)
    tuning, confirming = (each for each in recorder(feed).told if isinstance(each, Concluded))
    assert set(tuning.curves) == {"best", "incumbent", slug(REFERENCE)}
    assert list(tuning.curves["incumbent"].index) == [64, 128, 192]
    assert list(tuning.curves["incumbent"]) == pytest.approx([2.505 + 1, 2.505 + 1 / 2, 2.505 + 1 / 3])  # seeds 0, 1
    assert list(tuning.curves["best"]) == pytest.approx([3.5, 3.0, 2.5 + 1 / 3])
    assert list(tuning.curves[slug(REFERENCE)]) == pytest.approx([4.0, 3.5, 3 + 1 / 3])  # seed 1 diverged
    assert confirming.curves["incumbent"].iloc[0] == pytest.approx(2.5 + 0.045 + 1)  # median of seeds 0, 1, 8, 9
    assert confirming.curves["best"].iloc[0] == pytest.approx(2.58 + 1)


def test_told_late_is_told_the_same(tmp_path: Path) -> None:
    """A run that began without a logger, or a driver that was killed: the journal has it all."""
    live, _ = told(tmp_path)
    folder, journal = opened(tmp_path)
    with folder:
        late = Feed(folder, journal, words, lambda line: None)
        late.open([Recorder])
    first = [each for each in recorder(live).told if isinstance(each, Committed)]
    assert [each for each in recorder(late).told if isinstance(each, Committed)] == first
    pairs = [[each for each in recorder(feed).told if isinstance(each, Concluded)] for feed in (live, late)]
    for one, other in zip(*pairs, strict=True):
        assert (one.stage, one.trials, one.time, one.sentences) == (
            other.stage,
            other.trials,
            other.time,
            one.sentences,
        )
        assert set(one.curves) == set(other.curves)
        for name, curve in one.curves.items():
            pd.testing.assert_series_equal(curve, other.curves[name])


def test_what_an_earlier_driver_told_is_not_told_again(tmp_path: Path) -> None:
    told(tmp_path)

    class GoesOn(Recorder):
        name = "goes on"
        packs, stages = 3, 1

    del Logger.known["goes on"]
    folder, journal = opened(tmp_path)
    with folder:
        feed = Feed(folder, journal, words, lambda line: None)
        feed.open([GoesOn])
    last, confirming = recorder(feed).told
    assert isinstance(last, Committed)
    assert (last.trials, last.values["run/diverged"]) == (7, 1.0)
    assert isinstance(confirming, Concluded)
    assert confirming.stage == CONFIRMING


@pytest.mark.parametrize("method", ["open", "committed", "concluded", "close"])
def test_a_logger_that_fails_ends_with_one_warning_and_no_other_ends(tmp_path: Path, method: str) -> None:
    class Failing(Recorder):
        name = "failing"
        fails = method

    del Logger.known["failing"]
    feed, said = told(tmp_path, [Failing, Recorder])
    assert len(recorder(feed).told) == 6
    warned = [line for line in said if "warning" in line]
    assert warned == [f"warning: --log failing ends here, and the run goes on (RuntimeError: {method} failed)"]


def test_lost_curves_end_the_loggers_and_not_the_run(tmp_path: Path) -> None:
    folder, journal = opened(tmp_path)
    said: list[str] = []
    with folder, logged([Recorder], folder, journal, words, said.append) as tell:
        for place, _ in enumerate(steps(journal)):
            for file in folder.curves.iterdir() if place == 1 else ():
                file.unlink()
            tell()
    assert journal.get_note("complete")
    assert [line.split(" (")[0] for line in said[1:]] == ["warning: --log recorder ends here, and the run goes on"]


def test_a_run_that_is_stopped_is_closed_as_one_to_go_on_with(tmp_path: Path) -> None:
    folder, journal = opened(tmp_path)
    made: list[Recorder] = []

    class Kept(Recorder):
        name = "kept"

        def __init__(self, folder: object) -> None:
            super().__init__(folder)  # type: ignore[arg-type]
            made.append(self)

    del Logger.known["kept"]

    def interrupted() -> None:
        with folder, logged([Kept], folder, journal, words, lambda line: None):
            next(steps(journal))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (logger,) = made
    assert len(logger.told) == 1  # the pack that was committed since
    assert logger.closed == [False]


def test_loggers_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--log: unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        loggers(["tensorbord"])

    class Absent(Recorder):
        name = "absent"
        needs = ("no_such_package",)

    with pytest.raises(UserError, match=r'--log: absent cannot be imported .*`pip install "mup-tune\[log\]"`'):
        loggers(["absent"])
    monkeypatch.delitem(Logger.known, "absent")

"""A measurement is made once per device kind, code, Shape and Budget; what is damaged or old is none."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mup_tune.engine import calibrations
from mup_tune.engine.calibrations import KEPT_S, from_note, newest, note_name, remembered, speed_at, to_note
from mup_tune.engine.work import Calibrate, Calibration
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.trial import Budget, Trial

SHAPE = load_shape("cpu-32")
BUDGET = Budget(seq_len=16, batch_tokens=64, total_tokens=640, warmup_tokens=0, decay_tokens=0, val_tokens=160)
WORK = Calibrate(Trial(shape=SHAPE, budget=BUDGET, settings=untuned(SHAPE), seed=0), (1, 2, 4))


class Measured:
    """A measurement that counts how often it was made."""

    def __init__(self, **speeds: float) -> None:
        self.times, self.speeds = 0, {int(size[1:]): speed for size, speed in speeds.items()}

    def __call__(self) -> Calibration:
        self.times += 1
        return Calibration(self.speeds, "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mup-tune" / "calibrations"


def test_it_is_measured_once_and_known_to_a_plan() -> None:
    measure = Measured(_1=100.0, _4=300.0)
    first, second = (remembered(WORK, "a card", measure) for _ in range(2))
    assert measure.times == 1
    assert first == second == newest(SHAPE, BUDGET) == Calibration({1: 100.0, 4: 300.0}, "a card")
    longer = BUDGET.model_copy(update={"total_tokens": 6400})
    assert newest(SHAPE, longer) == first  # how long it trains is no part of a speed
    assert newest(SHAPE, BUDGET.model_copy(update={"seq_len": 32})) is None


def test_another_device_code_or_list_of_sizes_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Measured(_1=100.0)
    remembered(WORK, "a card", measure)
    remembered(WORK, "another card", measure)
    remembered(Calibrate(WORK.trial, (1, 2)), "a card", measure)
    monkeypatch.setattr(calibrations, "code", lambda: {"mup_tune": "0.0.0 [changed]"})
    remembered(WORK, "a card", measure)
    assert measure.times == 4


def test_what_ran_out_of_memory_is_not_kept() -> None:
    """Another program may have held the device's memory, and is gone the next time."""
    made = [Calibration({1: 100.0}, "cuda", {1: 2.5}, full=True), Calibration({1: 100.0, 4: 300.0}, "cuda", {4: 9.0})]
    measure = iter(made).__next__
    assert remembered(WORK, "a card", measure).full
    assert newest(SHAPE, BUDGET) is None
    kept = remembered(WORK, "a card", measure)
    assert kept == newest(SHAPE, BUDGET) == Calibration({1: 100.0, 4: 300.0}, "a card", {4: 9.0})


@pytest.mark.parametrize("made", [Calibration({1: 9.0}, "x", {1: 0.5}, True), Calibration({1: 9.0, 8: 20.0}, "cpu")])
def test_a_note_holds_all_of_it(made: Calibration) -> None:
    assert from_note(json.loads(json.dumps(to_note(made)))) == made


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"tokens_per_s": {"1": -1}, "device": "x"}', '{"tokens_per_s": {"a": 1}}', "\0"]
)
def test_a_damaged_or_old_file_is_measured_anew(cache: Path, content: str) -> None:
    remembered(WORK, "a card", Measured(_1=100.0))
    (file,) = cache.iterdir()
    file.write_text(content)
    assert newest(SHAPE, BUDGET) is None
    assert remembered(WORK, "a card", Measured(_1=200.0)).tokens_per_s == {1: 200.0}
    for shift, speed in ((-KEPT_S - 10, 300.0), (KEPT_S + 100, 400.0)):  # the second: a clock that was far ahead
        at = time.time() + shift
        os.utime(file, (at, at))
        assert newest(SHAPE, BUDGET) is None
        assert remembered(WORK, "a card", Measured(_1=speed)).tokens_per_s == {1: speed}


def test_without_a_cache_it_is_measured_each_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    measure = Measured(_1=100.0)
    for _ in range(2):
        remembered(WORK, "a card", measure)
    assert measure.times == 2


def test_what_does_not_fit_at_all_is_not_kept(cache: Path) -> None:
    def measure() -> Calibration:
        raise MemoryError

    with pytest.raises(MemoryError):
        remembered(WORK, "a card", measure)
    assert not cache.exists()


def test_a_note_survives_json() -> None:
    calibration = Calibration({1: 100.0, 16: 1e7}, "a card")
    assert from_note(json.loads(json.dumps(to_note(calibration)))) == calibration
    assert note_name(SHAPE, BUDGET) != note_name(load_shape("cpu-64"), BUDGET)


def test_speeds_between_sizes_lie_on_a_line_in_log_log() -> None:
    calibration = Calibration({2: 100.0, 8: 400.0}, "")
    found = [speed_at(calibration, size) for size in (1, 2, 4, 8, 64)]
    assert found == pytest.approx([100.0, 100.0, 200.0, 400.0, 400.0])

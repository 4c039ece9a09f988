"""Hours of a plan: packs as the sweep cuts them, and devices that wait at barriers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.engine.work import Calibration
from mup_tune.search.plan import load_plan
from mup_tune.search.pricing import VALIDATION, flat, price, unknown_speeds
from mup_tune.search.rehearsal import Wave
from mup_tune.shape import Shape, load_shape
from mup_tune.trial import Budget

SHAPE, LARGE = load_shape("cpu-32"), load_shape("cpu-64")
BUDGET = Budget(seq_len=16, batch_tokens=64, total_tokens=640, warmup_tokens=0, decay_tokens=0, val_tokens=160)
TOKENS = 640 + VALIDATION * 160  # of a trial


def known(speeds: dict[int, float]) -> Calibration:
    return Calibration(speeds, "a card")


def test_a_wave_is_cut_and_waits_for_its_longest_pack() -> None:
    def speeds(shape: Shape, budget: Budget) -> Calibration:
        return known({1: 100.0, 2: 200.0, 4: 400.0, 8: 400.0})  # four members train as fast as one

    found = price([Wave({(SHAPE, BUDGET): 10})], speeds, 2)
    assert found.packs == 3  # of 4, 3, 3
    assert found.hours * 3600 == pytest.approx(2 * TOKENS / 100)
    assert found.utilisation == pytest.approx(3 / 4)
    assert found.gpu_hours == pytest.approx(2 * found.hours)


def test_shapes_that_are_compared_are_cut_alike() -> None:
    """The larger Shape is fastest alone: the smaller one then trains alone too."""

    def speeds(shape: Shape, budget: Budget) -> Calibration:
        return known({1: 100.0, 4: 400.0} if shape == SHAPE else {1: 50.0, 4: 50.0})

    trials = {(SHAPE, BUDGET): 4, (LARGE, BUDGET): 4}
    own, alike = price([Wave(trials)], speeds, 1), price([Wave(trials, equal_packs=True)], speeds, 1)
    assert (own.packs, alike.packs) == (5, 8)
    assert alike.hours > own.hours
    compared = {
        each.forecast.kind: {wave.equal_packs for wave in each.waves} for each in load_plan("channels").rehearsal
    }
    assert compared["channels"] == {True}


def test_waves_follow_one_another() -> None:
    speeds = flat(100.0, SHAPE, 16)
    wave = Wave({(SHAPE, BUDGET): 3})
    one, both = price([wave], speeds, 8), price([wave] * 2, speeds, 8)
    assert both.hours == pytest.approx(2 * one.hours) == pytest.approx(2 * TOKENS / 100 / 3600)
    assert both.utilisation == pytest.approx(3 / 8)


def test_a_stated_speed_is_scaled_by_the_cost_of_a_token() -> None:
    speeds = flat(100.0, SHAPE, 16)
    ratio = LARGE.flops_per_token(16) / SHAPE.flops_per_token(16)
    small, large = (price([Wave({(shape, BUDGET): 1})], speeds, 1) for shape in (SHAPE, LARGE))
    assert large.hours / small.hours == pytest.approx(ratio)


@given(
    trials=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    gpus=st.integers(1, 40),
    gain=st.floats(1.0, 2.0),
)
def test_more_devices_are_never_slower_by_more_than_small_packs_cost(trials: list[int], gpus: int, gain: float) -> None:
    def speeds(shape: Shape, budget: Budget) -> Calibration:
        return known({size: 100.0 * gain**doublings for doublings, size in enumerate((1, 2, 4, 8))})

    waves = [Wave({(SHAPE, BUDGET): count}) for count in trials]
    alone, many = price(waves, speeds, 1), price(waves, speeds, gpus)
    assert 0 < many.utilisation <= 1 + 1e-9
    assert many.hours <= alone.hours * (1 + 1e-9)
    fastest = sum(trials) * TOKENS / (100 * gain**3)
    assert many.gpu_hours * 3600 >= fastest * (1 - 1e-9)


def test_shapes_of_unknown_speed_are_named() -> None:
    rehearsal = load_plan("quickstart").rehearsal
    asked = {shape.name for each in rehearsal for wave in each.waves for shape, _ in wave.trials}
    assert "cpu-32" in asked
    assert {shape.name for shape in unknown_speeds(rehearsal, lambda *_: None)} == asked
    assert unknown_speeds(rehearsal, flat(100.0, SHAPE, 128)) == []


def test_waves_hold_every_trial_of_the_forecast() -> None:
    for each in load_plan("quickstart").rehearsal:
        assert sum(sum(wave.trials.values()) for wave in each.waves) == each.forecast.trials

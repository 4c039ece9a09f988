from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.train.schedule import Schedule
from mup_tune.trial import Budget


def budget(**changes: object) -> Budget:
    values: dict[str, object] = {
        "seq_len": 4,
        "batch_tokens": 8,
        "total_tokens": 800,
        "warmup_tokens": 80,
        "decay_tokens": 160,
        "lr_decay_to": 0.1,
        "val_tokens": 8,
    }
    return Budget.model_validate(values | changes)


def test_knees_of_warmup_and_decay() -> None:
    schedule = Schedule.of(budget())
    assert schedule.steps == 100
    assert schedule.eta_factor(0) == pytest.approx(0.1)  # 8 of 80 tokens: the first update is not lost
    assert schedule.eta_factor(8) == pytest.approx(0.9)
    assert schedule.eta_factor(9) == 1.0  # the batch that completes warmup_tokens
    assert schedule.eta_factor(79) == 1.0  # 640 tokens: the decay starts after this one
    assert schedule.eta_factor(80) == pytest.approx(0.1 ** (1 / 20))
    assert schedule.eta_factor(89) == pytest.approx(0.1**0.5)
    assert schedule.eta_factor(99) == pytest.approx(0.1)
    assert {schedule.lam_factor(step) for step in range(100)} == {1.0}


def test_the_decay_ends_at_the_last_whole_batch() -> None:
    schedule = Schedule.of(budget(total_tokens=805))
    assert schedule.steps == 100
    assert schedule.eta_factor(99) == pytest.approx(0.1)


def test_without_warmup_and_decay_everything_is_flat() -> None:
    schedule = Schedule.of(budget(warmup_tokens=0, decay_tokens=0))
    assert {schedule.eta_factor(step) for step in range(100)} == {1.0}


def test_power_schedule_from_its_onset() -> None:
    plain, power = Schedule.of(budget()), Schedule.of(budget(power_onset_tokens=160))
    for step in range(20):  # up to and including the onset at 160 tokens
        assert power.lam_factor(step) == 1.0
        assert power.eta_factor(step) == plain.eta_factor(step)
    assert power.lam_factor(39) == pytest.approx(2**-0.25)
    for step in range(100):
        # The same factor on both: EWD = sqrt(λ/η) moves with warmup and decay only.
        assert power.eta_factor(step) / power.lam_factor(step) == pytest.approx(plain.eta_factor(step))


@pytest.mark.parametrize("step", [-1, 100])
def test_a_step_outside_the_budget_is_an_error(step: int) -> None:
    schedule = Schedule.of(budget())
    with pytest.raises(ValueError, match=r"0 … 99"):
        schedule.eta_factor(step)
    with pytest.raises(ValueError, match=r"0 … 99"):
        schedule.lam_factor(step)


@given(
    steps=st.integers(1, 60),
    warm=st.integers(0, 30),
    decay=st.integers(0, 30),
    floor=st.floats(0.01, 1),
    rest=st.integers(0, 7),
)
def test_rises_then_never_rises_again(steps: int, warm: int, decay: int, floor: float, rest: int) -> None:
    total = (steps + warm + decay) * 8 + rest
    schedule = Schedule.of(
        budget(total_tokens=total, warmup_tokens=8 * warm, decay_tokens=8 * decay, lr_decay_to=floor)
    )
    factors = [schedule.eta_factor(step) for step in range(schedule.steps)]
    peak = max(range(len(factors)), key=factors.__getitem__)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < min(factors) <= max(factors) == 1.0
    assert factors[-1] == pytest.approx(floor if decay else 1.0)

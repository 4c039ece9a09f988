from __future__ import annotations

from math import isclose, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.schedule import ScheduleRow, batch_lr_factor, schedule_table
from mup_tune.settings import falcon_h1_published
from mup_tune.trial import Budget

SETTINGS = falcon_h1_published().with_values({"elr": 0.02, "ewd": 5.0})


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
    schedule = budget()
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
    schedule = budget(total_tokens=805)
    assert schedule.steps == 100
    assert schedule.eta_factor(99) == pytest.approx(0.1)


def test_without_warmup_and_decay_everything_is_flat() -> None:
    schedule = budget(warmup_tokens=0, decay_tokens=0)
    assert {schedule.eta_factor(step) for step in range(100)} == {1.0}


def test_power_schedule_from_its_onset() -> None:
    plain, power = budget(), budget(power_onset_tokens=160)
    for step in range(20):  # up to and including the onset at 160 tokens
        assert power.lam_factor(step) == 1.0
        assert power.eta_factor(step) == plain.eta_factor(step)
    assert power.lam_factor(39) == pytest.approx(2**-0.25)
    for step in range(100):
        # The same factor on both: EWD = sqrt(λ/η) moves with warmup and decay only.
        assert power.eta_factor(step) / power.lam_factor(step) == pytest.approx(plain.eta_factor(step))


@pytest.mark.parametrize("step", [-1, 100])
def test_a_step_outside_the_budget_is_an_error(step: int) -> None:
    schedule = budget()
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
    schedule = budget(total_tokens=total, warmup_tokens=8 * warm, decay_tokens=8 * decay, lr_decay_to=floor)
    factors = [schedule.eta_factor(step) for step in range(schedule.steps)]
    peak = max(range(len(factors)), key=factors.__getitem__)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < min(factors) <= max(factors) == 1.0
    assert factors[-1] == pytest.approx(floor if decay else 1.0)


@given(warm=st.integers(0, 20), stable=st.integers(30, 80), decay=st.integers(0, 20), onset=st.integers(1, 60))
def test_every_row_of_the_table_is_the_formula(warm: int, stable: int, decay: int, onset: int) -> None:
    steps = warm + stable + decay
    rows = schedule_table(
        budget(total_tokens=8 * steps, warmup_tokens=8 * warm, decay_tokens=8 * decay, power_onset_tokens=8 * onset),
        SETTINGS,
    )
    assert [row.step for row in rows] == list(range(steps))
    for row in rows:
        t = row.step + 1  # in batches
        power = (t / onset) ** -0.25 if t > onset else 1.0
        warmed = t / warm if t < warm else 1.0
        decayed = 0.1 ** ((t - steps + decay) / decay) if t > steps - decay else 1.0
        expected = (0.02 / 5.0 * warmed * power * decayed, 0.02 * 5.0 * power)
        assert (row.eta, row.lam) == pytest.approx(expected, rel=1e-12)
        assert (row.elr, row.ewd) == pytest.approx((sqrt(row.eta * row.lam), sqrt(row.lam / row.eta)), rel=1e-12)


def test_the_power_schedule_keeps_ewd_and_lets_elr_fall_as_the_fourth_root() -> None:
    """Effective Power Schedule (arXiv 2507.22448): ELR ∝ t^-¼, EWD constant, outside warmup and decay."""
    rows = schedule_table(budget(power_onset_tokens=160), SETTINGS)
    stable = rows[9:80]  # from the end of the warmup to the start of the decay
    assert all(isclose(row.ewd, SETTINGS.ewd, rel_tol=1e-12) for row in stable)
    after = [row for row in stable if row.step >= 19]  # from 160 tokens on
    for row in after:
        assert isclose(row.elr * ((row.step + 1) / 20) ** 0.25, SETTINGS.elr, rel_tol=1e-12)
    assert len(after) == 61
    assert all(row.elr == pytest.approx(SETTINGS.elr) for row in stable if row.step < 19)
    for row in (rows[0], rows[-1]):  # warmup and decay act on η alone: EWD rises, λ does not move with them
        assert row.ewd > 2 * SETTINGS.ewd
    assert rows[0] == pytest.approx(ScheduleRow(0, 0.0004, 0.1, sqrt(0.00004), sqrt(250)), rel=1e-12)


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**9))
def test_the_batch_rule_is_a_square_root_and_composes(a: int, b: int, c: int) -> None:
    assert batch_lr_factor(4 * a, a) == 2.0
    assert isclose(batch_lr_factor(a, b) ** 2, a / b, rel_tol=1e-12)
    assert isclose(batch_lr_factor(a, b) * batch_lr_factor(b, c), batch_lr_factor(a, c), rel_tol=1e-12)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    batch = 8 * draw(st.integers(1, 4))
    total = draw(st.integers(batch, 400 * batch))
    warmup = draw(st.integers(0, total))
    decay = draw(st.integers(0, total - warmup))
    return budget(batch_tokens=batch, total_tokens=total, warmup_tokens=warmup, decay_tokens=decay)


@given(budgets(), st.floats(1.0, 8.0))
def test_a_longer_budget_is_valid_and_has_whole_batches(plain: Budget, factor: float) -> None:
    longer = plain.longer(factor)
    assert Budget.model_validate(longer.model_dump()) == longer
    assert longer.total_tokens % longer.batch_tokens == 0
    assert longer.total_tokens >= plain.total_tokens
    assert abs(longer.steps - factor * plain.steps) <= 1
    same = {"total_tokens", "decay_tokens"}
    assert longer.model_dump(exclude=same) == plain.model_dump(exclude=same)


def test_a_longer_budget_keeps_its_warmup_and_the_share_of_its_decay() -> None:
    longer = budget().longer(1.9)
    assert (longer.steps, longer.total_tokens) == (190, 1520)
    assert longer.warmup_tokens == 80
    assert longer.decay_tokens == 304  # a fifth, as before
    assert budget().longer(1.0) == budget()
    assert budget(decay_tokens=0).longer(1.3).decay_tokens == 0

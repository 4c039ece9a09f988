"""The ``basin`` stage on families of landscapes whose optimum moves with the size by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landscapes import SHAPE, START, context, drive
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.report.words import summary
from mup_tune.search.basins import drift, judged
from mup_tune.search.stages.basin import BasinCheck
from mup_tune.stats import Interval
from mup_tune.trial import Trial, TrialResult

WIDTHS = (32, 64, 128)


def doublings(trial: Trial) -> float:
    return log2(trial.shape.d_model / 32)


def is_sp(trial: Trial) -> bool:
    """At the base Shape itself the two parametrisations are one."""
    return trial.settings.base.d_model == trial.shape.d_model != 32


@dataclass(frozen=True)
class Family:
    """A bowl in log2 ELR at every size; ``optimum`` and ``floor`` see the trial, ``noise`` is per trial."""

    optimum: Callable[[Trial], float]
    floor: Callable[[Trial], float] = lambda trial: 0.0
    noise: float = 0.003
    curvature: float = 0.06
    cliff: Callable[[Trial], float] = lambda trial: 99.0
    draw: int = 0

    def row(self, trial: Trial) -> TrialResult:
        x = log2(trial.settings.elr / START.elr)
        if x > self.cliff(trial):
            return TrialResult(trial, "diverged", float("nan"), float("nan"), "step 3")
        common = np.random.default_rng([self.draw, trial.seed]).normal(0, 0.3)
        own = np.random.default_rng([self.draw, int(trial.hash, 16)]).normal(0, self.noise)
        bowl = self.curvature / 2 * (x - self.optimum(trial)) ** 2
        return TrialResult(
            trial, "ok", 2.5 - 0.1 * doublings(trial) + self.floor(trial) + bowl + float(common + own), 0.001
        )


def still_or_one_a_doubling(trial: Trial) -> float:
    return 0.3 - doublings(trial) if is_sp(trial) else 0.3


def check(family: Family, seeds: int = 3, **fields):
    driven = drive(BasinCheck(**{"widths": WIDTHS, **fields}), family, context(seeds))
    finding = driven.conclusion.finding
    return {basin.param: basin for basin in finding.result.basins}, finding, driven


def test_no_drift_passes_and_one_step_a_doubling_fails():
    basins, finding, driven = check(Family(still_or_one_a_doubling))
    mup, sp = basins["mup"], basins["sp"]
    assert (mup.verdict, sp.verdict) == ("pass", "fail")
    assert [size.label for size in mup.sizes] == ["d32", "d64", "d128"]
    assert [size.d_model for size in sp.sizes] == [32, 64, 128]
    assert mup.sizes[0].drift is None
    for doubling, size in enumerate(sp.sizes[1:], start=1):
        assert size.drift.value == pytest.approx(-doubling, abs=0.15)
        assert size.drift.high < -doubling + 0.3
        assert abs(mup.sizes[doubling].drift.value) < 0.2
    # SP's largest size: ½ · 0.06 · 2² nats for keeping the small one's optimum.
    assert sp.sizes[2].regret.low < 0.12 < sp.sizes[2].regret.high
    assert sp.sizes[2].regret.value == pytest.approx(0.12, rel=0.25)
    assert 0 <= mup.sizes[2].regret.low <= mup.sizes[2].regret.value < 0.005
    text = " ".join(summary(finding))
    assert "mup: pass" in text
    assert "sp: fail" in text
    assert "same 20,480,000 tokens (20,000 steps)" in text
    assert driven.conclusion.state == State(START, {})
    assert (finding.on_path, finding.before, finding.after) == (False, START, START)


def test_noise_and_one_seed_without_a_fit_are_inconclusive():
    basins, _, _ = check(Family(still_or_one_a_doubling, noise=0.08))
    assert basins["mup"].verdict == "inconclusive"
    flat, _, _ = check(Family(lambda trial: 0.0, curvature=0.0, noise=0.01), seeds=1)
    assert flat["mup"].verdict == "inconclusive"


def test_a_verdict_needs_the_whole_interval():
    assert judged(Interval(0.1, -0.2, 0.49)) == "pass"
    assert judged(Interval(0.1, -0.2, 0.51)) == "inconclusive"
    assert judged(Interval(0.9, 0.49, 1.3)) == "inconclusive"
    assert judged(Interval(0.9, 0.51, 1.3)) == "fail"
    assert judged(Interval(-0.9, -1.3, -0.51)) == "fail"
    assert judged(Interval(0.0, -0.6, 0.6)) == "inconclusive"


@pytest.mark.parametrize("noise", [0.003, 0.015])
def test_the_drifts_interval_covers_at_three_seeds(noise: float):
    inside = []
    for draw in range(60):
        basins, _, _ = check(
            Family(still_or_one_a_doubling, noise=noise, draw=draw), extend=0, offsets=[-3, -2, -1, 0, 1, 2]
        )
        found = [(basins["sp"].sizes[1].drift, -1.0), (basins["mup"].sizes[2].drift, 0.0)]
        inside += [each.low <= truth <= each.high for each, truth in found if each is not None]
    assert len(inside) > 110
    assert np.mean(inside) >= 0.94


@given(st.lists(st.floats(0.01, 2), min_size=4, max_size=4), st.floats(-2, 2), st.floats(-2, 2))
def test_drift_is_antisymmetric_and_wider_than_either_side(widths: list[float], here: float, there: float):
    a = Interval(here, here - widths[0], here + widths[1])
    b = Interval(there, there - widths[2], there + widths[3])
    found, back = drift(a, b), drift(b, a)
    assert found.value == -back.value
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low))
    assert found.value - found.low >= max(widths[0], widths[3]) - 1e-9
    assert found.high - found.low <= sum(widths) + 1e-9


def test_an_edge_extends_that_sizes_grid_alone_and_an_optimum_beyond_is_inconclusive():
    basins, _, driven = check(Family(lambda trial: -3.3 if is_sp(trial) and doublings(trial) == 2 else 0.0))
    assert [len(size.points) for size in basins["sp"].sizes] == [5, 5, 7]
    assert [len(size.points) for size in basins["mup"].sizes] == [5, 5, 5]
    # d32 is one Shape under one Settings in both parametrisations: trained once.
    assert len(driven.known) == 3 * (5 * 5 + 2)
    assert basins["sp"].verdict == "fail"
    gone, _, _ = check(Family(lambda trial: -9.0 if is_sp(trial) and doublings(trial) == 2 else 0.0))
    assert gone["sp"].verdict == "inconclusive"
    assert (gone["sp"].sizes[-1].no_optimum, gone["sp"].sizes[-1].extended) == ("edge", 2)
    assert gone["sp"].sizes[2].drift is None
    # The cost of the small size's optimum is still measured, against the best trained point.
    assert gone["sp"].sizes[2].regret.value == pytest.approx(0.03 * (81 - 25), rel=0.1)


def test_an_optimum_at_a_cliff_is_known_only_up_to_the_next_point():
    family = Family(lambda trial: 2.0, cliff=lambda trial: 0.4 if doublings(trial) == 2 else 99.0)
    basins, _, _ = check(family, offsets=[-2, -1, 0, 1, 2, 3, 4], params=["mup"])
    largest = basins["mup"].sizes[2]
    assert largest.best_offset == 0
    assert largest.drift.low < -1 < largest.drift.high + 1e-9
    assert basins["mup"].verdict != "pass"
    assert largest.regret is None
    assert largest.no_regret == "diverged"


def test_where_the_largest_size_always_diverges_nothing_is_claimed():
    family = Family(lambda trial: 0.0, cliff=lambda trial: -9.0 if doublings(trial) == 2 else 99.0)
    basins, finding, _ = check(family)
    assert basins["mup"].verdict == "inconclusive"
    assert basins["mup"].sizes[-1].no_optimum == "every point diverged"
    assert basins["mup"].sizes[2].best is None
    assert "d128 diverged and diverged" in summary(finding)[-1]


def test_absolute_losses_show_a_parametrisation_that_transfers_and_trains_worse():
    def worse(trial: Trial) -> float:
        return 0.05 * doublings(trial) * (not is_sp(trial))

    basins, finding, _ = check(Family(still_or_one_a_doubling, floor=worse), widths=(64, 128))
    assert basins["mup"].verdict == "pass"
    assert "mup trains worse than sp at every size" in summary(finding)[-1]
    assert [each.outcome for each in finding.comparisons] == ["worse", "worse"]
    gain = finding.comparisons[1].gain
    assert gain.low < -0.1 < gain.high
    # At the base Shape untuned mup is sp: one model, no gain, and no size that counts.
    _, finding, _ = check(Family(still_or_one_a_doubling, floor=worse))
    assert "mup trains worse than sp at every size where the two differ" in summary(finding)[-1]
    assert finding.comparisons[0].gain is None
    assert (finding.comparisons[1].candidate, finding.comparisons[1].reference) == ("mup at d64", "sp at d64")


def test_settings_of_both_parametrisations():
    incumbent = START.with_values({"elr": 0.02, "ewd": 7.0, "rope_base": 1e4, "key": 0.5, "mlp_gate_proj.elr": 2.0})
    stage = BasinCheck(widths=(32, 64), depths=(2, 4), init="constant", offsets=[-1, 0, 1])
    trials = stage.propose(context(1), State(incumbent), {})
    assert len(trials) == 2 * 4 * 3
    assert {(trial.shape.d_model, trial.shape.n_layers) for trial in trials} == {(32, 2), (32, 4), (64, 2), (64, 4)}
    mup = [trial.settings for trial in trials if trial.settings.multipliers["key"] == 0.5]
    sp = [trial for trial in trials if trial.settings.multipliers["key"] == 1]
    assert len(mup) == len(sp) == 12
    assert {settings.base.d_model for settings in mup} == {32}
    assert {settings.init.rule for settings in mup} == {"constant"}
    for trial in sp:
        settings = trial.settings
        assert (settings.base.d_model, settings.base.n_layers) == (trial.shape.d_model, trial.shape.n_layers)
        assert set(settings.multipliers.values()) == {1.0}
        assert (settings.ewd, settings.rope_base, settings.init.hidden) == (7.0, 1e4, "rsqrt_fan_in")
    assert {round(log2(trial.settings.elr / 0.02), 9) for trial in sp} == {-1, 0, 1}
    labels = [label for label, _ in stage.sizes(context(1))]
    assert labels[0] == "d32 L2"
    assert labels[-1] == "d64 L4"


@pytest.mark.parametrize("widths", [(32, 48), (32, 8)])
def test_widths_that_have_to_be_rounded_are_refused(widths: tuple[int, ...]):
    with pytest.raises(UserError, match="which has to be rounded"):
        BasinCheck(widths=widths).propose(context(), State(START), {})


def test_a_multiplier_of_the_ssm_branch_needs_one():
    bare = SHAPE.model_copy(update={"d_ssm": 0})
    with pytest.raises(UserError, match="without an SSM branch"):
        BasinCheck(widths=(32, 64), hp="ssm_x").propose(context(shape=bare), State(START), {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hp": "erl"}, "did you mean 'elr'"),
        ({"widths": (32,)}, "are one size"),
        ({"widths": (32, 64, 32)}, "names a value twice"),
        ({"params": ("mup", "np")}, "'mup' or 'sp'"),
        ({"offsets": (0, 1, 2)}, "offsets below 0"),
    ],
)
def test_wrong_fields_name_value_and_fix(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        BasinCheck(**{"widths": (32, 64), **fields})

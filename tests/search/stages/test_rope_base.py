"""The ``rope_base`` stage on simulated landscapes: plateaus, none, divergence, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2, log10
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landscapes import SHAPE, START, budget, counts, drive, title
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import Finding, State
from mup_tune.report.words import summary, why
from mup_tune.search.plan import load_plan
from mup_tune.search.stage import Context
from mup_tune.search.stages.rope_base import RopeBase
from mup_tune.settings import Settings
from mup_tune.trial import Trial, TrialResult

VALUES = (1e4, 1e6, 1e8, 1e10, 1e11, 1e12, 1e14)
BUDGET = budget().model_copy(update={"val_tokens": 8 * 128 * 4})


def plateau(start: float, slope: float = 0.004) -> Callable[[float, int], float]:
    """Above log10 base ``start`` flat, below it worse, and the more so the longer the text."""
    return lambda decade, factor: slope * (1 + log2(factor)) * max(0.0, start - decade)


@dataclass(frozen=True)
class Lengths:
    """``loss`` sees log10 of the base and the multiple of the length; ``lost`` names bases that diverge."""

    loss: Callable[[float, int], float] = lambda decade, factor: 0.0
    noise: float = 0.002
    draw: int = 0
    lost: tuple[float, ...] = ()

    def row(self, trial: Trial) -> TrialResult:
        base = trial.settings.rope_base
        if base in self.lost and trial.seed == 1:
            return TrialResult(trial, "diverged", float("nan"), float("nan"), "step 3")
        common = np.random.default_rng([self.draw, trial.seed]).normal(0, 0.3)
        own = np.random.default_rng([self.draw, int(trial.hash, 16)]).normal(0, [self.noise, *[self.noise / 4] * 8])
        at = {
            f"loss_x{n}": 2.5 - 0.02 * log2(n) + self.loss(log10(base), n) + common + own[0] + own[n]
            for n in trial.budget.val_lengths
        }
        return TrialResult(trial, "ok", at["loss_x1"], 0.001, metrics=at)


def context(seeds: int = 3) -> Context:
    return Context(SHAPE, BUDGET, tuple(range(seeds)))


def at(base: float) -> Settings:
    return START.with_values({"rope_base": base}, name="before")


def check(landscape: Lengths, incumbent: float = 1e11, seeds: int = 3, **fields: object) -> Finding:
    driven = drive(RopeBase(**fields), landscape, context(seeds), at(incumbent))
    finding = driven.conclusion.finding
    assert driven.conclusion.state == State(finding.after, {})
    assert driven.rounds <= 1
    return finding


def test_an_ordinary_base_moves_to_the_plateau():
    finding = check(Lengths(plateau(10.0)), incumbent=1e4)
    axis = finding.axes[0]
    assert (axis.axis, axis.before, axis.after) == ("rope_base", 1e4, finding.after.rope_base)
    assert axis.after >= 1e10
    assert axis.decision == ("edge" if axis.after == 1e14 else "moved")
    assert finding.after == at(1e4).with_values({"rope_base": axis.after}, name="rope_base")
    assert finding.on_path
    assert axis.fit is None
    assert axis.p_value < 0.05
    # 0.004 · 6 decades · mean of 1 … 4
    assert axis.gain.low < 0.06 < axis.gain.high
    assert [point.value for point in axis.points] == list(VALUES)  # exact, no 2^log2 round trip
    assert axis.points[0].offset == 0
    assert axis.points[4].offset == pytest.approx(log2(1e7))
    assert finding.sigma_delta == pytest.approx(2**0.5 * 0.002, rel=0.5)


def test_what_the_lengths_say():
    finding = check(Lengths(plateau(10.0)), incumbent=1e4)
    assert [(each.factor, each.seq_len) for each in finding.result.lengths] == [(1, 128), (2, 256), (4, 512), (8, 1024)]
    text = " ".join(summary(finding))
    assert "no parabola is fitted" in text
    same = next(each for each in summary(finding) if each.startswith("Not told apart"))
    plain = {"1e10", "1e11", "1e12", "1e14"}
    assert plain == set(same.split("best base, ")[1].rstrip(".").replace(":", ",").split(", "))
    assert "Loss of the worst base, 1e4: 1x " in text
    # The gap is −0.06 on the plateau; an ordinary base loses 0.004 · 6 · 3 more on the way to 8x.
    gap = summary(finding)[-1]
    assert gap.startswith("Loss at 8x − loss at 1x")
    assert "+0.01" in gap.split(" at the incumbent's base, 1e4")[0]
    assert "−0.06" in gap.split(" at the incumbent's base, 1e4")[1]
    mean = {seed: np.mean([each.points[2].losses[seed] for each in finding.result.lengths]) for seed in (0, 1, 2)}
    assert finding.axes[0].points[2].losses == pytest.approx(mean)


def test_on_the_plateau_the_incumbent_stays():
    finding = check(Lengths(plateau(10.0)))
    assert finding.axes[0].decision in ("flat", "kept")
    assert finding.after == finding.before == at(1e11)
    assert "1e4" not in next(each for each in summary(finding) if each.startswith("Not told apart"))
    assert "at the base kept, 1e11" in summary(finding)[-1]
    assert "1e11 kept" in title(finding)


def test_without_a_plateau_the_end_of_the_range_is_named():
    falling = check(Lengths(plateau(20.0)))
    assert (falling.axes[0].decision, falling.after.rope_base) == ("edge", 1e14)
    assert "the largest base trained, the optimum may lie beyond" in summary(falling)[0]
    assert "told apart from every other one" in " ".join(summary(falling))
    stays = check(Lengths(plateau(20.0)), incumbent=1e16)
    assert (stays.axes[0].decision, stays.after) == ("edge", stays.before)
    assert len(stays.axes[0].points) == 8
    rising = check(Lengths(lambda decade, factor: 0.004 * decade))
    assert (rising.axes[0].decision, rising.after.rope_base) == ("edge", 1e4)
    assert "smallest" in why(rising, rising.axes[0])
    inside = check(Lengths(lambda decade, factor: 0.004 * abs(decade - 8)))
    assert (inside.axes[0].decision, inside.after.rope_base) == ("moved", 1e8)


def test_a_landscape_without_a_slope_has_no_edge():
    level = [check(Lengths(draw=draw), incumbent=1e16, values=(1e4, 1e11)) for draw in range(10)]
    same = [each for each in level if "Not told apart" in summary(each)[2] and summary(each)[2].count(",") == 2]
    assert len(same) > 5
    assert {each.axes[0].decision for each in same} == {"kept", "flat"}
    assert {title(each) for each in same} == {"RoPE base 1e16 kept: no other base of 1e4 … 1e16 is shown to be better"}


def test_a_base_that_helps_only_longer_texts_is_taken():
    finding = check(Lengths(lambda decade, factor: 0.04 * (factor == 8 and decade < 11)), incumbent=1e8)
    assert finding.after.rope_base >= 1e11


@pytest.fixture(scope="module")
def asked() -> list[Trial]:
    return list(RopeBase().propose(context(), State(at(1e11)), {}))


def test_a_flat_landscape_moves_nothing_and_the_best_is_in_its_set(asked: list[Trial]):
    """Bonferroni holds its 5 % over 200 draws (18 is the 99.5 % quantile), and the set covers."""
    moved, missed = 0, 0
    for draw in range(200):
        flat = Lengths(draw=draw)
        rows = {trial.hash: flat.row(trial) for trial in asked}
        finding = RopeBase().conclude(context(), State(at(1e11)), rows).finding
        moved += finding.after != finding.before
        same = [each for each in summary(finding) if each.startswith("Not told apart")]
        missed += not same or ("1e8" not in same[0])  # any fixed base is a true best here
    assert moved <= 18
    assert missed <= 18


def test_a_small_true_gain_is_found_more_often_than_not():
    landscape = Lengths(lambda decade, factor: 0.008 * (decade != 12))
    wins = [check(replace(landscape, draw=draw)).after.rope_base for draw in range(20)]
    assert wins.count(1e12) > 10
    assert set(wins) <= {1e11, 1e12}


def test_one_base_that_diverges_is_no_choice_and_widens_nothing():
    finding = check(Lengths(plateau(10.0), lost=(1e12,)), incumbent=1e4)
    assert finding.after.rope_base in (1e10, 1e11, 1e14)
    assert finding.axes[0].points[5].losses[1] is None
    assert finding.axes[0].points[5].losses[0] is not None
    assert all(each.points[5].losses[1] is None for each in finding.result.lengths)
    assert "not to be chosen: 1e12." in " ".join(summary(finding))


def test_an_incumbent_or_all_that_diverge_are_kept():
    lost = check(Lengths(lost=(1e11,)))
    assert (lost.axes[0].decision, lost.after) == ("kept", lost.before)
    assert "nothing to compare with" in title(lost)
    gone = check(Lengths(lost=VALUES))
    assert (gone.axes[0].decision, gone.axes[0].gain) == ("kept", None)
    assert "every base diverged" in title(gone)


def test_a_loss_that_is_no_number_at_one_length_counts_as_diverged(asked: list[Trial]):
    rows = {trial.hash: Lengths().row(trial) for trial in asked}
    one = next(trial for trial in asked if trial.settings.rope_base == 1e4)
    rows[one.hash].metrics["loss_x8"] = float("inf")
    finding = RopeBase().conclude(context(), State(at(1e11)), rows).finding
    assert finding.result.lengths[3].points[0].losses[0] is None
    assert finding.result.lengths[0].points[0].losses[0] is not None
    assert finding.axes[0].points[0].losses[0] is None


def test_a_missing_metric_is_named(asked: list[Trial]):
    rows = {trial.hash: Lengths().row(trial) for trial in asked}
    del rows[asked[-1].hash].metrics["loss_x4"]
    with pytest.raises(UserError, match=rf"trial {asked[-1].hash} .* has no 'loss_x4'"):
        RopeBase().conclude(context(), State(at(1e11)), rows)


def test_one_seed_moves_nothing():
    finding = check(Lengths(plateau(10.0)), incumbent=1e4, seeds=1)
    assert finding.axes[0].decision == "flat"
    assert "one seed cannot tell" in summary(finding)[0]
    assert finding.sigma_delta is None


@given(
    st.lists(st.sampled_from([1e3, 5e5, *VALUES]), min_size=1, max_size=9, unique=True),
    st.integers(1, 3),
    st.sampled_from([1e11, 2e7]),
)
def test_counts_are_exact_and_all_trials_share_shape_and_budget(values: list[float], n_seeds: int, incumbent: float):
    if values == [incumbent]:
        return
    stage, state = RopeBase(values=tuple(values), n_seeds=n_seeds, lengths=(1, 4)), State(at(incumbent))
    trials = stage.propose(context(), state, {})
    bases = sorted({*values, incumbent})
    assert counts(stage, context(), state) == (len(trials), len(trials)) == (len(bases) * n_seeds,) * 2
    assert [trial.settings.rope_base for trial in trials[::n_seeds]] == bases
    assert {trial.budget for trial in trials} == {BUDGET.model_copy(update={"val_lengths": (1, 4)})}
    assert {trial.shape for trial in trials} == {SHAPE}


def test_only_the_training_length_may_be_asked_for():
    finding = check(Lengths(plateau(10.0)), lengths=(1,))
    assert len(finding.result.lengths) == 1
    assert not any("loss at 1x, on" in each for each in summary(finding))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": (1e4, 1e6, 1e4)}, "names a base twice"),
        ({"values": (1e4, -1.0)}, "greater than 0"),
        ({"values": (1e4, float("inf"))}, "finite"),
        ({"lengths": (2, 4)}, "the training length itself, must be among them"),
        ({"lengths": (1, 2, 2)}, "names a length twice"),
        ({"lengths": (1, 3, 8)}, "3 does not divide the largest, 8"),
        ({"lengths": (0, 1)}, "greater than or equal to 1"),
        ({"n_seeds": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_fields_name_value_and_fix(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        RopeBase(**fields)


def test_what_does_not_fit_the_plan_is_refused_before_anything_trains():
    with pytest.raises(UserError, match="one base") as caught:
        RopeBase(values=(1e11,)).propose(context(), State(at(1e11)), {})
    assert caught.value.field == "values"
    too_short = replace(context(), budget=BUDGET.model_copy(update={"val_tokens": 4224}))
    with pytest.raises(
        UserError, match=r"val_tokens = 4224 is not a multiple of 1024 = 8 × .*multiple of 1024"
    ) as short:
        RopeBase().propose(too_short, State(START), {})
    assert short.value.field == "budget.val_tokens"
    with pytest.raises(UserError, match="more than the plan's 3 seeds"):
        RopeBase(n_seeds=4).propose(context(), State(START), {})


PLAN = """
proxy: cpu-64
seeds: [0, 1, 2]
budget:
  {{seq_len: 128, batch_tokens: 1024, total_tokens: 1024000, warmup_tokens: 0, decay_tokens: 0, val_tokens: {tokens}}}
stages:
  - {{kind: rope_base, {fields}}}
"""


def loaded(folder: Path, tokens: int = 8192, fields: str = "n_seeds: 2") -> RopeBase:
    path = folder / "mine.yaml"
    path.write_text(PLAN.format(tokens=tokens, fields=fields))
    stage = load_plan(str(path)).stages[0]
    assert isinstance(stage, RopeBase)
    return stage


@pytest.mark.parametrize(
    ("fields", "tokens", "message"),
    [
        ("values: [1e11]", 8192, "one base"),
        ("values: [1e4, 0]", 8192, "greater than 0"),
        ("lengths: [1, 3, 4]", 8192, "3 does not divide the largest, 4"),
        ("bases: [1e4]", 8192, "unknown key 'bases'"),
        ("lengths: [1, 8]", 8192 + 128, "val_tokens = 8320 is not a multiple of 1024"),
        ("n_seeds: 9", 8192, "more than the plan's 3 seeds"),
    ],
)
def test_a_plan_names_the_stage_and_the_field(tmp_path: Path, fields: str, tokens: int, message: str):
    with pytest.raises(UserError, match=message) as caught:
        loaded(tmp_path, tokens, fields)
    assert "mine.yaml: stages[0]" in str(caught.value)


def test_a_plan_with_the_stage_loads_with_falcon_h1s_range(tmp_path: Path):
    stage = loaded(tmp_path)
    assert stage.values == VALUES
    assert stage.lengths == (1, 2, 4, 8)

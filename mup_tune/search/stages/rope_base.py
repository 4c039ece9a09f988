"""The ``rope_base`` stage: train at one length with several RoPE bases, evaluate at multiples of it, unchanged.

The range of bases is Falcon-H1's ablation (arXiv 2507.22448): ordinary bases degrade, the more so the longer
the text, and the loss is flat from some base on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, log2
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from mup_tune import stats
from mup_tune.errors import UserError
from mup_tune.findings import AxisFinding, Decision, LengthCurve, Point
from mup_tune.search.stage import Asked, Conclusion, Losses, Stage, State, each_once, losses
from mup_tune.search.stages import sweep
from mup_tune.settings import PositiveFloat, Settings
from mup_tune.shape import Positive
from mup_tune.stats import Estimate, Sigma
from mup_tune.trial import Budget, TrialResult

SIGNIFICANT = 0.05
AXIS = "rope_base"
BEST = "kept: its value is the best point"


class RopeBase(Stage):
    """Trains the incumbent with each of ``values`` as RoPE base and evaluates it at ``lengths`` × the training length.

    The mean of the losses over ``lengths``, per seed, decides. The best base is taken where it beats the
    incumbent's at p < 0.05 after Bonferroni over the other bases; else the incumbent's is kept. The landscape
    is a plateau, so no parabola is fitted: the answer is a trained base. Bases *not told apart from the best*
    are those that the best one does not beat by the same test; the true best is among them with 95 %
    confidence (multiple comparisons with the best, Hsu, Ann. Statist. 12:1136, 1984), and the incumbent's
    base is kept exactly where it is one of them.
    """

    kind: Literal["rope_base"] = "rope_base"
    values: Annotated[tuple[PositiveFloat, ...], each_once("base")] = (1e4, 1e6, 1e8, 1e10, 1e11, 1e12, 1e14)
    lengths: Annotated[tuple[Positive, ...], each_once("length")] = (1, 2, 4, 8)
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("values")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(values))

    @field_validator("lengths")
    @classmethod
    def _multiples(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if 1 not in lengths:
            raise ValueError(f"{list(lengths)} is not allowed: 1, the training length itself, must be among them")
        if wrong := [length for length in lengths if max(lengths) % length]:
            raise ValueError(f"{list(lengths)} is not allowed: {wrong[0]} does not divide the largest, {max(lengths)}")
        return tuple(sorted(lengths))

    @property
    def title(self) -> str:
        return f"RoPE base, evaluated at {_times(self.lengths)} the training length"

    def walk(self, asked: Asked, state: State) -> Conclusion:
        before, context = state.incumbent, asked.context
        budget, bases = self._evaluated(context.budget), self._bases(before)
        seeds = sweep.chosen_seeds(context, self.n_seeds)
        settings = [before.with_values({AXIS: base}) for base in bases]
        rows = asked.rows([context.trials(each, seeds, budget=budget) for each in settings])
        grid = _measured(before.rope_base, dict(zip(bases, rows, strict=True)), self.lengths)
        axis, after = _decided(grid, before, self.label)
        finding = self.finding(
            before=before,
            after=after,
            axes=(axis,),
            lengths=tuple(
                LengthCurve(factor=factor, seq_len=factor * budget.seq_len, points=grid.points(each))
                for factor, each in grid.by_length.items()
            ),
            headline=_headline(axis),
            sigma_delta=None if grid.sigma is None else grid.sigma.value,
            summary=_summary(grid, axis),
        )
        return Conclusion(replace(state, incumbent=after), finding)

    def _bases(self, incumbent: Settings) -> list[float]:
        """The bases to train, ascending; the incumbent's always takes part."""
        bases = sorted({*self.values, incumbent.rope_base})
        if len(bases) < 2:
            problem = f"values = {_listed(self.values)} and the incumbent's {_short(bases[0])} are one base"
            raise UserError(problem, field="values", fix="Name at least one other base")
        return bases

    def _evaluated(self, budget: Budget) -> Budget:
        """``budget`` with validation at every length."""
        try:
            return Budget.model_validate({**budget.model_dump(), "val_lengths": self.lengths})
        except ValidationError:  # the lengths were checked: only the validation text can be too short
            longest = budget.seq_len * max(self.lengths)
            raise UserError(
                f"budget.val_tokens = {budget.val_tokens} is not a multiple of {longest} = "
                f"{max(self.lengths)} × seq_len, the longest of lengths",
                field="budget.val_tokens",
                fix=f"Set it to a multiple of {longest}, or evaluate at shorter lengths",
            ) from None


@dataclass(frozen=True)
class Grid:
    """What was measured: losses by base, ascending, at every factor (``by_length``), and their ``mean``, which decides.

    ``incumbent`` is the incumbent's base. A base is ``usable`` where every seed ended, at every length; its
    value there is the mean deciding loss.
    """

    incumbent: float
    by_length: Mapping[int, Mapping[float, Losses]]
    mean: Mapping[float, Losses]

    @cached_property
    def usable(self) -> dict[float, float]:
        means = zip(self.mean, stats.means(list(self.mean.values())), strict=True)
        return {base: value for base, value in means if value is not None}

    @property
    def best(self) -> float | None:
        return min(self.usable, key=self.usable.__getitem__, default=None)

    @cached_property
    def sigma(self) -> Sigma | None:
        """σ_Δ of the deciding loss, pooled over the usable bases."""
        return stats.sigma_delta([stats.usable(self.mean[base]) or {} for base in self.usable])

    def best_over(self, base: float) -> Estimate | None:
        """Gain of the best base over another one, its p-value times the number of bases the best was picked from."""
        if self.best is None:
            return None
        if base == self.best:
            return Estimate(0.0, 0.0, 0.0, 1.0)
        gain = stats.paired_gain(self.mean[self.best], self.mean[base], self.sigma)
        if gain is None or gain.p_value is None:
            return gain
        return Estimate(gain.value, gain.low, gain.high, min(1.0, (len(self.usable) - 1) * gain.p_value))

    @cached_property
    def not_told_apart(self) -> list[float]:
        """The bases that the best one does not beat at p < 0.05, itself left out."""
        gains = {base: self.best_over(base) for base in self.usable if base != self.best}
        return [
            base for base, gain in gains.items() if gain is None or gain.p_value is None or gain.p_value >= SIGNIFICANT
        ]

    def gap(self, base: float) -> Estimate | None:
        """loss at the longest length − loss at the training length; Student's t over seeds."""
        return stats.paired_gain(self.by_length[1][base], self.by_length[max(self.by_length)][base])

    def points(self, by_base: Mapping[float, Losses]) -> tuple[Point, ...]:
        return tuple(Point(offset=log2(b / self.incumbent), value=b, losses=each) for b, each in by_base.items())


def _measured(incumbent: float, rows: Mapping[float, Sequence[TrialResult]], lengths: Sequence[int]) -> Grid:
    by_length = {length: {base: _at(each, length) for base, each in rows.items()} for length in lengths}
    mean = {base: _mean([each[base] for each in by_length.values()]) for base in rows}
    return Grid(incumbent, by_length, mean)


def _at(rows: Sequence[TrialResult], length: int) -> Losses:
    """Loss by seed at ``length``; None where the member diverged, in training or at this length alone."""
    metric = f"loss_x{length}"
    for row in rows:
        if row.ok and metric not in row.metrics:
            raise UserError(
                f"trial {row.trial.hash} was trained without validation at {length}x its length: it has no {metric!r}",
                fix="The run folder holds rows of another version; start the run in a new folder",
            )
    return {seed: v if v is not None and isfinite(v) else None for seed, v in losses(rows, metric).items()}


def _mean(at_each: Sequence[Losses]) -> Losses:
    """Mean over the lengths, by seed; None where one of them is."""
    by_seed = {seed: [each[seed] for each in at_each] for seed in at_each[0]}
    ended = {seed: [value for value in values if value is not None] for seed, values in by_seed.items()}
    return {seed: fmean(values) if len(values) == len(at_each) else None for seed, values in ended.items()}


def _decided(grid: Grid, before: Settings, label: str) -> tuple[AxisFinding, Settings]:
    """The axis' finding and the next incumbent. ``gain`` is over the incumbent's base, p after Bonferroni."""
    best, gain, after = grid.best, grid.best_over(grid.incumbent), before
    decision: Decision = "kept"
    if best is None:
        why = "kept: every base diverged"
    elif best == grid.incumbent:
        why = BEST
    elif grid.incumbent not in grid.usable:
        why = "kept: the incumbent's diverged, there is nothing to compare with"
    elif gain is None or gain.p_value is None:
        decision, why = "flat", f"kept: {_short(best)} is lower, but one seed cannot tell noise from gain"
    elif grid.incumbent in grid.not_told_apart:
        decision = "flat"
        why = f"kept: best base {_short(best)}, {sweep.spoken(gain)}, p = {gain.p_value:.2g} over all bases"
    else:
        decision, after = "moved", before.with_values({AXIS: best}, name=label)
        why = f"{_short(grid.incumbent)} → {_short(best)}: {sweep.spoken(gain)}, p = {gain.p_value:.2g} over all bases"
    ends = {min(grid.mean): "smallest", max(grid.mean): "largest"}
    flat = len(grid.not_told_apart) == len(grid.usable) - 1  # a landscape without a slope has no edge
    if best in ends and best == after.rope_base and not flat:
        decision = "edge"
        why += f"; it is the {ends[best]} base trained, the optimum may lie beyond"
    finding = AxisFinding(
        axis=AXIS,
        before=before.rope_base,
        after=after.rope_base,
        points=grid.points(grid.mean),
        fit=None,
        gain=sweep.as_interval(gain),
        p_value=None if gain is None else gain.p_value,
        decision=decision,
        why=why,
    )
    return finding, after


def _headline(axis: AxisFinding) -> str:
    before, after = _short(axis.before), _short(axis.after)
    bases = f"{_short(axis.points[0].value)} … {_short(axis.points[-1].value)}"
    if axis.after != axis.before:
        return f"RoPE base {before} → {after}: the best of {bases}, evaluated up to longer texts than trained on"
    if axis.decision == "flat" or axis.why.startswith(BEST):
        return f"RoPE base {before} kept: no other base of {bases} is shown to be better"
    return f"RoPE base {before} {axis.why}"


def _summary(grid: Grid, axis: AxisFinding) -> tuple[str, ...]:
    said = [
        f"RoPE base: {axis.why}.",
        f"The mean loss at {_times(tuple(grid.by_length))} the training length decides. A plateau is expected, no "
        "bowl: no parabola is fitted, and only a trained base is taken.",
    ]
    best = grid.best
    if best is None:
        return tuple(said)
    if grid.not_told_apart:
        said.append(f"Not told apart from the best base, {_short(best)}: {_listed(grid.not_told_apart)}.")
    elif len(grid.usable) > 1:
        said.append(f"The best base, {_short(best)}, is told apart from every other one that trained.")
    if lost := [base for base in grid.mean if base not in grid.usable]:
        said.append(f"Diverged on at least one seed, and so not to be chosen: {_listed(lost)}.")
    worst = max(grid.usable, key=grid.usable.__getitem__)
    for base, word in {worst: "worst", best: "best"}.items():
        at = ", ".join(f"{length}x {_spoken_mean(each[base])}" for length, each in grid.by_length.items())
        said.append(f"Loss of the {word} base, {_short(base)}: {at} nats/token.")
    return (*said, *_gaps(grid, axis))


def _gaps(grid: Grid, axis: AxisFinding) -> list[str]:
    """What is lost or gained from the training length to the longest, at the incumbent's and the chosen base."""
    if len(grid.by_length) < 2:
        return []
    roles = {axis.before: "the incumbent's base", axis.after: "the chosen base"}
    roles = roles if len(roles) > 1 else {axis.before: "the base kept"}
    gaps = {base: grid.gap(base) for base in roles}
    told = "; ".join(f"{_interval(gap)} at {roles[base]}, {_short(base)}" for base, gap in gaps.items() if gap)
    if not told:
        return []
    return [f"Loss at {max(grid.by_length)}x − loss at 1x, on the same text (below 0: longer context helps): {told}."]


def _interval(gap: Estimate) -> str:
    return f"{gap.value:+.4f} nats/token (95 % CI {gap.low:+.4f} … {gap.high:+.4f})"


def _spoken_mean(at: Losses) -> str:
    return f"{fmean((stats.usable(at) or {}).values()):.4f}"


def _short(base: float) -> str:
    """1e11 rather than 1e+11."""
    mantissa, _, exponent = f"{base:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _listed(bases: Sequence[float]) -> str:
    return ", ".join(_short(base) for base in bases)


def _times(lengths: Sequence[int]) -> str:
    return ", ".join(f"{length}x" for length in lengths)

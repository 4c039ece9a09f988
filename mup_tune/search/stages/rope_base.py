"""The ``rope_base`` stage: train at one length with several RoPE bases, evaluate at multiples of it.

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
from mup_tune.findings import AxisFinding, Decision, Point, Reason, State
from mup_tune.findings.rope_bases import LengthCurve, RopeBases
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Conclusion, Stage, each_once, losses
from mup_tune.settings import PositiveFloat, Settings
from mup_tune.shape import Positive
from mup_tune.stats import NOTHING, Interval, Losses, Sigma
from mup_tune.trial import Budget, TrialResult, length_loss

AXIS = "rope_base"


class RopeBase(Stage):
    """Trains the incumbent with each of ``values`` as RoPE base, and evaluates at ``lengths`` × its length.

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
        seeds = swept_axis.chosen_seeds(context, self.n_seeds)
        settings = [before.with_values({AXIS: base}) for base in bases]
        rows = asked.rows([context.trials(each, seeds, budget=budget) for each in settings])
        grid = _measured(before.rope_base, dict(zip(bases, rows, strict=True)), self.lengths)
        axis, after = _decided(grid, before, self.label)
        gaps = {base: gap for base in (axis.before, axis.after) if len(grid.by_length) > 1 and (gap := grid.gap(base))}
        result = RopeBases(
            axis=axis,
            lengths=tuple(
                LengthCurve(factor=factor, seq_len=factor * budget.seq_len, points=grid.points(each))
                for factor, each in grid.by_length.items()
            ),
            not_told_apart=tuple(grid.not_told_apart),
            gaps=gaps,
        )
        return Conclusion(replace(state, incumbent=after), self.finding(before, after, result, grid.sigma))

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
class Measured:
    """Losses by base, ascending, at every factor (``by_length``), and their ``mean``, which decides.

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

    def best_over(self, base: float) -> Interval | None:
        """Gain of the best base over another, its p-value times the bases that the best was picked from."""
        if self.best is None:
            return None
        if base == self.best:
            return NOTHING
        gain = stats.paired_gain(self.mean[self.best], self.mean[base], self.sigma)
        return gain and gain.picked_from(len(self.usable) - 1)

    @cached_property
    def not_told_apart(self) -> list[float]:
        """The bases that the best one does not beat at p < 0.05, itself left out."""
        gains = {base: self.best_over(base) for base in self.usable if base != self.best}
        return [base for base, gain in gains.items() if gain is None or not gain.significant]

    def gap(self, base: float) -> Interval | None:
        """loss at the longest length − loss at the training length; Student's t over seeds."""
        return stats.paired_gain(self.by_length[1][base], self.by_length[max(self.by_length)][base])

    def points(self, by_base: Mapping[float, Losses]) -> tuple[Point, ...]:
        return tuple(Point(offset=log2(b / self.incumbent), value=b, losses=each) for b, each in by_base.items())


def _measured(incumbent: float, rows: Mapping[float, Sequence[TrialResult]], lengths: Sequence[int]) -> Measured:
    by_length = {length: {base: _at(each, length) for base, each in rows.items()} for length in lengths}
    mean = {base: _mean([each[base] for each in by_length.values()]) for base in rows}
    return Measured(incumbent, by_length, mean)


def _at(rows: Sequence[TrialResult], length: int) -> Losses:
    """Loss by seed at ``length``; None where the member diverged, in training or at this length alone."""
    metric = length_loss(length)
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


def _decided(grid: Measured, before: Settings, label: str) -> tuple[AxisFinding, Settings]:
    """The axis' finding and the next incumbent. ``gain`` is over the incumbent's base, p after Bonferroni."""
    best, gain, after = grid.best, grid.best_over(grid.incumbent), before
    decision: Decision = "kept"
    reason: Reason = "fitted"
    if best is None:
        reason = "all diverged"
    elif best == grid.incumbent:
        reason = "best"
    elif grid.incumbent not in grid.usable:
        reason = "incumbent diverged"
    elif gain is None or gain.p_value is None:
        decision, reason = "flat", "noise unknown"
    elif grid.incumbent in grid.not_told_apart:
        decision, reason = "flat", "not better"
    else:
        decision, after = "moved", before.with_values({AXIS: best}, name=label)
    flat = len(grid.not_told_apart) == len(grid.usable) - 1  # a landscape without a slope has no edge
    if best in (min(grid.mean), max(grid.mean)) and best == after.rope_base and not flat:
        decision = "edge"
    finding = AxisFinding(
        axis=AXIS,
        before=before.rope_base,
        after=after.rope_base,
        points=grid.points(grid.mean),
        gain=gain,
        p_value=None if gain is None else gain.p_value,
        decision=decision,
        reason=reason,
    )
    return finding, after


def _short(base: float) -> str:
    """1e11 rather than 1e+11."""
    mantissa, _, exponent = f"{base:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _listed(bases: Sequence[float]) -> str:
    return ", ".join(_short(base) for base in bases)


def _times(lengths: Sequence[int]) -> str:
    return ", ".join(f"{length}x" for length in lengths)

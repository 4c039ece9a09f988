"""The ``joint`` stage: several axes searched at once around the incumbent, taken only where fresh seeds agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from mup_tune import stats
from mup_tune.errors import UserError
from mup_tune.findings import AxisFinding, Candidate, Comparison, Decision, Search
from mup_tune.multipliers import MULTIPLIER_NAMES, MULTIPLIERS
from mup_tune.search.sampling import Sampler, check_room, suggest
from mup_tune.search.stage import Asked, Conclusion, Context, Losses, Stage, State
from mup_tune.search.stages import sweep
from mup_tune.settings import GLOBAL_AXES, Settings, check_axis
from mup_tune.shape import Shape
from mup_tune.stats import Estimate
from mup_tune.trial import Trial

SIGNIFICANT = 0.05
FIRST_SEED = 2000  # ``confirm`` counts from 1000
ORDER = (*GLOBAL_AXES, *MULTIPLIER_NAMES)


@dataclass(frozen=True)
class Finalist:
    """A candidate and the incumbent on the verification seeds; ``p_value`` is Bonferroni's over the finalists."""

    label: str
    settings: Settings
    offsets: Mapping[str, float]
    losses: Losses
    incumbent: Losses
    gain: Estimate | None
    p_value: float

    @property
    def better(self) -> bool:
        """Whether Bonferroni's CI of the gain lies above 0."""
        return self.gain is not None and self.gain.value > 0 and self.p_value < SIGNIFICANT

    @property
    def said(self) -> str:
        if self.gain is None:
            return "gain not known: a seed diverged here or at the incumbent"
        return f"{sweep.spoken(self.gain)}, p = {self.p_value:.2g} after Bonferroni"


class Joint(Stage):
    """Searches a box of ±``radius`` log2 around the incumbent over the ``top`` most sensitive axes, or named ones.

    ``batch`` candidates a round, all on the same tuning seeds; a round sees all earlier ones (the first is
    random). The best of many noisy candidates looks better than it is, so the ``finalists`` best and the
    incumbent train on ``verify_seeds`` seeds that tuned nothing. The best of them there is taken if its
    paired gain's CI, Student's t on the differences' own SD with Bonferroni over the finalists, lies above 0;
    else the incumbent stays.
    """

    kind: Literal["joint"] = "joint"
    top: Annotated[int, Field(ge=1)] | None = None
    axes: list[str] | str | None = None
    sampler: Sampler = "tpe"
    trials: Annotated[int, Field(ge=1)] = 24
    batch: Annotated[int, Field(ge=1)] = 8
    radius: Annotated[float, Field(ge=0.125, le=8)] = 1.0
    n_seeds: Annotated[int, Field(ge=1)] | None = None
    finalists: Annotated[int, Field(ge=1)] = 2
    verify_seeds: Annotated[int, Field(ge=2, le=100)] = 4

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, axes: list[str] | str | None) -> list[str] | str | None:
        if isinstance(axes, str) and axes != "all":
            raise ValueError(f"{axes!r} is not allowed: give 'all' or a list of axes")
        for axis in axes if isinstance(axes, list) else ():
            try:
                check_axis(axis)
            except UserError as error:
                raise ValueError(error.problem) from None
        if isinstance(axes, list) and (not axes or len(set(axes)) != len(axes)):
            raise ValueError(f"{axes} is not allowed: name at least one axis, each once")
        return axes

    @model_validator(mode="after")
    def _consistent(self) -> Joint:
        if (self.top is None) == (self.axes is None):
            raise ValueError("give either `top` (the most sensitive of the axes measured before) or `axes`")
        if self.finalists > self.trials:
            raise ValueError(f"finalists = {self.finalists} must not exceed trials = {self.trials}")
        return self

    @property
    def title(self) -> str:
        over = f"the {self.top} most sensitive axes" if self.top else "ELR and all multipliers"
        if isinstance(self.axes, list):
            over = ", ".join(self.axes)
        return f"Joint search ({self.sampler}) over {over}"

    def seeds(self, context: Context) -> tuple[int, ...]:
        """The seeds that verify: 2000, 2001, … without the plan's tuning seeds."""
        return sweep.fresh_seeds(context, FIRST_SEED, self.verify_seeds)

    def priced_by(self, context: Context, state: State) -> Sequence[Trial]:
        """The incumbent's own: candidates cost the same, and drawing them would make every plan wait for Optuna."""
        self._searched(context.shape, state)
        return context.trials(state.incumbent, sweep.chosen_seeds(context, self.n_seeds))

    def counts(self, context: Context, state: State) -> tuple[int, int]:
        """The same number twice: nothing extends a search. Raises like :meth:`walk`."""
        self._searched(context.shape, state)
        searched = (1 + self.trials) * len(sweep.chosen_seeds(context, self.n_seeds))
        total = searched + (1 + self.finalists) * self.verify_seeds
        return total, total

    def walk(self, asked: Asked, state: State) -> Conclusion:
        before = state.incumbent
        seeds = sweep.chosen_seeds(asked.context, self.n_seeds)
        axes = self._searched(asked.context.shape, state)
        if not axes:
            why = "No axis has shown a curvature so far, so there is nothing to search."
            return Conclusion(state, self.finding(before, before, summary=(why,)))
        search = self._search(asked, before, axes, seeds)
        finalists = self._verified(asked, before, search)
        return self._conclusion(asked, state, search, finalists)

    def _searched(self, shape: Shape, state: State) -> tuple[str, ...]:
        """The axes, in the registry's order; none where nothing that earlier stages measured is curved.

        Raises:
            UserError: see :meth:`_chosen`, or the box of the axes holds fewer candidates than the search asks
            for.
        """
        axes = self._chosen(shape, state)
        if axes:
            check_room(axes, self.radius, -(-self.trials // self.batch) * self.batch)
        return axes

    def _chosen(self, shape: Shape, state: State) -> tuple[str, ...]:
        """The axes before the box is checked.

        Raises:
            UserError: earlier stages measure fewer than ``top`` axes, or none of ``axes`` acts at this Shape.
        """
        if self.top is not None:
            measured = {axis: state.sensitivity[axis] for axis in acting(ORDER, shape) if axis in state.sensitivity}
            measured = {axis: each for axis, each in measured.items() if each > 0}
            # Checked before anything is spent; a stage that measured less than it said ends no run half-way.
            if len(measured) < self.top and not state.flops:
                raise UserError(
                    f"top = {self.top} but earlier stages measure only {len(measured)} axes",
                    field="top",
                    fix="Put `micro` or `elr_ewd` stages before this one, lower it, or name `axes`",
                )
            taken = sorted(measured, key=lambda axis: (-measured[axis], ORDER.index(axis)))[: self.top]
            return tuple(axis for axis in ORDER if axis in taken)
        wanted = ("elr", *MULTIPLIER_NAMES) if self.axes == "all" else tuple(self.axes or ())
        axes = acting(wanted, shape)
        if not axes:
            raise UserError(
                f"without an SSM branch (d_ssm = 0) none of {', '.join(wanted)} does anything",
                field="axes",
                fix="Name axes of another branch",
            )
        return axes

    def _search(self, asked: Asked, before: Settings, axes: Sequence[str], seeds: tuple[int, ...]) -> Search:
        """The centre and all candidates, round by round. The centre trains with the first round, which is random."""
        centre, candidates = Losses(), list[Candidate]()
        history: list[tuple[dict[str, float], float | None]] = []
        while len(candidates) < self.trials:
            round_ = 1 + len(candidates) // self.batch
            draws = int(np.random.SeedSequence([*seeds, round_]).generate_state(1)[0])
            # Whole rounds are drawn, whatever is left of the last one: what is drawn then depends on history
            # alone.
            offsets = suggest(self.sampler, axes, self.radius, history, self.batch, draws)
            offsets = offsets[: self.trials - len(candidates)]
            centre, *found = asked.losses([before, *(moved(before, each) for each in offsets)], seeds)
            candidates += [Candidate(round=round_, offsets=o, losses=f) for o, f in zip(offsets, found, strict=True)]
            told = [centre, *(each.losses for each in candidates)]
            points = [dict.fromkeys(axes, 0.0), *(each.offsets for each in candidates)]
            history = list(zip(points, stats.means(told), strict=True))
        return as_search(self.sampler, axes, self.radius, centre, candidates)

    def _verified(self, asked: Asked, before: Settings, search: Search) -> list[Finalist]:
        """The candidates with the lowest means on the tuning seeds, on fresh ones beside the incumbent; best first."""
        means = stats.means([each.losses for each in search.candidates])
        ended = sorted((mean, index) for index, mean in enumerate(means) if mean is not None)
        chosen = [index for _, index in ended[: self.finalists]]
        if not chosen:
            return []
        offsets = [search.candidates[index].offsets for index in chosen]
        settings = [moved(before, each) for each in offsets]
        incumbent, *found = asked.losses([before, *settings], self.seeds(asked.context))
        gains = [stats.paired_gain(losses, incumbent) for losses in found]
        adjusted = [min(1.0, len(chosen) * (g.p_value or 0.0)) if g else 1.0 for g in gains]
        labels = [f"candidate {index + 1}" for index in chosen]
        rows = zip(labels, settings, offsets, found, gains, adjusted, strict=True)
        finalists = [Finalist(label, s, o, losses, incumbent, g, p) for label, s, o, losses, g, p in rows]
        return sorted(finalists, key=lambda each: -each.gain.value if each.gain else float("inf"))

    def _conclusion(self, asked: Asked, state: State, search: Search, finalists: Sequence[Finalist]) -> Conclusion:
        before = state.incumbent
        winner = finalists[0] if finalists and finalists[0].better else None
        after = winner.settings.with_values({}, name=self.label) if winner else before
        spent = sum(trial.flops for trial in asked.trials.values())
        lost = sum(stats.usable(each.losses) is None for each in search.candidates)
        centre, best = stats.means([search.centre_losses])[0], search.best
        told = [
            f"{len(search.candidates)} candidates on {len(search.centre_losses)} tuning seeds in a box of "
            f"±{self.radius:g} log2 over {len(search.axes)} axes, {lost} diverged; with their verification "
            f"{len(asked.trials)} trials and {spent:.3g} FLOPs.",
        ]
        if best is not None:
            mean = stats.means([search.candidates[best].losses])[0]
            at = "diverged" if centre is None else f"{centre:.4f}"
            told.append(f"On the tuning seeds candidate {best + 1} is best: {mean:.4f} nats/token, the incumbent {at}.")
        told += [f"On fresh seeds {each.label}: {each.said}." for each in finalists]
        told.append(f"Taken: {winner.label}." if winner else f"The incumbent stays: {_why_not(finalists)}.")
        comparisons = tuple(
            Comparison(
                candidate=each.label,
                reference="incumbent",
                candidate_losses=each.losses,
                reference_losses=each.incumbent,
                gain=sweep.as_interval(each.gain),
                verdict="taken" if each is winner else "better, not the best" if each.better else "not better",
            )
            for each in finalists
        )
        axes = tuple(_judged(axis, before, winner, finalists) for axis in search.axes)
        finding = self.finding(
            before, after, axes=axes, comparisons=comparisons, searches=(search,), summary=tuple(told)
        )
        return Conclusion(replace(state, incumbent=after), finding)


def acting(axes: Sequence[str], shape: Shape) -> tuple[str, ...]:
    """Those of ``axes`` that do something at ``shape``."""
    return tuple(axis for axis in axes if shape.d_ssm or axis not in MULTIPLIERS or not MULTIPLIERS[axis].needs_ssm)


def moved(centre: Settings, offsets: Mapping[str, float]) -> Settings:
    """``centre`` with log2 ``offsets`` added to its axes."""
    return centre.scaled({axis: 2.0**offset for axis, offset in offsets.items()})


def as_search(
    sampler: Sampler, axes: Sequence[str], radius: float, centre: Losses, candidates: Sequence[Candidate]
) -> Search:
    """The finding; its best candidate is the one of the lowest mean, whether or not it beats the centre."""
    return Search(
        sampler=sampler,
        axes=tuple(axes),
        radius=radius,
        centre_losses=centre,
        candidates=tuple(candidates),
        best=stats.argmin(stats.means([each.losses for each in candidates])),
    )


def _why_not(finalists: Sequence[Finalist]) -> str:
    return "no candidate beats it on fresh seeds" if finalists else "every candidate diverged"


def _judged(axis: str, before: Settings, winner: Finalist | None, finalists: Sequence[Finalist]) -> AxisFinding:
    """What became of an axis; alone it was not measured, so it has no points, fit or gain."""
    old = new = before.value(axis)
    decision: Decision = "dropped"
    why = _why_not(finalists)
    if winner:
        new = winner.settings.value(axis)
        decision = "moved" if winner.offsets[axis] else "kept"
        why = f"{winner.label}, all axes together"
    return AxisFinding(
        axis=axis, before=old, after=new, points=(), fit=None, gain=None, p_value=None, decision=decision, why=why
    )

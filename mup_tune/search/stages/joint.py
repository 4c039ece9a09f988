"""The ``joint`` stage: several axes searched at once, and moved only where fresh seeds agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from mup_tune import stats
from mup_tune.findings import AxisFinding, Decision, State, Verified
from mup_tune.findings.joint_search import Candidate, JointSearch, Search
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search import swept_axis
from mup_tune.search.axes import Axes, acting, most_sensitive, moved, named
from mup_tune.search.sampling import Sampler, check_room, suggest
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.settings import AXES, Settings
from mup_tune.stats import Losses

FIRST_SEED = 2000  # ``confirm`` counts from 1000
LEAST_POPULATION = 4


class Joint(Stage):
    """Searches ±``radius`` log2 around the incumbent over the ``top`` most sensitive axes, or named ones.

    ``batch`` candidates a round, all on the same tuning seeds; a round sees all earlier ones (the first is
    random). The best of many noisy candidates looks better than it is, so the ``finalists`` best and the
    incumbent train on ``verify_seeds`` seeds that tuned nothing. The best of them there is taken if its
    paired gain's CI, Student's t on the differences' own SD with Bonferroni over the finalists, lies above 0;
    else the incumbent stays.
    """

    kind: Literal["joint"] = "joint"
    top: Annotated[int, Field(ge=1)] | None = None
    axes: Axes | None = None
    sampler: Sampler = "tpe"
    trials: Annotated[int, Field(ge=1)] = 24
    batch: Annotated[int, Field(ge=1)] = 8
    radius: Annotated[float, Field(ge=0.125, le=8)] = 1.0
    n_seeds: Annotated[int, Field(ge=1)] | None = None
    finalists: Annotated[int, Field(ge=1)] = 2
    verify_seeds: Annotated[int, Field(ge=2, le=100)] = 4

    @model_validator(mode="after")
    def _consistent(self) -> Joint:
        if (self.top is None) == (self.axes is None):
            raise ValueError("give either `top` (the most sensitive of the axes measured before) or `axes`")
        if self.sampler == "cma-es" and self.batch < LEAST_POPULATION:
            raise ValueError(f"batch = {self.batch} is not allowed: cma-es needs {LEAST_POPULATION} candidates a round")
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
        return swept_axis.fresh_seeds(context, FIRST_SEED, self.verify_seeds)

    @property
    def decides(self) -> tuple[int, int]:
        return self.verify_seeds, self.finalists

    def walk(self, asked: Asked, state: State) -> Conclusion:
        before = state.incumbent
        seeds = swept_axis.chosen_seeds(asked.context, self.n_seeds)
        axes = self._searched(asked, state)
        if not axes:
            return Conclusion(state, self.finding(before, before, JointSearch(search=None)))
        search = self._search(asked, before, axes, seeds)
        finalists, settings = self._verified(asked, before, search)
        result = JointSearch(
            search=search,
            finalists=tuple(finalists),
            trials=len(asked.trials),
            flops=sum(trial.flops for trial in asked.trials.values()),
        )
        after = settings[0].with_values({}, name=self.label) if result.taken else before
        judged = tuple(_judged(axis, before, after, result) for axis in axes)
        finding = self.finding(before, after, result.model_copy(update={"axes": judged}))
        return Conclusion(replace(state, incumbent=after), finding)

    def _searched(self, asked: Asked, state: State) -> tuple[str, ...]:
        """The axes, in the registry's order; none where nothing that earlier stages measured is curved.

        Raises:
            UserError: see :meth:`_chosen`, or the box of the axes holds fewer candidates than the search asks
            for.
        """
        axes = self._chosen(asked, state)
        if axes:
            check_room(axes, self.radius, -(-self.trials // self.batch) * self.batch)
        return axes

    def _chosen(self, asked: Asked, state: State) -> tuple[str, ...]:
        """The axes before the box is checked.

        Raises:
            UserError: earlier stages measure fewer than ``top`` axes, or none of ``axes`` acts at this Shape.
        """
        shape = asked.context.shape
        if self.top is not None:
            return most_sensitive(acting(AXES, shape), state.sensitivity, self.top, refuse=asked.rehearsed)
        return named(self.axes or [], ("elr", *MULTIPLIER_NAMES), shape)

    def _search(self, asked: Asked, before: Settings, axes: Sequence[str], seeds: tuple[int, ...]) -> Search:
        """The centre and all candidates, round by round; the centre trains with the first, random round."""
        centre: Losses = {}
        candidates: list[Candidate] = []
        history: list[tuple[dict[str, float], float | None]] = []
        # Optuna's import is not worth a rehearsal's wait: any candidates are as many trials.
        sampler = "random" if asked.rehearsed else self.sampler
        while len(candidates) < self.trials:
            round_ = 1 + len(candidates) // self.batch
            draws = int(np.random.SeedSequence([*seeds, round_]).generate_state(1)[0])
            # Whole rounds are drawn, whatever is left of the last one: so draws depend on history alone.
            offsets = suggest(sampler, axes, self.radius, history, self.batch, draws)
            offsets = offsets[: self.trials - len(candidates)]
            centre, *found = asked.losses([before, *(moved(before, each) for each in offsets)], seeds)
            candidates += [Candidate(round=round_, offsets=o, losses=f) for o, f in zip(offsets, found, strict=True)]
            told = [centre, *(each.losses for each in candidates)]
            points = [dict.fromkeys(axes, 0.0), *(each.offsets for each in candidates)]
            history = list(zip(points, stats.means(told), strict=True))
        return as_search(self.sampler, axes, self.radius, centre, candidates)

    def _verified(self, asked: Asked, before: Settings, search: Search) -> tuple[list[Verified], list[Settings]]:
        """The best candidates on the tuning seeds, beside the incumbent on fresh ones; best first."""
        means = stats.means([each.losses for each in search.candidates])
        ended = sorted((mean, index) for index, mean in enumerate(means) if mean is not None)
        chosen = [index for _, index in ended[: self.finalists]]
        if not chosen:
            return [], []
        settings = [moved(before, search.candidates[index].offsets) for index in chosen]
        incumbent, *trained = asked.losses([before, *settings], self.seeds(asked.context))
        ranked = []
        for index, at, losses in zip(chosen, settings, trained, strict=True):
            found = Verified.over_incumbent(f"candidate {index + 1}", losses, incumbent, len(chosen))
            gain = found.comparison.gain
            ranked.append((-gain.value if gain else inf, found, at))
        ranked.sort(key=lambda each: each[0])
        return [finalist for _, finalist, _ in ranked], [at for _, _, at in ranked]


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


def _judged(axis: str, before: Settings, after: Settings, result: JointSearch) -> AxisFinding:
    """What became of an axis; alone it was not measured, so it has no points, fit or gain."""
    old, new = before.value(axis), after.value(axis)
    decision: Decision = "dropped"
    if result.taken:
        decision = "moved" if new != old else "kept"
    return AxisFinding(axis=axis, before=old, after=new, decision=decision)

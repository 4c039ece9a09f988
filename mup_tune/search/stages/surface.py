"""The ``surface`` stage: all axes at once by a response surface, moved only where fresh seeds agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from mup_tune import stats
from mup_tune.findings import AxisFinding, Comparison, Decision, State
from mup_tune.findings.surface import Effect, ResponseSurface, Round, Share, Stop
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search import swept_axis
from mup_tune.search.axes import Axes, moved, named
from mup_tune.search.coordinates import coordinates
from mup_tune.search.fold_over import fold_over, on_grid
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.settings import Settings
from mup_tune.stats import Interval, Losses, Sigma
from mup_tune.stats.losses import Array
from mup_tune.stats.surface import Surface, fit_surface

EVERYTHING = ("elr", "ewd", *MULTIPLIER_NAMES)
FIRST_SEED = 4000  # of the verification; round k searches its line on seeds from 4000 + 100·k on
ROUND_SEEDS = 100
# log2 of an axis' unit, 1 elsewhere: ELR and EWD move all groups, a RoPE base does nothing in small steps.
UNITS = {"elr": 0.5, "ewd": 0.5, "rope_base": 8.0}
SHRUNK = 0.7  # of the radius, after a round that brought nothing


def _shares(given: tuple[float, ...]) -> tuple[float, ...]:
    if not given or len(set(given)) != len(given) or not all(0 < share <= 2 for share in given):
        raise ValueError(f"{list(given)} is not allowed: give at least one share above 0 and up to 2, each once")
    return tuple(sorted(given, reverse=True))


class SurfaceStage(Stage):
    """Moves all axes at once, in rounds, to the lowest point of a response surface.

    A round trains a fold-over design of 2·``pairs`` trials around its centre, ±``radius`` log2 in every axis
    at once, each trial on one tuning seed. A quadratic with shrunken coefficients is fitted to the trials of
    all rounds. Its lowest point within ``reach`` radii is the step that it predicts to gain most. The line
    search trains ``shares`` of that step beside the centre on ``line_seeds`` seeds that tuned nothing, and
    the next round's centre is the best of them; where none of them is better the radius shrinks. There is no
    further round where all of the predicted gain's interval lies below what ``verify_seeds`` seeds can show.

    The rounds only propose. The last centre then meets where the stage began on ``verify_seeds`` seeds that
    chose nothing, and is taken if the CI of the gain lies above 0: Student's t on the paired differences' own
    SD.
    """

    kind: Literal["surface"] = "surface"
    axes: Axes = "all"
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    pairs: Annotated[int, Field(ge=4, le=1000)] | None = None
    radius: Annotated[float, Field(ge=0.05, le=4)] = 0.5
    reach: Annotated[float, Field(ge=0.5, le=4)] = 1.5
    shares: Annotated[tuple[float, ...], AfterValidator(_shares)] = (1.0, 0.5)
    line_seeds: Annotated[int, Field(ge=2, le=ROUND_SEEDS)] = 4
    verify_seeds: Annotated[int, Field(ge=2, le=ROUND_SEEDS)] = 8
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @property
    def title(self) -> str:
        over = "ELR, EWD and all multipliers" if self.axes == "all" else ", ".join(self.axes)
        return f"Response surface over {over}, up to {self.rounds} rounds"

    @property
    def decides(self) -> tuple[int, int]:
        return self.verify_seeds, 1

    def walk(self, asked: Asked, state: State) -> Conclusion:
        begun = state.incumbent
        search = _Search(self, asked, begun, named(self.axes, EVERYTHING, asked.context.shape))
        stop = search.run()
        after = search.at(search.centre)
        moved = self._verified(asked, begun, after) if search.centre.any() else None
        surface = search.fitted()
        result = ResponseSurface(
            rounds=tuple(search.rounds),
            stop=stop,
            units={axis: unit for axis, unit in search.units.items() if unit != 1},
            effects=() if surface is None else search.effects(surface),
            moved=moved,
            detectable=None if surface is None else search.detectable(surface),
            next_gain=None if surface is None else surface.gain(search.step(surface)),
            round_trials=2 * search.pairs + (1 + len(self.shares)) * self.line_seeds,
            trials=len(asked.trials),
            flops=sum(trial.flops for trial in asked.trials.values()),
        )
        result = result.model_copy(update={"round_flops": result.flops / max(result.trials, 1) * result.round_trials})
        taken = after.with_values({}, name=self.label) if result.taken else begun
        judged = tuple(_judged(axis, begun, after, result) for axis in search.axes)
        # Shrunken estimates rank axes as they are, also where a single one's CI reaches 0.
        learned = {each.axis: each.curvature.value for each in result.effects}
        if asked.rehearsed:
            learned = dict.fromkeys(search.axes, 0.0)  # what is measured, whatever it will be
        state_after = replace(state, incumbent=taken, sensitivity={**state.sensitivity, **learned})
        sigma = None if surface is None else _sigma(surface)
        return Conclusion(state_after, self.finding(begun, taken, result.model_copy(update={"axes": judged}), sigma))

    def line(self, context: Context, number: int) -> tuple[int, ...]:
        """Seeds of a round's line search."""
        return swept_axis.fresh_seeds(context, FIRST_SEED + ROUND_SEEDS * number, self.line_seeds)

    def _verified(self, asked: Asked, begun: Settings, after: Settings) -> Comparison:
        seeds = swept_axis.fresh_seeds(asked.context, FIRST_SEED, self.verify_seeds)
        found, reference = asked.losses([after, begun], seeds)
        return _compared("the last centre", "where the stage began", found, reference)


@dataclass
class _Trained:
    """Every trial so far that ended, of designs and line searches: place in units, seed, loss."""

    places: list[tuple[float, ...]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, place: Array, losses: Losses) -> None:
        for seed, loss in losses.items():
            if loss is not None:
                self.places.append(tuple(map(float, place)))
                self.seeds.append(seed)
                self.losses.append(loss)


class _Search:
    """The rounds of one walk: a centre in units of the axes from where the stage began, and a radius."""

    def __init__(self, stage: SurfaceStage, asked: Asked, begun: Settings, axes: Sequence[str]) -> None:
        self.stage, self.asked, self.begun, self.axes = stage, asked, begun, tuple(axes)
        self.units = {axis: UNITS.get(axis, 1.0) for axis in axes}
        self.seeds = swept_axis.chosen_seeds(asked.context, stage.n_seeds)
        self.pairs = stage.pairs or max(len(axes), 4 * len(self.seeds))
        self.centre: Array = np.zeros(len(axes))
        self.radius = stage.radius
        self.coordinates_MK = coordinates(self.units, asked.context.shape)
        self.trained = _Trained()
        self.rounds: list[Round] = []

    def at(self, place: Array) -> Settings:
        offsets = {axis: unit * float(x) for (axis, unit), x in zip(self.units.items(), place, strict=True)}
        return moved(self.begun, offsets)

    def run(self) -> Stop:
        while len(self.rounds) < self.stage.rounds:
            stop = self._round(len(self.rounds) + 1)
            if stop is not None:
                return stop
        return "rounds"

    def _round(self, number: int) -> Stop | None:
        """A design, a fit and a line search; why there is none after it."""
        design = self._design(number)
        done = Round(
            number=number,
            radius=self.radius,
            centre=self._named(self.centre),
            trials=len(design),
            diverged=sum(stats.usable(losses) is None for losses in design),
        )
        surface = self.fitted()
        if surface is None and not self.asked.rehearsed:
            self.rounds.append(done)
            self.radius *= SHRUNK
            return "too many diverged" if number == self.stage.rounds else None
        step = self.step(surface)
        predicted = None if surface is None else surface.gain(step)
        done = done.model_copy(
            update={
                "noise": surface and surface.noise,
                "step": self._named(step),
                "predicted": predicted,
            }
        )
        if surface is not None and predicted is not None and predicted.high < self.detectable(surface):
            self.rounds.append(done)
            return "no gain predicted"
        shares = self._line(number, step)
        best = max(shares, key=lambda each: _value(each.comparison))
        better = _value(best.comparison) > 0 or self.asked.rehearsed  # a forecast counts the verification
        self.rounds.append(done.model_copy(update={"shares": shares, "taken": best.share if better else None}))
        if better:
            self.centre = self.centre + on_grid(best.share * step)
        else:
            self.radius *= SHRUNK
        return None

    def _design(self, number: int) -> list[Losses]:
        """The losses of a design around the centre, all of it asked for at once."""
        rows = fold_over(len(self.axes), self.pairs, self.radius, (*self.seeds, number))
        context = self.asked.context
        places = [self.centre + row for row in rows]
        # Rows 2i and 2i + 1 are a pair and share a seed.
        seeds = [self.seeds[index // 2 % len(self.seeds)] for index in range(len(places))]
        wanted = [context.trials(self.at(place), [seed]) for place, seed in zip(places, seeds, strict=True)]
        found: list[Losses] = [
            {row.trial.seed: row.loss if row.ok else None for row in rows} for rows in self.asked.rows(wanted)
        ]
        for place, losses in zip(places, found, strict=True):
            self.trained.add(place, losses)
        return found

    def _line(self, number: int, step: Array) -> tuple[Share, ...]:
        places = [self.centre, *(self.centre + on_grid(share * step) for share in self.stage.shares)]
        found = self.asked.losses([self.at(place) for place in places], self.stage.line(self.asked.context, number))
        for place, losses in zip(places, found, strict=True):
            self.trained.add(place, losses)
        names = [f"round {number}: {share:g} of the step" for share in self.stage.shares]
        return tuple(
            Share(share=share, comparison=_compared(name, f"round {number}: centre", losses, found[0]))
            for share, name, losses in zip(self.stage.shares, names, found[1:], strict=True)
        )

    def fitted(self) -> Surface | None:
        """The surface around the centre; None in a rehearsal, or where too few trials ended."""
        trained = self.trained
        if self.asked.rehearsed or len(trained.losses) < max(self.pairs, 2 * len(set(trained.seeds))):
            return None
        return _surface(
            tuple(trained.places),
            tuple(trained.seeds),
            tuple(trained.losses),
            tuple(self.centre),
            tuple(map(tuple, self.coordinates_MK)),
        )

    def step(self, surface: Surface | None) -> Array:
        """From the centre, in units; in a rehearsal any step is as many trials."""
        reach = self.stage.reach * self.radius
        return on_grid(np.full(len(self.axes), reach) if surface is None else surface.minimum(reach))

    def detectable(self, surface: Surface) -> float:
        """The smallest gain that the verification's seeds can show."""
        return stats.detectable(_sigma(surface), self.stage.verify_seeds)

    def effects(self, surface: Surface) -> tuple[Effect, ...]:
        rows = zip(self.units.items(), surface.slopes(), surface.curvatures(), strict=True)
        return tuple(
            Effect(axis=axis, slope=_over(slope, unit), curvature=_over(curvature, unit**2))
            for (axis, unit), slope, curvature in rows
        )

    def _named(self, place: Array) -> dict[str, float]:
        return dict(zip(self.axes, map(float, place), strict=True))


Rows = tuple[tuple[float, ...], ...]


@lru_cache(maxsize=64)  # a walk is replayed at every barrier, all its rounds from the first
def _surface(
    places: Rows, seeds: tuple[int, ...], losses: tuple[float, ...], centre: tuple[float, ...], coordinates: Rows
) -> Surface:
    return fit_surface(np.array(places), seeds, np.array(losses), np.array(centre), np.array(coordinates))


def _sigma(surface: Surface) -> Sigma:
    """σ_Δ of two trials of one seed."""
    return Sigma(2**0.5 * surface.noise, surface.dof)


def _over(interval: Interval, unit: float) -> Interval:
    return Interval(interval.value / unit, interval.low / unit, interval.high / unit)


def _compared(candidate: str, reference: str, losses: Losses, theirs: Losses) -> Comparison:
    return Comparison(
        candidate=candidate,
        reference=reference,
        candidate_losses=losses,
        reference_losses=theirs,
        gain=stats.paired_gain(losses, theirs),
    )


def _value(comparison: Comparison) -> float:
    """The gain measured; where a seed diverged there is none to be had."""
    return -np.inf if comparison.gain is None else comparison.gain.value


def _judged(axis: str, before: Settings, after: Settings, result: ResponseSurface) -> AxisFinding:
    """What became of an axis; it was measured with all others, so it has no points or fit of its own."""
    old, new = before.value(axis), after.value(axis)
    decision: Decision = "kept" if new == old else "moved" if result.taken else "dropped"
    return AxisFinding(axis=axis, before=old, after=new if result.taken else old, decision=decision)

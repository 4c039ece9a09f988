"""What the stage kinds share: one swept axis, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, pairwise
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator

from mup_tune import stats
from mup_tune.errors import UserError
from mup_tune.findings import AxisFinding, Decision, Point
from mup_tune.search.stage import Asked, Context
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.stats import NOTHING, Interval, Losses, Parabola, Sigma
from mup_tune.trial import Budget

MAX_OFFSET = 16.0
MIN_STEP = 0.01  # log2: a difference of 0.7 %, below which a curve has no slope


@dataclass
class SweptAxis:
    """One axis swept around ``centre`` on a log2 grid; ``losses`` by offset, filled as they become known.

    ``shape`` and ``budget`` are where it is trained, the plan's own if None.
    """

    axis: str
    centre: Settings
    losses: dict[float, Losses] = field(default_factory=dict)
    extended: int = 0
    shape: Shape | None = None
    budget: Budget | None = None

    def at(self, offset: float) -> Settings:
        return self.centre.scaled({self.axis: 2.0**offset})

    @property
    def offsets(self) -> list[float]:
        return sorted(self.losses)

    @property
    def ordered(self) -> list[Losses]:
        return [self.losses[offset] for offset in self.offsets]

    @property
    def best(self) -> float | None:
        """Offset of the lowest mean loss; None where every point diverged."""
        index = stats.argmin(stats.means(self.ordered))
        return None if index is None else self.offsets[index]

    @property
    def at_edge(self) -> bool:
        return self.best in (self.offsets[0], self.offsets[-1])

    def beyond(self) -> float:
        """The grid's next offset past the edge that is best; the low one where every point diverged."""
        best, offsets = self.best, self.offsets
        if best == offsets[-1]:
            return 2 * offsets[-1] - offsets[-2]
        return 2 * offsets[0] - offsets[1]

    @property
    def points(self) -> tuple[Point, ...]:
        value = self.centre.value(self.axis)
        return tuple(Point(offset=x, value=value * 2.0**x, losses=self.losses[x]) for x in self.offsets)

    def near(self) -> dict[float, dict[int, float]]:
        """Losses by offset near the minimum: cliffs and diverged points say nothing about the noise there."""
        ordered = self.ordered
        block = stats.near_minimum(stats.means(ordered))
        return {self.offsets[index]: stats.usable(ordered[index]) or {} for index in block}

    def fit(self, sigma: Sigma | None) -> Parabola | None:
        return stats.fit_parabola(self.offsets, self.ordered, sigma)

    @property
    def optimum(self) -> float:
        """The fitted optimum; the best point where nothing fits, and 0 where every point diverged."""
        fit = self.fit(noise([self]))
        return (self.best or 0.0) if fit is None else fit.optimum.value

    def gain(self, sigma: Sigma | None) -> Interval | None:
        """Gain of the best point over the centre, its p-value times the points it was picked from."""
        best = self.best
        if best is None:
            return None
        if best == 0:
            return NOTHING
        gain = stats.paired_gain(self.losses[best], self.losses[0.0], sigma)
        others = [losses for offset, losses in self.losses.items() if offset]
        return gain and gain.picked_from(sum(stats.usable(losses) is not None for losses in others))

    def leaving(self, gain: Interval | None) -> Decision:
        """What it is to leave the centre with that gain: shown, also where the centre diverges, or not."""
        shown = gain is not None and gain.significant
        return "moved" if shown or stats.usable(self.losses[0.0]) is None else "re-centred"

    def finding(self, after: Settings, decision: Decision, sigma: Sigma | None = None, **said: Any) -> AxisFinding:
        """What the axis tells; ``said`` are further fields of the finding."""
        points = self.points
        return AxisFinding(
            axis=self.axis,
            before=self.centre.value(self.axis),
            after=after.value(self.axis),
            points=points,
            fit=self.fit(sigma) if points else None,
            gain=self.gain(sigma) if points else None,
            decision=decision,
            extended=self.extended,
            **said,
        )


def train(asked: Asked, curves: Sequence[SweptAxis], wanted: Sequence[Sequence[float]], seeds: Iterable[int]) -> None:
    """Fill ``wanted`` offsets of every curve, all curves' trials asked for at once."""
    todo = [(curve, offset) for curve, offsets in zip(curves, wanted, strict=True) for offset in offsets]
    found = asked.losses(
        [curve.at(offset) for curve, offset in todo],
        seeds,
        shapes=[curve.shape for curve, _ in todo],
        around=[curve.centre for curve, _ in todo],
        budgets=[curve.budget for curve, _ in todo],
    )
    for (curve, offset), losses in zip(todo, found, strict=True):
        curve.losses[offset] = losses


def train_grid(
    asked: Asked,
    curves: Sequence[SweptAxis],
    offsets: Sequence[float],
    seeds: Sequence[int],
    extend: int,
    down: bool = True,
) -> None:
    """Fill every curve's grid; while its edge is best, extend each alone, at most ``extend`` times.

    ``down``: where every point diverged the grid goes down, as for any learning rate that is too high.
    """
    train(asked, curves, [offsets] * len(curves), seeds)
    while edge := [c for c in curves if c.extended < extend and (c.at_edge or (down and c.best is None))]:
        train(asked, edge, [[curve.beyond()] for curve in edge], seeds)
        for curve in edge:
            curve.extended += 1


def noise(curves: Sequence[SweptAxis]) -> Sigma | None:
    """σ_Δ pooled over the curves of one centre; from the scatter about parabolas where there is one seed."""
    points = {(curve.axis if offset else "centre", offset): v for curve in curves for offset, v in curve.near().items()}
    sigma = stats.sigma_delta(list(points.values()))
    if sigma is not None:
        return sigma
    lines = [(list(near), [fmean(losses.values()) for losses in near.values()]) for near in (c.near() for c in curves)]
    return stats.scatter_sigma(lines)


def chosen_seeds(context: Context, n_seeds: int | None) -> tuple[int, ...]:
    """The first ``n_seeds`` of the plan's tuning seeds, or all."""
    if n_seeds is not None and n_seeds > len(context.seeds):
        raise UserError(
            f"{n_seeds} is more than the plan's {len(context.seeds)} seeds", field="n_seeds", fix="Add to `seeds`"
        )
    return context.seeds[:n_seeds]


def fresh_seeds(context: Context, first: int, n: int) -> tuple[int, ...]:
    """``n`` seeds from ``first`` on that tuned nothing: the plan's own are left out."""
    return tuple(islice((seed for seed in count(first) if seed not in context.seeds), n))


def checked_grid(offsets: tuple[float, ...]) -> tuple[float, ...]:
    """A valid grid, ascending. Raises ValueError with the value and what is allowed."""
    if len(set(offsets)) != len(offsets):
        raise ValueError(f"{list(offsets)} holds an offset twice")
    if len(offsets) < 3 or 0 not in offsets or min(offsets) == 0 or max(offsets) == 0:
        raise ValueError(f"{list(offsets)} is not allowed: a grid has offsets below 0, 0 itself and offsets above 0")
    if max(abs(offset) for offset in offsets) > MAX_OFFSET:
        raise ValueError(f"{list(offsets)} is not allowed: offsets are exponents of 2, at most ±{MAX_OFFSET:g}")
    grid = sorted(float(offset) for offset in offsets)
    if min(high - low for low, high in pairwise(grid)) < MIN_STEP:
        raise ValueError(f"{list(offsets)} is not allowed: offsets lie at least {MIN_STEP:g} apart")
    return tuple(grid)


Grid = Annotated[tuple[float, ...], AfterValidator(checked_grid)]

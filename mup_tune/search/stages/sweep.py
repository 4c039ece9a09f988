"""What the stage kinds share: one swept axis, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from statistics import fmean

from mup_tune import stats
from mup_tune.errors import UserError
from mup_tune.findings import AxisFinding, Decision, Fit, Interval, Point
from mup_tune.search.stage import Asked, Context, Losses
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.stats import Estimate, Parabola, Sigma

MAX_OFFSET = 16.0


@dataclass
class Curve:
    """One axis swept around ``centre`` on a log2 grid; ``losses`` by offset, filled as they become known.

    ``shape`` is where it is trained, the proxy's Shape if None.
    """

    axis: str
    centre: Settings
    losses: dict[float, Losses] = field(default_factory=dict)
    extended: int = 0
    shape: Shape | None = None

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
        """The grid's next offset past the edge that the best point is at; the low one where every point diverged."""
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

    def gain(self, sigma: Sigma | None) -> Estimate | None:
        """Gain of the best point over the centre, its p-value times the number of points it was picked from."""
        best = self.best
        if best is None:
            return None
        if best == 0:
            return Estimate(0.0, 0.0, 0.0, 1.0)
        gain = stats.paired_gain(self.losses[best], self.losses[0.0], sigma)
        if gain is None or gain.p_value is None:
            return gain
        choices = sum(offset != 0 and stats.usable(losses) is not None for offset, losses in self.losses.items())
        return Estimate(gain.value, gain.low, gain.high, min(1.0, choices * gain.p_value))

    def finding(
        self, after: Settings, decision: Decision, why: str, sigma: Sigma | None, p_value: float | None
    ) -> AxisFinding:
        points = self.points
        return AxisFinding(
            axis=self.axis,
            before=self.centre.value(self.axis),
            after=after.value(self.axis),
            points=points,
            fit=as_fit(self.fit(sigma)) if points else None,
            gain=as_interval(self.gain(sigma)) if points else None,
            p_value=p_value,
            decision=decision,
            why=why,
        )


def train(asked: Asked, curves: Sequence[Curve], wanted: Sequence[Sequence[float]], seeds: Iterable[int]) -> None:
    """Fill ``wanted`` offsets of every curve, all curves' trials asked for at once."""
    todo = [(curve, offset) for curve, offsets in zip(curves, wanted, strict=True) for offset in offsets]
    found = asked.losses([curve.at(offset) for curve, offset in todo], seeds, [curve.shape for curve, _ in todo])
    for (curve, offset), losses in zip(todo, found, strict=True):
        curve.losses[offset] = losses


def train_grid(
    asked: Asked,
    curves: Sequence[Curve],
    offsets: Sequence[float],
    seeds: Sequence[int],
    extend: int,
    down: bool = True,
) -> None:
    """Fill every curve's grid; extend each alone by its own spacing, at most ``extend`` times, while its edge is best.

    ``down``: where every point diverged the grid goes down, as for any learning rate that is too high.
    """
    train(asked, curves, [offsets] * len(curves), seeds)
    while edge := [c for c in curves if c.extended < extend and (c.at_edge or (down and c.best is None))]:
        train(asked, edge, [[curve.beyond()] for curve in edge], seeds)
        for curve in edge:
            curve.extended += 1


def noise(curves: Sequence[Curve]) -> Sigma | None:
    """σ_Δ pooled over the curves of one centre; from the scatter about their parabolas where there is one seed."""
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
    return tuple(sorted(float(offset) for offset in offsets))


def as_interval(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else Interval(value=estimate.value, low=estimate.low, high=estimate.high)


def as_fit(parabola: Parabola | None) -> Fit | None:
    if parabola is None:
        return None
    optimum, curvature = as_interval(parabola.optimum), as_interval(parabola.curvature)
    assert optimum is not None
    assert curvature is not None
    return Fit(
        optimum=optimum,
        floor=parabola.floor,
        curvature=curvature,
        points_used=parabola.points_used,
        lack_of_fit=parabola.lack_of_fit,
        robust=parabola.robust,
    )


def sensitivity(fit: Fit | None) -> float:
    """Curvature in nats/token per (log2)²; 0 where its CI does not lie above 0, or nothing fits."""
    return fit.curvature.value if fit is not None and fit.curvature.low > 0 else 0.0


def spoken(gain: Estimate | Interval | None) -> str:
    """A gain with its CI, for people."""
    if gain is None:
        return "gain not known"
    return f"gain {gain.value:.4f} nats/token (95 % CI {gain.low:.4f} … {gain.high:.4f})"

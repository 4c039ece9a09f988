"""What a stage's model says of each axis alone, as lines over the trials' own losses."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import numpy as np

from mup_tune.findings import AxisFinding, Finding
from mup_tune.findings.global_axes import GlobalAxes, Plane
from mup_tune.findings.surface import ResponseSurface
from mup_tune.settings import Settings
from mup_tune.stats import Interval, mean

STEPS = 33  # points of a line
Ends = tuple[float, float]


@dataclass(frozen=True)
class Cut:
    """A model's loss along one axis: ``at`` in the axis' own unit, the losses in nats/token.

    ``low`` and ``high`` are the ends of its 95 % band, where it has one. ``optimum`` is where the model has
    its lowest point, with the ends of its 95 % CI. ``said`` names the model.
    """

    said: str
    at: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    optimum: tuple[float, float, float] | None = None


def cuts(finding: Finding) -> dict[str, Cut]:
    """By axis; only axes that a model was fitted to. Of several passes the last one counts."""
    result = finding.result
    if isinstance(result, ResponseSurface):
        return _of_surface(result, finding.before)
    if isinstance(result, GlobalAxes) and result.bowl is not None:
        return _of_plane(result.bowl, finding.before)
    return {axis.axis: cut for axis in finding.axes if (cut := _of_parabola(axis)) is not None}


def _of_parabola(axis: AxisFinding) -> Cut | None:
    """No line where the minimum is known but not its neighbourhood: local fits, or the edge of a grid."""
    fit = axis.fit
    if fit is None or not axis.points:
        return None
    optimum = _optimum(axis.before, fit.optimum)
    clamped = any(abs(fit.optimum.value - point.offset) < 1e-9 for point in axis.points)
    if fit.robust or fit.edge or clamped:
        return Cut("optimum with its 95 % CI", optimum=optimum)
    offsets = [point.offset for point in axis.points]
    grid = np.linspace(min(offsets), max(offsets), STEPS)
    losses = fit.floor + fit.curvature.value * (grid - fit.optimum.value) ** 2 / 2
    said = "fitted parabola, and its optimum with the 95 % CI"
    return Cut(said, _values(axis.before, grid), tuple(map(float, losses)), optimum=optimum)


def _of_plane(plane: Plane, before: Settings) -> dict[str, Cut]:
    """Through the bowl's lowest point, the other of the two axes held there."""
    bowl = plane.fit
    if bowl is None:
        return {}
    x, y = bowl.x.value, bowl.y.value
    found = {}
    for axis, optimum, offsets in (
        ("elr", bowl.x, [place.elr for place in plane.places]),
        ("ewd", bowl.y, [place.ewd for place in plane.places]),
    ):
        grid = np.linspace(min(offsets), max(offsets), STEPS)
        along = bowl.above_floor(grid, y) if axis == "elr" else bowl.above_floor(x, grid)
        losses = tuple(float(each) for each in np.asarray(bowl.floor + along))
        start = before.value(axis)
        said = "cut through the bowl's lowest point, and its optimum with the 95 % CI"
        found[axis] = Cut(said, _values(start, grid), losses, optimum=_optimum(start, optimum))
    return found


def _of_surface(result: ResponseSurface, before: Settings) -> dict[str, Cut]:
    """Through the last centre, at the mean loss that was measured there, over the designs' range.

    In a fold-over design slope and curvature err independently, so their half-widths add in squares.
    """
    level = _level_at_last_centre(result)
    if level is None:
        return {}
    found = {}
    for effect in result.effects:
        unit, centre = result.units.get(effect.axis, 1.0), result.moves.get(effect.axis, 0.0)
        low, high = _range(result, effect.axis)
        away = np.linspace(unit * low - centre, unit * high - centre, STEPS)
        loss = level + effect.slope.value * away + effect.curvature.value * away**2 / 2
        half = [hypot(_half(effect.slope) * d, _half(effect.curvature) * d * d / 2) for d in away]
        found[effect.axis] = Cut(
            "cut of the response surface through its last centre, with its 95 % band",
            _values(before.value(effect.axis), centre + away),
            tuple(map(float, loss)),
            tuple(map(float, loss - half)),
            tuple(map(float, loss + half)),
        )
    return found


def _level_at_last_centre(result: ResponseSurface) -> float | None:
    """The mean loss of the verification, or of the last line search where the centre never moved."""
    if result.moved is not None:
        return mean(result.moved.candidate_losses)
    searched = [each.shares[0].comparison for each in result.rounds if each.shares]
    return mean(searched[-1].reference_losses) if searched else None


def _range(result: ResponseSurface, axis: str) -> Ends:
    """The lowest and highest place that a design reached, in units of the axis."""
    places = [(each.centre.get(axis, 0.0), each.radius) for each in result.rounds]
    return min(centre - radius for centre, radius in places), max(centre + radius for centre, radius in places)


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def _values(start: float, offsets: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(float(start * 2.0**offset) for offset in offsets)


def _optimum(start: float, found: Interval) -> tuple[float, float, float]:
    return start * 2**found.value, start * 2**found.low, start * 2**found.high

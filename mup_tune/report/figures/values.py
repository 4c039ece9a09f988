"""The numbers that figures and tables show: means with errors, paired differences, limits of a scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mup_tune.findings import Point
from mup_tune.stats import Losses

OFF_SCALE = 12.0  # a mean this many times the typical distance from the best is off the scale


@dataclass(frozen=True)
class Mean:
    """Mean over seeds with its SE, nats/token; None where a seed diverged, no SE from one seed."""

    value: float | None
    se: float | None

    @classmethod
    def of(cls, losses: Iterable[float | None]) -> Mean:
        values = list(losses)
        ended = [loss for loss in values if loss is not None]
        if not ended or len(ended) < len(values):
            return cls(None, None)
        return cls(float(np.mean(ended)), standard_error(ended))


def standard_error(values: Sequence[float]) -> float | None:
    """None from one value."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def differences(points: Sequence[Point], base: Losses) -> list[dict[int, float | None]]:
    """Per point, loss − loss in ``base`` by seed; None where either diverged or is missing."""

    def less(loss: float | None, reference: float | None) -> float | None:
        return None if loss is None or reference is None else loss - reference

    return [{seed: less(loss, base.get(seed)) for seed, loss in point.losses.items()} for point in points]


def at_value(points: Sequence[Point], value: float) -> Point:
    return next(point for point in points if point.value == value)


def to_base(points: Sequence[Point], base: float) -> list[dict[int, float | None]]:
    """Per point, loss − loss at the RoPE base ``base`` by seed."""
    return differences(points, at_value(points, base).losses)


def ended(losses: Losses) -> dict[int, float]:
    """The seeds that did not diverge."""
    return {seed: loss for seed, loss in losses.items() if loss is not None}


def highest_shown(means: Sequence[float], times: float = OFF_SCALE) -> float:
    """The highest mean that leaves the neighbourhood of the lowest one readable."""
    low = min(means)
    typical = float(np.median([mean - low for mean in means if mean > low] or [1.0]))
    return max(mean for mean in means if mean - low <= times * typical)


def limits(means: Sequence[float], times: float = OFF_SCALE) -> tuple[float, float]:
    """y range in nats/token that keeps the lowest means readable; what lies far above them is outside."""
    return padded(min(means), highest_shown(means, times)) if means else (0.0, 1.0)


def padded(low: float, high: float, above: float = 0.12) -> tuple[float, float]:
    """The range with some room below, and ``above`` of it over the highest value."""
    pad = max(high - low, 1e-3)
    return low - 0.08 * pad, high + above * pad

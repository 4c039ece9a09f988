"""Losses by seed: what may be compared, means, and the lowest of several.

Trials of one seed share batches and init draws, so a loss is modelled as (point) + (seed) + (noise), and only
differences at equal seeds are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Losses = Mapping[int, float | None]  # nats/token by seed; None where the member diverged
Array = NDArray[np.float64]


def usable(losses: Losses) -> dict[int, float] | None:
    """The losses, or None where any seed diverged: a point that diverges at times is no point to train at."""
    finite = {seed: loss for seed, loss in losses.items() if loss is not None and np.isfinite(loss)}
    return finite if finite and len(finite) == len(losses) else None


def mean(losses: Losses) -> float | None:
    """Mean over the seeds in nats/token; None where a seed diverged, or where there is none."""
    ended = usable(losses)
    return None if ended is None else float(np.mean(list(ended.values())))


def means(points: Sequence[Losses]) -> list[float | None]:
    """Mean loss of every point over its seeds; None where it diverged."""
    return [mean(point) for point in points]


def argmin(values: Sequence[float | None]) -> int | None:
    """Index of the lowest value that is there."""
    there = [(value, index) for index, value in enumerate(values) if value is not None]
    return min(there)[1] if there else None


def common(points: Sequence[Mapping[int, float]]) -> list[int]:
    """The seeds that all points have, ascending."""
    return sorted(set.intersection(*(set(point) for point in points))) if points else []


def matrix(points: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> Array:
    """Losses as [points, seeds], in nats/token."""
    return np.array([[point[seed] for seed in seeds] for point in points], dtype=np.float64)

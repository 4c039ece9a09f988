"""Designs that move every axis in every trial, so that every trial informs every axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mup_tune.stats.losses import Array

STAYS = 0.2  # share of the entries that are 0: they tell a curvature from the level
RADII = (0.6, 1.0, 1.4)  # of a row, times the design's: they tell a curvature from what comes after it
PER_UNIT = 256  # entries are multiples of 1/256: the last bit of a float must not make another trial


def fold_over(axes: int, pairs: int, radius: float, seeds: Sequence[int]) -> Array:
    """A random three-level fold-over design [2·pairs, axes], in units of the axes; rows 2i and 2i + 1 are a
    pair.

    A row's entries are −1, 0 and +1 times its radius; its pair is its negative. A half-difference of a pair
    holds slopes and no curvature or interaction, a half-sum the other way round (fold-over: Box & Wilson,
    J. R. Statist. Soc. B 13:1, 1951). Equal ``seeds`` draw equal designs.
    """
    rng = np.random.default_rng(seeds)
    signs = rng.choice([-1.0, 0.0, 1.0], size=(pairs, axes), p=[(1 - STAYS) / 2, STAYS, (1 - STAYS) / 2])
    rows = on_grid(signs * rng.choice(RADII, size=(pairs, 1)) * radius)
    return np.stack([rows, -rows], axis=1).reshape(2 * pairs, axes)


def on_grid(offsets: Array) -> Array:
    return np.asarray(np.round(offsets * PER_UNIT) / PER_UNIT)

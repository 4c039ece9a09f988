"""A gain said in tokens: how many times the tokens a reference needs for the candidate's loss.

The reference's mean loss over u = ln(tokens/T) is taken for a quadratic through its horizons, or a line where
that would not fall all the way. Over a factor of 2 in tokens a power law is one or the other to well below
any noise. The factor is e^u where it meets the candidate's mean loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict
from scipy.special import ndtri, stdtrit

from mup_tune.stats.losses import Array, Losses, common, matrix, usable
from mup_tune.stats.noise import UPPER, Interval

RESAMPLES = 2000
LEAST = 0.5  # factors below it are not told from it


@dataclass(frozen=True)
class TokensSaved:
    """``factor``: times the tokens that the reference needs for the same loss, with its 95 % CI.

    ``beyond``: the candidate's loss lies below the reference's at its longest horizon, so that the factor is
    at least that. ``level``, ``slope`` and ``bend``: of the reference's loss, level + slope·u + bend·u² in
    nats/token with u = ln(tokens/T).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    factor: Interval
    beyond: bool
    level: float
    slope: float
    bend: float

    def loss(self, factor: float) -> float:
        """The reference's at a horizon of ``factor``·T."""
        u = log(factor)
        return self.level + self.slope * u + self.bend * u**2


def tokens_saved(candidate: Losses, reference: Sequence[Losses], factors: Sequence[float]) -> TokensSaved | None:
    """The factor in tokens, from losses over the same seeds.

    The CI comes from 2000 resamples over whole seeds: normal multipliers on the seeds' deviations, widened by
    t/z at n − 1 degrees of freedom, deterministic.

    Args:
        candidate: at T tokens. reference: at each of ``factors`` · T, the first of which is 1, ascending.

    Returns:
        None where a seed diverged, below 2 common seeds, or where the reference does not gain from tokens.
    """
    rows = [usable(each) for each in (candidate, *reference)]
    there = [row for row in rows if row is not None]
    if len(there) < len(rows) or len(factors) < 3:
        return None
    seeds = common(there)
    if len(seeds) < 2:
        return None
    loss_RS = matrix(there, seeds)
    n, mean_R = len(seeds), loss_RS.mean(axis=1)
    wider = float(stdtrit(n - 1, UPPER) / ndtri(UPPER))
    draws_SD = np.random.default_rng(0).standard_normal((n, RESAMPLES))
    drawn_RD = mean_R[:, None] + wider * (loss_RS - mean_R[:, None]) @ draws_SD / np.sqrt(n * (n - 1))
    u_H = np.log(np.asarray(factors))
    curve_3D = _curves(u_H, np.column_stack([mean_R[1:], drawn_RD[1:]]))
    if curve_3D[1, 0] >= 0:
        return None
    u_D = _met(curve_3D, np.concatenate([mean_R[:1], drawn_RD[0]]), float(u_H[-1]))
    low, high = np.exp(np.quantile(u_D[1:], (1 - UPPER, UPPER)))
    value = exp(u_D[0])
    level, slope, bend = (float(each) for each in curve_3D[:, 0])
    return TokensSaved(Interval(value, min(value, low), max(value, high)), bool(u_D[0] >= u_H[-1]), level, slope, bend)


def _curves(u_H: Array, loss_HD: Array) -> Array:
    """Level, slope and bend [3, D] of every column: a parabola that falls over all of ``u_H``, or a line."""
    curved_3D = np.polynomial.polynomial.polyfit(u_H, loss_HD, 2)
    straight_2D = np.polynomial.polynomial.polyfit(u_H, loss_HD, 1)
    falls_D = (curved_3D[1] < 0) & (curved_3D[1] + 2 * curved_3D[2] * u_H[-1] < 0)
    return np.where(falls_D, curved_3D, np.vstack([straight_2D, np.zeros_like(straight_2D[:1])]))


def _met(curve_3D: Array, loss_D: Array, longest: float) -> Array:
    """u where each curve has the loss asked for; by its slope at 0 below that, no further than ``longest``.

    A resample whose curve does not fall tells nothing: it counts as the longest or the least.
    """
    level_D, slope_D, bend_D = curve_3D
    above_D = level_D - loss_D  # what the candidate gains at T
    falling_D = np.where(slope_D < 0, slope_D, -np.finfo(float).eps)
    # The root of bend·u² + slope·u + above = 0 that is above/−slope for a line, without cancellation.
    root_D = np.sqrt(np.maximum(falling_D**2 - 4 * bend_D * above_D, 0.0))
    inside_D = 2 * above_D / (root_D - falling_D)
    reached_D = above_D < -(slope_D * longest + bend_D * longest**2)
    u_D = np.where(above_D > 0, np.where(reached_D, inside_D, longest), above_D / -falling_D)
    return np.asarray(np.clip(u_D, log(LEAST), longest))

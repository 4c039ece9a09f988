"""What fits of a parabola and of a bowl share: which points count, how much, and how sure the result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from scipy.special import fdtrc, ndtri, stdtrit

from mup_tune.stats.losses import Array, common, matrix
from mup_tune.stats.noise import UPPER, Sigma, sigma_delta

TINY = 1e-18  # nats²: below it nothing is noise
RESAMPLES = 2000
TAILS = (1 - UPPER, UPPER)
FAR = 10.0  # a point this many times the median excess above the minimum is a cliff, no part of a parabola
MISFIT = 0.3  # what a quadratic is trusted to miss of a point's excess over the minimum
MIN_R2 = 0.5
# A quadratic that misses its points at this level is not trusted. benchmarks/landscapes.py chose the level
# and the margins of the local fits. At 0.05 two noisy seeds leave so many skewed bowls to a parabola that its
# CI covers 89 %.
MISFIT_LEVEL = 0.1


def cliff(values: Sequence[float | None], best: int) -> float:
    """The loss above which a point is a cliff: 10 times the median excess over the minimum.

    An even grid on a parabola stays below, at 4 to 9 times. Told from 4 points on, else infinite.
    """
    floor = values[best]
    assert floor is not None
    excess = sorted(value - floor for index, value in enumerate(values) if value is not None and index != best)
    return floor + FAR * excess[(len(excess) - 1) // 2] if len(excess) >= 3 else float("inf")


def weights(y_K: Array, se: float | None) -> Array:
    """1/(SE² + (0.3 · excess over the minimum)²) of each point."""
    excess_K = y_K - y_K.min()
    if not se:
        se = 0.1 * float(np.median(excess_K))  # nothing tells the noise: the best point must still not rule alone
    variance_K = se**2 + (MISFIT * excess_K) ** 2
    return np.asarray(1 / np.maximum(variance_K, TINY))


def solver(design_KP: Array, weight_K: Array) -> Array:
    """What takes the points' losses [K] to the weighted least-squares coefficients [P]."""
    return np.asarray(np.linalg.pinv(design_KP * np.sqrt(weight_K)[:, None]) * np.sqrt(weight_K))


def explained(y_K: Array, rest_K: Array, weight_K: Array) -> bool:
    """Whether a fit explains at least half of the weighted variance."""
    spread_K = y_K - np.average(y_K, weights=weight_K)
    return bool((weight_K * rest_K**2).sum() <= (1 - MIN_R2) * (weight_K * spread_K**2).sum())


def misfit(design_KP: Array, points: Sequence[Mapping[int, float]], sigma: Sigma | None) -> tuple[float, float] | None:
    """F and its p-value: a model misses the points' means by more than the seeds' noise explains.

    F = n·Σ rest²/(K − P) / (σ_Δ²/2) with K − P and σ_Δ's degrees of freedom, ``rest`` about the unweighted
    fit of the K means over n seeds (Fisher; Draper & Smith, Applied Regression Analysis, 3rd ed., §2.1). What
    a seed adds to all points alike is taken up by the model's constant and by σ_Δ (:func:`sigma_delta`), so
    it is no error. None without replicates: no more points than coefficients, or below 2 seeds.
    """
    seeds, dof = common(points), len(points) - design_KP.shape[1]
    sigma = sigma or sigma_delta(points)
    if dof < 1 or len(seeds) < 2 or sigma is None:
        return None
    y_K = matrix(points, seeds).mean(axis=1)
    rest_K = y_K - design_KP @ np.linalg.lstsq(design_KP, y_K)[0]
    f = len(seeds) * float((rest_K**2).sum()) / dof / max(sigma.value**2 / 2, TINY)
    return f, float(fdtrc(dof, sigma.dof, f))


def resampled_means(loss_KS: Array) -> Array:
    """Means over the seeds [K, 2000] from resampling whole seeds; deterministic.

    Normal multipliers on the seeds' deviations, widened by t/z at n − 1 dof, so that 3 seeds are covered too.
    """
    seeds = loss_KS.shape[1]
    mean_K1 = loss_KS.mean(axis=1, keepdims=True)
    wider = float(stdtrit(seeds - 1, UPPER) / ndtri(UPPER))
    draws_SN = np.random.default_rng(0).standard_normal((seeds, RESAMPLES))
    return np.asarray(mean_K1 + wider * (loss_KS - mean_K1) @ draws_SN / sqrt(seeds * (seeds - 1)))


def reach(first: float, last: float) -> tuple[float, float]:
    """How far a CI may leave the fitted points: by their span, on either side."""
    return first - (last - first), last + (last - first)

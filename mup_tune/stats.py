"""Fits and intervals for few seeds: paired gains, σ_Δ, log-parabolas, Holm.

Losses are nats/token per seed. Trials of one seed share batches and init draws, so a loss is modelled as
(point) + (seed) + (noise), and only differences at equal seeds are compared. All intervals are two-sided 95 % CIs of
the seed noise alone: what a parabola misses about a landscape is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

Losses = Mapping[int, float | None]  # nats/token by seed; None where the member diverged
Array = NDArray[np.float64]

LEVEL = 0.95
UPPER = 0.5 + LEVEL / 2
RESAMPLES = 2000
FAR = 10.0  # a point this many times the median excess above the minimum is a cliff, no part of a parabola
MISFIT = 0.3  # what a parabola is trusted to miss of a point's excess over the minimum
MIN_R2 = 0.5


@dataclass(frozen=True)
class Sigma:
    """σ_Δ in nats/token, the seed-to-seed SD of a paired difference of two trials, and its degrees of freedom."""

    value: float
    dof: float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % CI; ``p_value`` is two-sided against 0, where that is asked."""

    value: float
    low: float
    high: float
    p_value: float | None = None


@dataclass(frozen=True)
class Parabola:
    """loss ≈ floor + ½·curvature·(offset − optimum)² around the best point; offsets in log2.

    ``optimum.value`` never leaves the points it was fitted to, its CI may. ``edge``: the best point is the first or
    last one trained, so the true optimum may lie beyond.
    """

    optimum: Estimate
    floor: float
    curvature: Estimate
    points_used: int
    edge: bool


def usable(losses: Losses) -> dict[int, float] | None:
    """The losses, or None where any seed diverged: a point that diverges at times is no point to train at."""
    finite = {seed: loss for seed, loss in losses.items() if loss is not None and np.isfinite(loss)}
    return finite if finite and len(finite) == len(losses) else None


def sigma_delta(points: Sequence[Mapping[int, float]]) -> Sigma | None:
    """σ_Δ = √2 · SD of what is left after every point's and every seed's mean is taken out; None below 2 × 2.

    Of K points (the centre is one) and n seeds, (K − 1)(n − 1) degrees of freedom remain. Differences from the centre
    alone would all carry the centre's own noise, and their number would promise more than 4(n − 1) are worth.
    """
    seeds = _common(points)
    if len(points) < 2 or len(seeds) < 2:
        return None
    rest_KS = _matrix(points, seeds)
    rest_KS = rest_KS - rest_KS.mean(axis=0) - rest_KS.mean(axis=1, keepdims=True) + rest_KS.mean()
    dof = (len(points) - 1) * (len(seeds) - 1)
    return Sigma(sqrt(2 * float((rest_KS**2).sum()) / dof), dof)


def scatter_sigma(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Sigma | None:
    """σ_Δ where there is one seed only: √2 · the scatter about one parabola per curve (offsets, losses).

    What the parabola misses counts as noise, which errs on the careful side. None where no curve has 4 points.
    """
    squares, dof = 0.0, 0
    for offsets, losses in curves:
        if len(offsets) > 3:
            rest = np.asarray(losses) - np.polyval(np.polyfit(offsets, losses, 2), offsets)
            squares, dof = squares + float((rest**2).sum()), dof + len(offsets) - 3
    return Sigma(sqrt(2 * squares / dof), dof) if dof else None


def paired_gain(candidate: Losses, reference: Losses, sigma: Sigma | None = None) -> Estimate | None:
    """Mean of loss(reference) − loss(candidate) over common seeds, with a t CI: positive is better.

    With ``sigma`` the SE is σ_Δ/√n at its dof (needed for one seed), without it the differences' own SD/√n.
    None without a common seed, where either diverged, or where nothing tells the noise.
    """
    better, worse = usable(candidate), usable(reference)
    if better is None or worse is None:
        return None
    seeds = _common([better, worse])
    if not seeds or (sigma is None and len(seeds) < 2):
        return None
    differences = np.array([worse[seed] - better[seed] for seed in seeds])
    if sigma is None:
        sigma = Sigma(float(differences.std(ddof=1)), len(seeds) - 1)
    return _t_estimate(float(differences.mean()), sigma.value / sqrt(len(seeds)), sigma.dof)


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Least-squares slope of y on x with Student's t CI on n − 2 degrees of freedom; None below three points.

    Curvature counts as noise here: a line that bends has a wide CI.
    """
    x_n, y_n = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    spread = float(((x_n - x_n.mean()) ** 2).sum()) if len(x_n) else 0.0
    if len(x_n) < 3 or spread == 0 or not np.isfinite(y_n).all():
        return None
    value = float(((x_n - x_n.mean()) * y_n).sum()) / spread
    rest = y_n - y_n.mean() - value * (x_n - x_n.mean())
    dof = len(x_n) - 2
    return _t_estimate(value, sqrt(float((rest**2).sum()) / dof / spread), dof)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; valid under any dependence."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def means(points: Sequence[Losses]) -> list[float | None]:
    """Mean loss of every point over its seeds; None where it diverged."""
    kept = [usable(point) for point in points]
    return [None if point is None else float(np.mean(list(point.values()))) for point in kept]


def argmin(values: Sequence[float | None]) -> int | None:
    """Index of the lowest value that is there."""
    there = [(value, index) for index, value in enumerate(values) if value is not None]
    return min(there)[1] if there else None


def near_minimum(values: Sequence[float | None]) -> list[int]:
    """Indices of the points around the lowest one that a parabola may be fitted to, in order.

    From the lowest point outwards up to, and without, the first one that diverged or is a cliff: its excess over the
    minimum is more than 10 times the median excess of all points (an even grid on a parabola stays below, at 4 to 9
    times; told from 4 points on).
    """
    best = argmin(values)
    if best is None:
        return []
    floor = values[best]
    assert floor is not None
    excess = sorted(value - floor for index, value in enumerate(values) if value is not None and index != best)
    limit = FAR * excess[(len(excess) - 1) // 2] if len(excess) >= 3 else float("inf")

    def inside(index: int) -> bool:
        value = values[index] if 0 <= index < len(values) else None
        return value is not None and value - floor <= limit

    first = last = best
    while inside(first - 1):
        first -= 1
    while inside(last + 1):
        last += 1
    return list(range(first, last + 1))


def fit_parabola(offsets: Sequence[float], losses: Sequence[Losses], sigma: Sigma | None = None) -> Parabola | None:
    """Weighted least-squares parabola through the seed means near the minimum (see :func:`near_minimum`).

    Weights are 1/(SE² + (0.3 · excess over the minimum)²): all points count alike where noise rules, the close ones
    most where the landscape's own asymmetry does. The optimum's CI comes from 2000 resamples over whole seeds (≥ 3
    seeds; normal multipliers on the seeds' deviations, widened by t/z at n − 1 dof, so that 3 seeds are covered too),
    else from the delta method with σ_Δ, else from the scatter about the fit, else it is the fitted points' span.

    Args:
        offsets: log2 offsets, ascending. losses: per offset, over the same seeds. sigma: σ_Δ of the stage.

    Returns:
        None where the best point is the better answer: fewer than 3 points, no positive curvature, an optimum outside
        the points though the best one is inside them, or less than half of the (weighted) variance explained.
    """
    values = means(losses)
    block = near_minimum(values)
    if len(block) < 3:
        return None
    x_K = np.array([offsets[index] for index in block])
    rows = [usable(losses[index]) or {} for index in block]
    loss_KS = _matrix(rows, _common(rows))
    y_K, seeds = loss_KS.mean(axis=1), loss_KS.shape[1]
    best = int(y_K.argmin())
    sigma = sigma or sigma_delta(rows)
    weight_K = _weights(y_K, None if sigma is None else sigma.value / sqrt(2 * seeds))
    design_K3 = np.stack([np.ones_like(x_K), x_K - x_K[best], (x_K - x_K[best]) ** 2 / 2], axis=1)
    solve_3K = np.linalg.pinv(design_K3 * np.sqrt(weight_K)[:, None]) * np.sqrt(weight_K)
    level, slope, curvature = (float(each) for each in solve_3K @ y_K)
    rest_K = y_K - design_K3 @ (level, slope, curvature)
    spread_K = y_K - np.average(y_K, weights=weight_K)
    if curvature <= 0 or (weight_K * rest_K**2).sum() > (1 - MIN_R2) * (weight_K * spread_K**2).sum():
        return None
    step, first, last = -slope / curvature, float(x_K[0] - x_K[best]), float(x_K[-1] - x_K[best])
    if (step < first and best > 0) or (step > last and best < len(block) - 1):
        return None
    if sigma is None and len(block) > 3:
        sigma = Sigma(sqrt(2 * float((rest_K**2).sum()) / (len(block) - 3)), len(block) - 3)
    if seeds >= 3:
        step_ci, curvature_ci = _resampled(loss_KS, solve_3K, first, last)
    elif sigma is not None:
        step_ci, curvature_ci = _delta(slope, curvature, solve_3K, sigma, seeds, first, last)
    else:
        step_ci, curvature_ci = (first, last), (curvature, curvature)
    step, origin = min(max(step, first), last), float(x_K[best])
    at = min(max(origin + step, float(x_K[0])), float(x_K[-1]))
    return Parabola(
        optimum=Estimate(at, min(at, origin + step_ci[0]), max(at, origin + step_ci[1])),
        floor=level + slope * step + curvature * step**2 / 2,
        curvature=Estimate(curvature, min(curvature, curvature_ci[0]), max(curvature, curvature_ci[1])),
        points_used=len(block),
        edge=block[best] in (0, len(offsets) - 1),
    )


def _weights(y_K: Array, se: float | None) -> Array:
    excess_K = y_K - y_K.min()
    if not se:
        se = 0.1 * float(np.median(excess_K))  # nothing tells the noise: the best point must still not rule alone
    variance_K = se**2 + (MISFIT * excess_K) ** 2
    return np.asarray(1 / np.maximum(variance_K, 1e-18))


Bounds = tuple[float, float]


def _resampled(loss_KS: Array, solve_3K: Array, first: float, last: float) -> tuple[Bounds, Bounds]:
    """CIs of optimum and curvature from resampling whole seeds; deterministic."""
    seeds = loss_KS.shape[1]
    rest_KS = loss_KS - loss_KS.mean(axis=1, keepdims=True)
    wider = float(stdtrit(seeds - 1, UPPER) / ndtri(UPPER))
    draws_SN = np.random.default_rng(0).standard_normal((seeds, RESAMPLES))
    y_KN = loss_KS.mean(axis=1, keepdims=True) + wider * rest_KS @ draws_SN / sqrt(seeds * (seeds - 1))
    slope_N, curvature_N = (solve_3K @ y_KN)[1:]
    low, high = _reach(first, last)
    convex_N = curvature_N > 0
    step_N = np.where(convex_N, -slope_N / np.where(convex_N, curvature_N, 1.0), np.where(slope_N > 0, low, high))
    tails = (1 - UPPER, UPPER)
    step_low, step_high = np.quantile(np.clip(step_N, low, high), tails)
    curvature_low, curvature_high = np.quantile(curvature_N, tails)
    return (float(step_low), float(step_high)), (float(curvature_low), float(curvature_high))


def _delta(
    slope: float, curvature: float, solve_3K: Array, sigma: Sigma, seeds: int, first: float, last: float
) -> tuple[Bounds, Bounds]:
    """CIs by the delta method; the optimum is anywhere in reach where the curvature may be 0 (Fieller's condition)."""
    covariance = solve_3K @ solve_3K.T * sigma.value**2 / (2 * seeds)
    t = float(stdtrit(sigma.dof, UPPER))
    half = t * sqrt(covariance[2, 2])
    low, high = _reach(first, last)
    bounds = (curvature - half, curvature + half)
    if bounds[0] <= 0:
        return (low, high), bounds
    gradient = np.array([0.0, -1 / curvature, slope / curvature**2])
    width, step = t * sqrt(float(gradient @ covariance @ gradient)), -slope / curvature
    return (min(max(step - width, low), high), min(max(step + width, low), high)), bounds


def _reach(first: float, last: float) -> Bounds:
    """How far a CI may leave the fitted points: by their span, on either side."""
    return first - (last - first), last + (last - first)


def _t_estimate(value: float, se: float, dof: float) -> Estimate:
    half = float(stdtrit(dof, UPPER)) * se
    p_value = 2 * float(stdtr(dof, -abs(value) / se)) if se > 0 else float(value == 0)
    return Estimate(value, value - half, value + half, p_value)


def _common(points: Sequence[Mapping[int, float]]) -> list[int]:
    return sorted(set.intersection(*(set(point) for point in points))) if points else []


def _matrix(points: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> Array:
    return np.array([[point[seed] for seed in seeds] for point in points], dtype=np.float64)

"""Fits and intervals for few seeds: paired gains, σ_Δ, log-parabolas with a test of their fit, Holm.

Losses are nats/token per seed. Trials of one seed share batches and init draws, so a loss is modelled as
(point) + (seed) + (noise), and only differences at equal seeds are compared. All intervals are two-sided 95 %
CIs of the seed noise; where a parabola is seen to miss the landscape, what local fits disagree about is in
them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval
from numpy.typing import NDArray
from scipy.special import fdtrc, ndtri, stdtr, stdtrit

Losses = Mapping[int, float | None]  # nats/token by seed; None where the member diverged
Array = NDArray[np.float64]
Bounds = tuple[float, float]

TINY = 1e-18  # nats²: below it nothing is noise
LEVEL = 0.95
UPPER = 0.5 + LEVEL / 2
RESAMPLES = 2000
FAR = 10.0  # a point this many times the median excess above the minimum is a cliff, no part of a parabola
MISFIT = 0.3  # what a parabola is trusted to miss of a point's excess over the minimum
MIN_R2 = 0.5
# A parabola that misses its points at this level gives way to local fits. benchmarks/landscapes.py chose the
# level and the margins: at 0.05 two noisy seeds leave so many skewed bowls to a parabola that its CI covers
# 89 %.
MISFIT_LEVEL = 0.1
LOCAL_DEGREES = (2, 3, 4)
LOCAL_MARGIN, CURVATURE_MARGIN = 0.15, 0.25  # added to the CIs: of the grid's spacing at the minimum, of the curvature
LOCAL_RESAMPLES, LOCAL_CELLS = 500, 40


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

    ``optimum.value`` never leaves the points it was fitted to, its CI may. ``edge``: the best point is the
    first or last one trained, so the true optimum may lie beyond. ``lack_of_fit``: p-value of
    :func:`lack_of_fit`. ``robust``: it was below 0.1 and the numbers are those of local fits; ``curvature``
    is then that of the bowl's bottom, the mean over about one step of the grid on either side.
    """

    optimum: Estimate
    floor: float
    curvature: Estimate
    points_used: int
    edge: bool
    lack_of_fit: float | None = None
    robust: bool = False


def usable(losses: Losses) -> dict[int, float] | None:
    """The losses, or None where any seed diverged: a point that diverges at times is no point to train at."""
    finite = {seed: loss for seed, loss in losses.items() if loss is not None and np.isfinite(loss)}
    return finite if finite and len(finite) == len(losses) else None


def sigma_delta(points: Sequence[Mapping[int, float]]) -> Sigma | None:
    """σ_Δ = √2 · SD of what is left after every point's and every seed's mean is taken out; None below 2 × 2.

    Of K points (the centre is one) and n seeds, (K − 1)(n − 1) degrees of freedom remain. Differences from
    the centre alone would all carry the centre's own noise, and their number would promise more than 4(n − 1)
    are worth.
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

    What the parabola misses counts as noise, which errs on the careful side. None where no curve has 4
    points.
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

    From the lowest point outwards up to, and without, the first one that diverged or is a cliff: its excess
    over the minimum is more than 10 times the median excess of all points (an even grid on a parabola stays
    below, at 4 to 9 times; told from 4 points on).
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


def lack_of_fit(x: Sequence[float], points: Sequence[Mapping[int, float]], sigma: Sigma | None = None) -> float | None:
    """p-value of the F test that a parabola misses the points' means by more than the seeds' noise explains.

    F = n·Σ rest²/(K − 3) / (σ_Δ²/2) with K − 3 and σ_Δ's degrees of freedom, ``rest`` about the unweighted
    parabola of the K means over n seeds (Fisher; Draper & Smith, Applied Regression Analysis, 3rd ed., §2.1).
    What a seed adds to all points alike is taken up by the parabola's constant and by σ_Δ
    (:func:`sigma_delta`), so it is no error. None without replicates: below 4 points or 2 seeds.
    """
    seeds = _common(points)
    sigma = sigma or sigma_delta(points)
    if len(points) < 4 or len(seeds) < 2 or sigma is None:
        return None
    y_K, dof = _matrix(points, seeds).mean(axis=1), len(points) - 3
    rest_K = y_K - np.polyval(np.polyfit(np.asarray(x), y_K, 2), x)
    pure = max(sigma.value**2 / 2, TINY)
    return float(fdtrc(dof, sigma.dof, len(seeds) * float((rest_K**2).sum()) / dof / pure))


def fit_parabola(offsets: Sequence[float], losses: Sequence[Losses], sigma: Sigma | None = None) -> Parabola | None:
    """Weighted least-squares parabola through the seed means near the minimum (see :func:`near_minimum`).

    Weights are 1/(SE² + (0.3 · excess over the minimum)²): all points count alike where noise rules, the
    close ones most where the landscape's own asymmetry does. The optimum's CI comes from 2000 resamples over
    whole seeds (≥ 3 seeds; normal multipliers on the seeds' deviations, widened by t/z at n − 1 dof, so that
    3 seeds are covered too), else from the delta method with σ_Δ, else from the scatter about the fit, else
    it is the fitted points' span. Where :func:`lack_of_fit` is below 0.1, optimum and curvature are those of
    local fits (:func:`_local`). An optimum at the last point before a cliff may lie anywhere up to the
    cliff's point, and its CI says so.

    Args:
        offsets: log2 offsets, ascending. losses: per offset, over the same seeds. sigma: σ_Δ of the stage.

    Returns:
        None where the best point is the better answer: fewer than 3 points, no positive curvature, an optimum
        outside the points though the best one is inside them, or less than half of the (weighted) variance
        explained.
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
    p_value = lack_of_fit(list(x_K), rows, sigma)
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
    edge, beyond = block[best] in (0, len(offsets) - 1), _beyond(offsets, block)
    if p_value is not None and p_value < MISFIT_LEVEL and sigma is not None:
        optimum, floor, bend = _local(x_K, y_K, weight_K, sigma, seeds, beyond)
        return Parabola(optimum, floor, bend, len(block), edge, p_value, robust=True)
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
    low, high = origin + step_ci[0], origin + step_ci[1]
    if block[0] > 0 and at == x_K[0]:
        low = min(low, beyond[0])
    if block[-1] < len(offsets) - 1 and at == x_K[-1]:
        high = max(high, beyond[1])
    return Parabola(
        optimum=Estimate(at, min(at, low), max(at, high)),
        floor=level + slope * step + curvature * step**2 / 2,
        curvature=Estimate(curvature, min(curvature, curvature_ci[0]), max(curvature, curvature_ci[1])),
        points_used=len(block),
        edge=edge,
        lack_of_fit=p_value,
    )


def _local(
    x_K: Array, y_K: Array, weight_K: Array, sigma: Sigma, seeds: int, beyond: Bounds
) -> tuple[Estimate, float, Estimate]:
    """(optimum, floor, curvature) where no parabola holds: from all that near fits say, each with its noise.

    The fits are the polynomials of degree 2, 3 and 4 through every run of consecutive points that holds the
    best point and its two neighbours, and the weighted parabola. Each has its minimum between the neighbours.
    Values are the medians over the fits; a CI spans the fits' own CIs (500 draws of the means' noise, widened
    by t/z) and a margin: 15 % of the grid's spacing there, 25 % of the curvature. A minimum at an end of all
    points stands for ``beyond``.
    """
    best = int(y_K.argmin())
    middle = min(max(best, 1), len(x_K) - 2)
    wide = sigma.value / sqrt(2 * seeds) * float(stdtrit(sigma.dof, UPPER) / ndtri(UPPER))
    noise_KN = np.random.default_rng(0).standard_normal((len(x_K), LOCAL_RESAMPLES))
    noise_KN[:, 0] = 0.0  # the first draw is the data
    y_KN = y_K[:, None] + wide * noise_KN
    runs = [
        (slice(first, first + degree + 1), degree)
        for degree in LOCAL_DEGREES
        for first in range(max(0, middle + 1 - degree), min(middle - 1, len(x_K) - 1 - degree) + 1)
    ]
    fits = [_minimum(x_K[run], y_KN[run], degree, None, x_K[middle - 1 : middle + 2]) for run, degree in runs]
    fits.append(_minimum(x_K, y_KN, 2, weight_K, x_K[middle - 1 : middle + 2]))
    at_FN, level_FN, curvature_FN = (np.stack(each) for each in zip(*fits, strict=True))
    margin = LOCAL_MARGIN * float(x_K[middle + 1] - x_K[middle - 1]) / 2
    low_FN = np.where(at_FN <= x_K[0], beyond[0], at_FN - margin)
    high_FN = np.where(at_FN >= x_K[-1], beyond[1], at_FN + margin)
    at, curvature = float(np.median(at_FN[:, 0])), float(np.median(curvature_FN[:, 0]))
    tails = (1 - UPPER, UPPER)
    low, least = (float(np.quantile(each_FN.min(axis=0), tails[0])) for each_FN in (low_FN, curvature_FN))
    high, most = (float(np.quantile(each_FN.max(axis=0), tails[1])) for each_FN in (high_FN, curvature_FN))
    slack = CURVATURE_MARGIN * abs(curvature)
    return (
        Estimate(at, min(at, low), max(at, high)),
        float(np.median(level_FN[:, 0])),
        Estimate(curvature, min(curvature, least) - slack, max(curvature, most) + slack),
    )


def _minimum(
    x_k: Array, y_kN: Array, degree: int, weight_k: Array | None, between_3: Array
) -> tuple[Array, Array, Array]:
    """Place, height and curvature [N] of the least value of a polynomial between the outer two of ``between_3``."""
    origin = between_3[1]
    root_k1 = np.sqrt(np.ones_like(x_k) if weight_k is None else weight_k)[:, None]
    powers_kd = np.vander(x_k - origin, degree + 1, increasing=True)
    coefficients_dN = np.linalg.pinv(powers_kd * root_k1) @ (root_k1 * y_kN)
    grid_M = np.linspace(between_3[0], between_3[2], LOCAL_CELLS + 1) - origin
    at_N = grid_M[(np.vander(grid_M, degree + 1, increasing=True) @ coefficients_dN).argmin(axis=0)]
    slope_dN, bend_dN = polyder(coefficients_dN), polyder(coefficients_dN, 2)
    for _ in range(2):  # Newton's step from the best of the grid's cells, inside them
        slope_N, bend_N = polyval(at_N, slope_dN, tensor=False), polyval(at_N, bend_dN, tensor=False)
        step_N = np.where(bend_N > 0, -slope_N / np.where(bend_N > 0, bend_N, 1.0), 0.0)
        at_N = np.clip(at_N + np.clip(step_N, -grid_M[-1] / 9, grid_M[-1] / 9), grid_M[0], grid_M[-1])
    return origin + at_N, polyval(at_N, coefficients_dN, tensor=False), polyval(at_N, bend_dN, tensor=False)


def _beyond(offsets: Sequence[float], block: Sequence[int]) -> Bounds:
    """What a minimum at the block's ends stands for: the point of the cliff, or at the grid's end the reach of a CI."""
    low, high = _reach(offsets[block[0]], offsets[block[-1]])
    return (
        offsets[block[0] - 1] if block[0] > 0 else low,
        offsets[block[-1] + 1] if block[-1] < len(offsets) - 1 else high,
    )


def _weights(y_K: Array, se: float | None) -> Array:
    excess_K = y_K - y_K.min()
    if not se:
        se = 0.1 * float(np.median(excess_K))  # nothing tells the noise: the best point must still not rule alone
    variance_K = se**2 + (MISFIT * excess_K) ** 2
    return np.asarray(1 / np.maximum(variance_K, TINY))


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

"""A bowl over two axes near its minimum: where two optima depend on each other, one axis alone misleads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict
from scipy.special import stdtrit

from mup_tune.stats.losses import Array, Losses, argmin, common, matrix, means, usable
from mup_tune.stats.noise import UPPER, Interval, Sigma, sigma_delta
from mup_tune.stats.quadratic import (
    MISFIT_LEVEL,
    TAILS,
    cliff,
    explained,
    misfit,
    reach,
    resampled_means,
    solver,
    weights,
)

LEAST = 7  # points: one more than a bowl has coefficients
Place = tuple[float, float]


@dataclass(frozen=True)
class Bowl:
    """loss ≈ floor + ½·(xx·u² + 2·xy·u·v + yy·v²) with (u, v) the distance from (x, y); x, y in log2.

    ``x`` and ``y`` never leave the box of the points it was fitted to, their CIs may. Where the vertex lies
    outside, they are the box's lowest point, and the formula holds about ``vertex``. ``xx``, ``yy`` and
    ``xy`` are in nats/token per (log2)². ``lack_of_fit``: p-value of
    :func:`mup_tune.stats.quadratic.misfit`; below 0.1 the CIs are widened by √F.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    x: Interval
    y: Interval
    vertex: Place
    floor: float
    xx: Interval
    yy: Interval
    xy: Interval
    points_used: int
    lack_of_fit: float | None = None

    def above_floor(self, x: float | Array, y: float | Array) -> float | Array:
        """Loss above the vertex's, in nats/token."""
        u, v = x - self.vertex[0], y - self.vertex[1]
        return (self.xx.value * u**2 + 2 * self.xy.value * u * v + self.yy.value * v**2) / 2


def fit_bowl(places: Sequence[Place], losses: Sequence[Losses], sigma: Sigma | None = None) -> Bowl | None:
    """Weighted least-squares quadratic of two variables through the seed means near the minimum.

    Left out are points that diverged, cliffs (:func:`mup_tune.stats.quadratic.cliff`) and what lies behind
    one of them, seen from the best point. Weights are those of a parabola. CIs come from resampling whole
    seeds (≥ 3 seeds), else from the delta method with σ_Δ, else with the scatter about the fit. Where the
    points contradict a bowl (lack of fit below 0.1) the CIs are widened by √F, the Birge ratio (Birge, Phys.
    Rev. 40:207, 1932).

    Args:
        places: (x, y) log2 offsets, in any order. losses: by place, over the same seeds. sigma: σ_Δ.

    Returns:
        None where the best point is the better answer: fewer than 7 points, or points that leave a
        coefficient open; a curvature matrix that is not positive definite; less than half of the weighted
        variance explained; a vertex outside the points' box though the best point is inside it.
    """
    used = _near(places, means(losses))
    if len(used) < LEAST:
        return None
    rows = [usable(losses[index]) or {} for index in used]
    loss_KS = matrix(rows, common(rows))
    y_K, seeds = loss_KS.mean(axis=1), loss_KS.shape[1]
    if not seeds:
        return None
    place_K2 = np.array([places[index] for index in used], dtype=np.float64)
    origin_2 = place_K2[int(y_K.argmin())]
    at_K2 = place_K2 - origin_2
    design_K6 = _design(at_K2)
    if np.linalg.matrix_rank(design_K6) < design_K6.shape[1]:
        return None
    sigma = sigma or sigma_delta(rows)
    weight_K = weights(y_K, None if sigma is None else sigma.value / sqrt(2 * seeds))
    solve_6K = solver(design_K6, weight_K)
    theta_6 = solve_6K @ y_K
    rest_K = y_K - design_K6 @ theta_6
    vertex_2 = _vertices(theta_6[:, None])[:, 0]
    low_2, high_2 = at_K2.min(axis=0), at_K2.max(axis=0)
    beyond_2 = ((vertex_2 < low_2) & (low_2 < 0)) | ((vertex_2 > high_2) & (high_2 > 0))
    if np.isnan(vertex_2).any() or beyond_2.any() or not explained(y_K, rest_K, weight_K):
        return None
    if sigma is None:
        dof = len(used) - design_K6.shape[1]
        sigma = Sigma(sqrt(2 * float((rest_K**2).sum()) / dof), dof)
    missed = misfit(design_K6, rows, sigma)
    wider = max(1.0, sqrt(missed[0])) if missed and missed[1] < MISFIT_LEVEL else 1.0
    bounds = np.array([reach(float(low), float(high)) for low, high in zip(low_2, high_2, strict=True)])
    if seeds >= 3:
        theta_6N = theta_6[:, None] + wider * (solve_6K @ (resampled_means(loss_KS) - y_K[:, None]))
        ci_52 = _resampled(theta_6N, bounds)
    else:
        ci_52 = _delta(
            theta_6, vertex_2, wider**2 * solve_6K @ solve_6K.T * sigma.value**2 / (2 * seeds), sigma, bounds
        )
    at_2 = _lowest(theta_6, vertex_2, low_2, high_2)
    value_5 = np.concatenate([at_2, theta_6[3:]])
    x, y, xx, yy, xy = (
        Interval(float(value), float(min(value, low)), float(max(value, high)))
        for value, (low, high) in zip(value_5 + _shift(origin_2), ci_52 + _shift(origin_2)[:, None], strict=True)
    )
    vertex = (float(vertex_2[0] + origin_2[0]), float(vertex_2[1] + origin_2[1]))
    floor = float((_design(vertex_2[None]) @ theta_6)[0])
    return Bowl(x, y, vertex, floor, xx, yy, xy, len(used), missed and missed[1])


def _shift(origin_2: Array) -> Array:
    """What takes (x, y, xx, yy, xy) from the best point's frame to that of the places."""
    return np.concatenate([origin_2, np.zeros(3)])


def _near(places: Sequence[Place], values: Sequence[float | None]) -> list[int]:
    """Indices of the points that a bowl may be fitted to."""
    best = argmin(values)
    if best is None:
        return []
    limit = cliff(values, best)
    lost = [index for index, value in enumerate(values) if value is None or value > limit]
    origin = np.asarray(places[best])

    def behind(index: int) -> bool:
        to_2 = np.asarray(places[index]) - origin
        for each in lost:
            wall_2 = np.asarray(places[each]) - origin
            aligned = abs(to_2[0] * wall_2[1] - to_2[1] * wall_2[0]) < 1e-9
            if aligned and 0 < wall_2 @ to_2 <= to_2 @ to_2:
                return True
        return False

    return [index for index in range(len(values)) if index not in lost and not behind(index)]


def _design(at_K2: Array) -> Array:
    """Columns of (level, slopes in x and y, xx, yy, xy) [K, 6]."""
    x_K, y_K = at_K2[:, 0], at_K2[:, 1]
    return np.stack([np.ones_like(x_K), x_K, y_K, x_K**2 / 2, y_K**2 / 2, x_K * y_K], axis=1)


def _vertices(theta_6N: Array) -> Array:
    """Minima [2, N]; NaN where the curvature matrix is not positive definite."""
    _, a_N, b_N, xx_N, yy_N, xy_N = theta_6N
    determinant_N = xx_N * yy_N - xy_N**2
    convex_N = (xx_N > 0) & (determinant_N > 1e-9 * xx_N * yy_N)
    safe_N = np.where(convex_N, determinant_N, 1.0)
    both_2N = np.stack([xy_N * b_N - yy_N * a_N, xy_N * a_N - xx_N * b_N]) / safe_N
    return np.where(convex_N, both_2N, np.nan)


def _lowest(theta_6: Array, vertex_2: Array, low_2: Array, high_2: Array) -> Array:
    """The lowest point of the box: the vertex, or else the best of the lowest points of its four edges."""
    if ((low_2 <= vertex_2) & (vertex_2 <= high_2)).all():
        return vertex_2
    _, a, b, xx, yy, xy = theta_6
    edges = [(x, np.clip(-(b + xy * x) / yy, low_2[1], high_2[1])) for x in (low_2[0], high_2[0])]
    edges += [(np.clip(-(a + xy * y) / xx, low_2[0], high_2[0]), y) for y in (low_2[1], high_2[1])]
    edge_42 = np.array(edges)
    return np.asarray(edge_42[int((_design(edge_42) @ theta_6).argmin())])


def _resampled(theta_6N: Array, bounds_22: Array) -> Array:
    """CIs [5, 2] of (x, y, xx, yy, xy); where a draw is no bowl the optimum may be at either end in reach."""
    vertex_2N = _vertices(theta_6N)
    ends_2N = bounds_22[:, np.arange(theta_6N.shape[1]) % 2]
    at_2N = np.where(np.isnan(vertex_2N), ends_2N, np.clip(vertex_2N, bounds_22[:, :1], bounds_22[:, 1:]))
    return np.asarray(np.quantile(np.concatenate([at_2N, theta_6N[3:]]), TAILS, axis=1).T)


def _delta(theta_6: Array, vertex_2: Array, covariance_66: Array, sigma: Sigma, bounds_22: Array) -> Array:
    """CIs [5, 2] by the delta method; anywhere in reach where the least curvature may be 0."""
    t = float(stdtrit(sigma.dof, UPPER))
    bends_32 = theta_6[3:, None] + t * np.sqrt(np.diag(covariance_66)[3:, None]) * np.array([-1.0, 1.0])
    _, _, _, xx, yy, xy = theta_6
    matrix_22 = np.array([[xx, xy], [xy, yy]])
    values_2, vectors_22 = np.linalg.eigh(matrix_22)
    p, q = vectors_22[:, 0]
    least_6 = np.array([0.0, 0.0, 0.0, p * p, q * q, 2 * p * q])  # d(least eigenvalue)/d(coefficients)
    if values_2[0] <= t * sqrt(float(least_6 @ covariance_66 @ least_6)):
        return np.concatenate([bounds_22, bends_32])
    x, y = vertex_2
    gradient_26 = -np.linalg.solve(matrix_22, np.array([[0.0, 1.0, 0.0, x, 0.0, y], [0.0, 0.0, 1.0, 0.0, y, x]]))
    width_2 = t * np.sqrt(np.diag(gradient_26 @ covariance_66 @ gradient_26.T))
    at_22 = vertex_2[:, None] + width_2[:, None] * np.array([-1.0, 1.0])
    return np.concatenate([np.clip(at_22, bounds_22[:, :1], bounds_22[:, 1:]), bends_32])

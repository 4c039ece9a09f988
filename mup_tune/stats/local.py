"""Where no parabola holds: the optimum and curvature of local fits, and how far they disagree."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval
from scipy.special import ndtri, stdtrit

from mup_tune.stats.losses import Array
from mup_tune.stats.noise import UPPER, Interval, Sigma

Bounds = tuple[float, float]

DEGREES = (2, 3, 4)
# Added to the CIs: of the grid's spacing at the minimum, of the curvature.
MARGIN, CURVATURE_MARGIN = 0.15, 0.25
RESAMPLES, CELLS = 500, 40


def local_fit(
    x_K: Array, y_K: Array, weight_K: Array, sigma: Sigma, seeds: int, beyond: Bounds
) -> tuple[Interval, float, Interval]:
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
    noise_KN = np.random.default_rng(0).standard_normal((len(x_K), RESAMPLES))
    noise_KN[:, 0] = 0.0  # the first draw is the data
    y_KN = y_K[:, None] + wide * noise_KN
    runs = [
        (slice(first, first + degree + 1), degree)
        for degree in DEGREES
        for first in range(max(0, middle + 1 - degree), min(middle - 1, len(x_K) - 1 - degree) + 1)
    ]
    fits = [_minimum(x_K[run], y_KN[run], degree, None, x_K[middle - 1 : middle + 2]) for run, degree in runs]
    fits.append(_minimum(x_K, y_KN, 2, weight_K, x_K[middle - 1 : middle + 2]))
    at_FN, level_FN, curvature_FN = (np.stack(each) for each in zip(*fits, strict=True))
    margin = MARGIN * float(x_K[middle + 1] - x_K[middle - 1]) / 2
    low_FN = np.where(at_FN <= x_K[0], beyond[0], at_FN - margin)
    high_FN = np.where(at_FN >= x_K[-1], beyond[1], at_FN + margin)
    at, curvature = float(np.median(at_FN[:, 0])), float(np.median(curvature_FN[:, 0]))
    tails = (1 - UPPER, UPPER)
    low, least = (float(np.quantile(each_FN.min(axis=0), tails[0])) for each_FN in (low_FN, curvature_FN))
    high, most = (float(np.quantile(each_FN.max(axis=0), tails[1])) for each_FN in (high_FN, curvature_FN))
    slack = CURVATURE_MARGIN * abs(curvature)
    return (
        Interval(at, min(at, low), max(at, high)),
        float(np.median(level_FN[:, 0])),
        Interval(curvature, min(curvature, least) - slack, max(curvature, most) + slack),
    )


def _minimum(
    x_k: Array, y_kN: Array, degree: int, weight_k: Array | None, between_3: Array
) -> tuple[Array, Array, Array]:
    """Place, height and curvature [N] of a polynomial's least value between the ends of ``between_3``."""
    origin = between_3[1]
    root_k1 = np.sqrt(np.ones_like(x_k) if weight_k is None else weight_k)[:, None]
    powers_kd = np.vander(x_k - origin, degree + 1, increasing=True)
    coefficients_dN = np.linalg.pinv(powers_kd * root_k1) @ (root_k1 * y_kN)
    grid_M = np.linspace(between_3[0], between_3[2], CELLS + 1) - origin
    at_N = grid_M[(np.vander(grid_M, degree + 1, increasing=True) @ coefficients_dN).argmin(axis=0)]
    slope_dN, bend_dN = polyder(coefficients_dN), polyder(coefficients_dN, 2)
    for _ in range(2):  # Newton's step from the best of the grid's cells, inside them
        slope_N, bend_N = polyval(at_N, slope_dN, tensor=False), polyval(at_N, bend_dN, tensor=False)
        step_N = np.where(bend_N > 0, -slope_N / np.where(bend_N > 0, bend_N, 1.0), 0.0)
        at_N = np.clip(at_N + np.clip(step_N, -grid_M[-1] / 9, grid_M[-1] / 9), grid_M[0], grid_M[-1])
    return origin + at_N, polyval(at_N, coefficients_dN, tensor=False), polyval(at_N, bend_dN, tensor=False)

"""The prior of an axis of a response surface: how sharply it bends, and how far off its optimum lies.

An axis' curvature c is lognormal, and so positive; its optimum lies d ~ N(0, ρ²) off, and its slope is
g = −c·d. A Gaussian model wants the Gaussian that stands for this prior beside what the trials say
(expectation propagation: T. Minka, UAI 2001, arXiv 1301.2294): that of the same mean and covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mup_tune.stats.losses import Array

# What is known of hyperparameters before any trial: an optimum is some 2/3 of a unit off, and curvatures
# differ by a factor of two from axis to axis. Around a centre that the same trials chose, evidence alone
# would take ρ for 0, and promise nothing from a further step. benchmarks/search_methods.py measures what
# comes of it.
OFF, OFF_SD = -0.4, 0.2  # ln ρ, in units of the axes
SPREAD, SPREAD_SD = -0.4, 0.3  # ln of the SD of ln c
EVALUATIONS = 60
_C = np.linspace(-3.5, 3.5, 161)  # of ln c, in SDs: finer than what the trials of a stage tell of it
LEAST_PRECISION = 1e-3  # of a slope given its curvature, times the prior's
FIRST_STEP = 0.5  # of the search for hyperparameters: SciPy's own follows their scale


@dataclass(frozen=True)
class Curvatures:
    """ln c ~ N(``log_c``, ``spread``²) with c in nats/token per unit², d ~ N(0, ``off``²) in units."""

    log_c: float
    spread: float
    off: float

    def beside(self, precision_K22: Array, shift_K2: Array) -> tuple[float, Array, Array]:
        """Log evidence, mean [K, 2] and covariance [K, 2, 2] of (slope, curvature) given what the trials say.

        Given c the slope is normal, N(0, (c·ρ)²) before the trials, and is integrated out in closed form. So
        the grid is over c alone, and an axis that the trials know sharply is not rounded to it.

        Args:
            precision_K22, shift_K2: the Gaussian likelihood exp(shift·θ − ½ θᵀ·precision·θ) of each axis.
        """
        c_M = np.exp(self.log_c + self.spread * _C)
        prior_M = 1 / (c_M * self.off) ** 2
        of_slope_K1, both_K1, of_c_K1 = (precision_K22[:, i, j][:, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        precision_KM = np.maximum(of_slope_K1 + prior_M, LEAST_PRECISION * prior_M)
        slope_KM = (shift_K2[:, :1] - both_K1 * c_M) / precision_KM
        log_KM = shift_K2[:, 1:] * c_M - of_c_K1 * c_M**2 / 2 - _C**2 / 2
        log_KM += (precision_KM * slope_KM**2 - np.log(precision_KM / prior_M)) / 2
        top_K = log_KM.max(axis=1)
        weight_KM = np.exp(log_KM - top_K[:, None])
        sum_K = weight_KM.sum(axis=1)
        weight_KM /= sum_K[:, None]
        mean_K2 = np.stack([(weight_KM * slope_KM).sum(axis=1), weight_KM @ c_M], axis=1)
        left_KM2 = np.stack([slope_KM, np.broadcast_to(c_M, slope_KM.shape)], axis=2) - mean_K2[:, None, :]
        covariance_K22 = np.einsum("km,kmi,kmj->kij", weight_KM, left_KM2, left_KM2)
        covariance_K22[:, 0, 0] += (weight_KM / precision_KM).sum(axis=1)
        return float((np.log(sum_K) + top_K).sum()), mean_K2, covariance_K22


def likeliest(start: Curvatures, precision_K22: Array, shift_K2: Array) -> Curvatures:
    """The hyperparameters of the highest evidence times their own prior, searched from ``start``."""

    def unlikely(at: Array) -> float:
        prior = ((at[1] - SPREAD) / SPREAD_SD) ** 2 + ((at[2] - OFF) / OFF_SD) ** 2
        return 0.5 * float(prior) - _at(at).beside(precision_K22, shift_K2)[0]

    first = np.array([start.log_c, np.log(start.spread), np.log(start.off)])
    options = {"maxfev": EVALUATIONS, "xatol": 0.05, "fatol": 0.05, "initial_simplex": simplex(first)}
    found = minimize(unlikely, first, method="Nelder-Mead", options=options)
    return _at(found.x)


def _at(logs: Array) -> Curvatures:
    return Curvatures(float(logs[0]), float(np.exp(logs[1])), float(np.exp(logs[2])))


def simplex(start: Array) -> Array:
    """Where a search of Nelder and Mead begins."""
    return np.vstack([start, start + FIRST_STEP * np.eye(len(start))])

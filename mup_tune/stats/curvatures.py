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
_C = np.linspace(-3.0, 3.0, 21)
_D = np.linspace(-3.0, 3.0, 33)
_LOG_WEIGHT = (-0.5 * (_C[:, None] ** 2 + _D[None, :] ** 2)).ravel()


@dataclass(frozen=True)
class Curvatures:
    """ln c ~ N(``log_c``, ``spread``²) with c in nats/token per unit², d ~ N(0, ``off``²) in units."""

    log_c: float
    spread: float
    off: float

    def points(self) -> tuple[Array, Array]:
        """A grid of (slope, curvature) [M, 2] and its log weights [M]."""
        c_M = np.repeat(np.exp(self.log_c + self.spread * _C), len(_D))
        d_M = np.tile(self.off * _D, len(_C))
        return np.stack([-c_M * d_M, c_M], axis=1), _LOG_WEIGHT

    def beside(self, precision_K22: Array, shift_K2: Array) -> tuple[float, Array, Array]:
        """Log evidence, mean [K, 2] and covariance [K, 2, 2] of (slope, curvature) given what the trials say.

        Args:
            precision_K22, shift_K2: the Gaussian likelihood exp(shift·θ − ½ θᵀ·precision·θ) of each axis.
        """
        at_M2, log_weight_M = self.points()
        squares_M3 = np.stack([at_M2[:, 0] ** 2, 2 * at_M2[:, 0] * at_M2[:, 1], at_M2[:, 1] ** 2], axis=1)
        flat_K3 = precision_K22.reshape(-1, 4)[:, [0, 1, 3]]
        log_KM = shift_K2 @ at_M2.T - 0.5 * flat_K3 @ squares_M3.T + log_weight_M
        top_K = log_KM.max(axis=1)
        weight_KM = np.exp(log_KM - top_K[:, None])
        sum_K = weight_KM.sum(axis=1)
        weight_KM /= sum_K[:, None]
        mean_K2 = weight_KM @ at_M2
        second_K3 = weight_KM @ squares_M3 / (1.0, 2.0, 1.0)
        covariance_K22 = second_K3[:, [0, 1, 1, 2]].reshape(-1, 2, 2) - mean_K2[:, :, None] * mean_K2[:, None, :]
        return float((np.log(sum_K) + top_K).sum()), mean_K2, covariance_K22


def likeliest(start: Curvatures, precision_K22: Array, shift_K2: Array) -> Curvatures:
    """The hyperparameters of the highest evidence times their own prior, searched from ``start``."""

    def unlikely(at: Array) -> float:
        prior = ((at[1] - SPREAD) / SPREAD_SD) ** 2 + ((at[2] - OFF) / OFF_SD) ** 2
        return 0.5 * float(prior) - _at(at).beside(precision_K22, shift_K2)[0]

    first = np.array([start.log_c, np.log(start.spread), np.log(start.off)])
    found = minimize(
        unlikely, first, method="Nelder-Mead", options={"maxfev": EVALUATIONS, "xatol": 0.05, "fatol": 0.05}
    )
    return _at(found.x)


def _at(logs: Array) -> Curvatures:
    return Curvatures(float(logs[0]), float(np.exp(logs[1])), float(np.exp(logs[2])))

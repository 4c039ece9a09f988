"""The response surface: a quadratic in all axes at once, fitted to trials that each move every axis.

A trial n at x ∈ Rᴷ on seed s has the loss

    y_n = a_s + g·x + ½ Σ c_i x_i² + Σ_{i<j} h_ij x_i x_j + ε_n,   ε_n ~ N(0, s²/w_n)

with x in units of the axes from the centre. There are more coefficients than trials, so all of them have
priors (Box & Wilson, J. R. Statist. Soc. B 13:1, 1951, for the surface; Rasmussen & Williams, Gaussian
Processes for Machine Learning, 2006, §2.7 and §5.4.1, for priors on coefficients and their marginal
likelihood). Interactions h are normal and stay a part of the covariance. Slopes and curvatures have the prior
of :mod:`mup_tune.stats.curvatures`. Losses beside a cliff have a heavy tail, and so the noise is Student's t
with 4 degrees of freedom, as weights w. All of it is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtri

from mup_tune.stats.curvatures import Curvatures, likeliest, simplex
from mup_tune.stats.losses import Array
from mup_tune.stats.noise import UPPER, Interval
from mup_tune.stats.quadratic import MISFIT

Z = float(ndtri(UPPER))
HEAVY_TAIL = 4.0  # degrees of freedom of the noise
EVALUATIONS = (60, 30, 30)  # of the likelihood, by fit; each has the weights that follow from the one before
PROPAGATED = 6  # passes of expectation propagation
DAMPED = 0.7  # of a pass' change
LEAST_PRECISION = 0.03  # of an axis' prior, times the Gaussian start's
START = np.array([1.0, -1.0, -1.0])  # ln of the variances of slopes, curvatures, interactions over the noise's
START_SD = 3.0  # of their prior around it
LARGEST = 16.0  # of these logs: beyond it rounding is what is left
LEAST_NOISE = 1e-8  # variance over that of the losses: landscapes without noise must stay solvable
LEAST_SPREAD = 1e-9  # of an axis' covariance, times the Gaussian start's
SHARED = 1e-3  # of the least curvature, so that axes which do one and the same share the way
LEAST_CURVATURE = 0.1  # of the median, for directions that seem to bend down


@dataclass(frozen=True)
class Surface:
    """The surface around a centre; steps [K] are in units of the axes.

    ``noise``: SD of a single trial's loss in nats/token, on ``dof`` degrees of freedom. ``coordinates_MK``
    takes a step to the M coordinates that the quadratic is in. ``scale``: nats/token of its unit of loss.
    """

    noise: float
    dof: int
    coordinates_MK: Array
    scale: float
    _fit: _Posterior

    @property
    def slope(self) -> Array:
        """Of every axis at the centre, in nats/token per unit."""
        return np.asarray(self.scale * self._fit.mean_M2[:, 0] @ self.coordinates_MK)

    @property
    def hessian(self) -> Array:
        """In nats/token per unit²."""
        return np.asarray(self.scale * self.coordinates_MK.T @ self._fit.hessian_MM @ self.coordinates_MK)

    def slopes(self) -> list[Interval]:
        """Of every axis at the centre, in nats/token per unit."""
        half_K = Z * self.scale * np.array([self._fit.sd_of_slope(row_M) for row_M in self.coordinates_MK.T])
        return _intervals(self.slope, half_K)

    def curvatures(self) -> list[Interval]:
        """Of every axis, in nats/token per unit²."""
        half_K = Z * self.scale * np.array([self._fit.sd_of_curvature(row_M) for row_M in self.coordinates_MK.T])
        return _intervals(np.diag(self.hessian), half_K)

    def minimum(self, reach: float) -> Array:
        """The step [K] from the centre to the lowest point of the box of ±``reach`` units.

        Directions that seem to bend down are taken for slightly convex: trials do not tell them from noise.
        Axes that do one and the same share the way.
        """
        values_M, vectors_MM = np.linalg.eigh(self.scale * self._fit.hessian_MM)
        least = LEAST_CURVATURE * max(float(np.median(values_M)), np.finfo(float).tiny)
        root_MK = np.sqrt(np.maximum(values_M, least))[:, None] * (vectors_MM.T @ self.coordinates_MK)
        axes = self.coordinates_MK.shape[1]
        convex_KK = root_MK.T @ root_MK + SHARED * least * np.eye(axes)

        slope_K, scale = self.slope, float(np.abs(convex_KK).max())  # L-BFGS-B's tolerances are absolute

        def cost(step_K: Array) -> tuple[float, Array]:
            bend_K = convex_KK @ step_K
            return float(slope_K @ step_K + step_K @ bend_K / 2) / scale, (slope_K + bend_K) / scale

        box = [(-reach, reach)] * axes
        return np.asarray(minimize(cost, np.zeros(axes), jac=True, method="L-BFGS-B", bounds=box).x)

    def gain(self, step_K: Array) -> Interval:
        """Predicted loss(centre) − loss(centre + step) in nats/token.

        The interval holds the posterior's SD, and 30 % of the gain for what a quadratic is trusted to miss.
        """
        value = -float(self.slope @ step_K + step_K @ self.hessian @ step_K / 2)
        half = Z * hypot(self.sd(step_K), MISFIT * value)
        return Interval(value, value - half, value + half)

    def sd(self, step_K: Array) -> float:
        """Posterior SD of the surface's change over a step from the centre, in nats/token."""
        return self.scale * self._fit.sd(self.coordinates_MK @ step_K)


def fit_surface(
    x_NK: Array, seeds: Sequence[int], losses_N: Array, centre_K: Array, coordinates_MK: Array | None = None
) -> Surface:
    """The surface around ``centre`` from N trials that ended, of all rounds.

    Args:
        x_NK: where they trained, in units of the axes, from any origin. seeds: whose offset each loss holds.
        losses_N: nats/token. centre_K: from the same origin. coordinates_MK: what the loss depends on, as
        linear functions of the axes, each of which bends on its own; the axes themselves if None.

    Raises:
        ValueError: fewer than two trials a seed, so that nothing is left to fit.
    """
    if len(losses_N) < 2 * len(set(seeds)):
        raise ValueError(f"{len(losses_N)} trials on {len(set(seeds))} seeds are too few for a surface")
    if coordinates_MK is None:
        coordinates_MK = np.eye(x_NK.shape[1])
    scale = float(np.median(np.abs(losses_N - np.median(losses_N)))) or float(losses_N.std()) or 1.0
    data = _Data((x_NK - centre_K) @ coordinates_MK.T, _blocks(seeds), losses_N / scale)
    gaussian = _gaussian(data)
    fit = _propagated(data, gaussian)
    return Surface(scale * sqrt(gaussian.noise), gaussian.dof, coordinates_MK, scale, fit)


def _intervals(value_K: Array, half_K: Array) -> list[Interval]:
    return [Interval(float(v), float(v - h), float(v + h)) for v, h in zip(value_K, half_K, strict=True)]


def _blocks(seeds: Sequence[int]) -> Array:
    order = sorted(set(seeds))
    return np.asarray(np.asarray(seeds)[:, None] == np.asarray(order)[None, :]).astype(np.float64)


class _Data:
    """Trials from the centre, and the three kernels that they make: slopes, curvatures, interactions."""

    def __init__(self, x_NM: Array, blocks_NS: Array, y_N: Array) -> None:
        self.x_NM, self.blocks_NS, self.y_N = x_NM, blocks_NS, y_N
        self.terms_NM2 = np.stack([x_NM, x_NM**2 / 2], axis=2)
        dots_NN, squares_NN = x_NM @ x_NM.T, x_NM**2 @ (x_NM**2).T
        self.kernels = (dots_NN, squares_NN / 4, (dots_NN**2 - squares_NN) / 2)

    def interaction(self, step_M: Array) -> Array:
        """The kernel [N] of interactions between the trials and a step."""
        return np.asarray(((self.x_NM @ step_M) ** 2 - self.x_NM**2 @ step_M**2) / 2)


@dataclass(frozen=True)
class _Gaussian:
    """The fit with normal priors on everything: noise variance and weights, and the priors' variances."""

    noise: float
    dof: int
    weight_N: Array
    slopes: float
    curvatures: float
    interactions: float
    mean_curvature: float


class _Restricted:
    """Restricted marginal likelihood of the three variances over the noise's; flat priors on ``fixed``."""

    def __init__(self, data: _Data) -> None:
        self.y_N, self.kernels = data.y_N, data.kernels
        self.fixed_NF = np.column_stack([data.blocks_NS, data.terms_NM2[:, :, 1].sum(axis=1)])
        self.scales = np.array([float(np.diag(kernel).mean()) or 1.0 for kernel in data.kernels])
        self.dof = len(self.y_N) - self.fixed_NF.shape[1]

    def covariance(self, logs: Array, weight_N: Array) -> Array:
        parts = np.exp(np.minimum(logs, LARGEST)) / self.scales
        return np.asarray(np.diag(1 / weight_N) + sum(p * k for p, k in zip(parts, self.kernels, strict=True)))

    def unlikely(self, logs: Array, weight_N: Array) -> float:
        """Minus the log of the likelihood times the variances' own prior."""
        lower_NN = np.linalg.cholesky(self.covariance(logs, weight_N))
        white = solve_triangular(lower_NN, np.column_stack([self.fixed_NF, self.y_N]), lower=True, check_finite=False)
        fixed_NF, y_N = white[:, :-1], white[:, -1]
        normal_FF, right_F = fixed_NF.T @ fixed_NF, fixed_NF.T @ y_N
        rest = max(float(y_N @ y_N - right_F @ np.linalg.solve(normal_FF, right_F)), LEAST_NOISE)
        lost = self.dof / 2 * np.log(rest) + np.log(np.diag(lower_NN)).sum() + np.linalg.slogdet(normal_FF)[1] / 2
        return float(lost + (((logs - START) / START_SD) ** 2).sum() / 2)

    def solved(self, logs: Array, weight_N: Array) -> tuple[Array, float, Array]:
        """Coefficients of ``fixed``, the noise's variance, and what is left of each loss over its SD."""
        factor = cho_factor(self.covariance(logs, weight_N), lower=True)
        normal_FF = self.fixed_NF.T @ cho_solve(factor, self.fixed_NF)
        beta_F = np.linalg.solve(normal_FF, self.fixed_NF.T @ cho_solve(factor, self.y_N))
        left_N = self.y_N - self.fixed_NF @ beta_F
        alpha_N = cho_solve(factor, left_N)
        noise = max(float(left_N @ alpha_N) / self.dof, LEAST_NOISE)
        return beta_F, noise, alpha_N / weight_N / sqrt(noise)


def _gaussian(data: _Data) -> _Gaussian:
    likelihood = _Restricted(data)
    rest_N, logs = np.zeros_like(data.y_N), START
    for tries in EVALUATIONS:
        weight_N = np.minimum((HEAVY_TAIL + 1) / (HEAVY_TAIL + rest_N**2), 1.0)
        options = {"maxfev": tries, "xatol": 0.1, "fatol": 0.02, "initial_simplex": simplex(logs)}
        logs = minimize(likelihood.unlikely, logs, args=(weight_N,), method="Nelder-Mead", options=options).x
        beta_F, noise, rest_N = likelihood.solved(logs, weight_N)
    variances = noise * np.exp(np.minimum(logs, LARGEST)) / likelihood.scales
    slopes, curvatures, interactions = map(float, variances)
    return _Gaussian(noise, likelihood.dof, weight_N, slopes, curvatures, interactions, float(beta_F[-1]))


class _Posterior:
    """Slopes and curvatures given the trials, where axis k has the prior N(prior_M2[k], spread_M22[k])."""

    def __init__(self, data: _Data, gaussian: _Gaussian, prior_M2: Array, spread_M22: Array) -> None:
        self.data, self.interactions, self.spread_M22 = data, gaussian.interactions, spread_M22
        self.lifted_NM2 = np.einsum("nki,kij->nkj", data.terms_NM2, spread_M22)
        covariance_NN = np.einsum("nkj,mkj->nm", self.lifted_NM2, data.terms_NM2)
        covariance_NN += gaussian.interactions * data.kernels[2] + np.diag(gaussian.noise / gaussian.weight_N)
        self.factor = cho_factor(covariance_NN, lower=True)
        self.solved_NS = cho_solve(self.factor, data.blocks_NS)
        self.offset_SS = np.linalg.inv(data.blocks_NS.T @ self.solved_NS)
        rest_N = data.y_N - np.einsum("nkj,kj->n", data.terms_NM2, prior_M2)
        offset_S = self.offset_SS @ (self.solved_NS.T @ rest_N)
        alpha_N = cho_solve(self.factor, rest_N - data.blocks_NS @ offset_S)
        self.mean_M2 = prior_M2 + np.einsum("nkj,n->kj", self.lifted_NM2, alpha_N)
        self.covariance_M22 = self._covariances()
        self.hessian_MM = gaussian.interactions * (data.x_NM.T * alpha_N) @ data.x_NM
        np.fill_diagonal(self.hessian_MM, self.mean_M2[:, 1])

    def _covariances(self) -> Array:
        n, k, _ = self.lifted_NM2.shape
        lifted_NT = self.lifted_NM2.reshape(n, 2 * k)
        known_NT, offsets_ST = cho_solve(self.factor, lifted_NT), self.solved_NS.T @ lifted_NT
        free_ST = self.offset_SS @ offsets_ST
        shape = (-1, k, 2)
        told_M22 = np.einsum("nki,nkj->kij", self.lifted_NM2, known_NT.reshape(shape))
        untold_M22 = np.einsum("ski,skj->kij", offsets_ST.reshape(shape), free_ST.reshape(shape))
        return np.asarray(self.spread_M22 - told_M22 + untold_M22)

    def sd(self, step_M: Array) -> float:
        """Posterior SD of the surface's change over a step, in the losses' units."""
        return self._sd(np.stack([step_M, step_M**2 / 2], axis=1), step_M, 1.0)

    def sd_of_slope(self, along_M: Array) -> float:
        """Of the slope at the centre in a direction."""
        return self._sd(np.stack([along_M, 0 * along_M], axis=1), along_M, 0.0)

    def sd_of_curvature(self, along_M: Array) -> float:
        """Of the second derivative in a direction."""
        return self._sd(np.stack([0 * along_M, along_M**2], axis=1), along_M, 2.0)

    def _sd(self, terms_M2: Array, along_M: Array, interactions: float) -> float:
        """Of Σ terms·(g, c) + ``interactions`` · Σ_{i<j} h_ij along_i along_j."""
        with_trials_N = np.einsum("nkj,kj->n", self.lifted_NM2, terms_M2)
        with_trials_N += interactions * self.interactions * self.data.interaction(along_M)
        squares_M = along_M**2
        prior = float(np.einsum("ki,kij,kj->", terms_M2, self.spread_M22, terms_M2))
        prior += interactions**2 * self.interactions * float(squares_M.sum() ** 2 - (squares_M**2).sum()) / 2
        offset_S = self.solved_NS.T @ with_trials_N
        told = float(with_trials_N @ cho_solve(self.factor, with_trials_N) - offset_S @ self.offset_SS @ offset_S)
        return sqrt(max(prior - told, 0.0))


def _propagated(data: _Data, gaussian: _Gaussian) -> _Posterior:
    """Expectation propagation: each axis' prior becomes the Gaussian of the true prior's effect there."""
    axes = data.x_NM.shape[1]
    mean = max(gaussian.mean_curvature, sqrt(gaussian.curvatures) / 2, np.finfo(float).eps)
    spread = sqrt(np.log1p(max(gaussian.curvatures / mean**2, 0.05)))
    off = sqrt(max(gaussian.slopes / (mean**2 + gaussian.curvatures), 1e-4))
    true = Curvatures(float(np.log(mean)) - 0.2, spread, off)
    sd_2: Array = np.sqrt(np.array([gaussian.slopes, gaussian.curvatures]))
    prior_M2 = np.tile([0.0, max(gaussian.mean_curvature, 0.0)], (axes, 1))
    spread_M22 = np.tile(np.diag(sd_2**2), (axes, 1, 1))
    for each in range(PROPAGATED):
        fit = _Posterior(data, gaussian, prior_M2, spread_M22)
        before_M22, after_M22 = np.linalg.inv(spread_M22), np.linalg.inv(fit.covariance_M22)
        told_M22 = after_M22 - before_M22
        shift_M2 = _times(after_M22, fit.mean_M2) - _times(before_M22, prior_M2)
        if each % 2 == 0:
            true = likeliest(true, told_M22, shift_M2)
        _, mean_M2, covariance_M22 = true.beside(told_M22, shift_M2)
        precision_M22 = np.linalg.inv(covariance_M22 + LEAST_SPREAD * np.diag(sd_2**2))
        share = DAMPED if each else 1.0
        new_M22 = share * (precision_M22 - told_M22) + (1 - share) * before_M22
        new_M2 = share * (_times(precision_M22, mean_M2) - shift_M2) + (1 - share) * _times(before_M22, prior_M2)
        spread_M22 = _inverse(new_M22, sd_2)
        prior_M2 = _times(spread_M22, new_M2)
    return _Posterior(data, gaussian, prior_M2, spread_M22)


def _times(matrix_M22: Any, vector_M2: Any) -> Array:
    return np.asarray(np.einsum("kij,kj->ki", matrix_M22, vector_M2), dtype=np.float64)


def _inverse(precision_M22: Array, sd_2: Array) -> Array:
    """Covariances of the precisions, none of which may be vaguer than a Gaussian start many times over."""
    scale_22 = sd_2[:, None] * sd_2[None, :]
    values_M2, vectors_M22 = np.linalg.eigh(precision_M22 * scale_22)
    spread_M2 = 1 / np.maximum(values_M2, LEAST_PRECISION)
    return np.asarray(np.einsum("kij,kj,klj->kil", vectors_M22, spread_M2, vectors_M22) * scale_22)

"""Empirical Bayes over a group of swept axes: where each wants to go, shrunk by its noise and by the others.

Along axis i the loss is level + g·x + ½·c·x² with x = log2 of the factor on the incumbent's value. The
group's axes are exchangeable (Morris, J. Am. Statist. Assoc. 78:47, 1983): log c ~ N(µ, ω²), so that c > 0,
and the optimum −g/c ~ N(0, τ²). So g | c ~ N(0, τ²c²): an axis that shows no curvature cannot want to go far.
The posterior is averaged over a grid of µ, ω and τ, weighted by the marginal likelihood of the group's curves
(Deely & Lindley, J. Am. Statist. Assoc. 76:833, 1981): few axes leave these open, and one best value would
hide that. g is integrated in closed form, c on a grid.

Shape suffixes: n axes, c curvatures, t values of τ, p pairs (µ, ω), K points of one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import ndtri

from mup_tune.stats.losses import Array, Losses, common, matrix, means, usable
from mup_tune.stats.noise import UPPER, Interval, Sigma
from mup_tune.stats.parabola import near_minimum
from mup_tune.stats.quadratic import weights

TAUS_t = 2.0 ** np.arange(-4.0, 1.5)  # log2
CURVATURES_c = np.geomspace(1e-5, 10.0, 700)  # nats/token per (log2)², 2 % apart
MEDIANS = np.geomspace(1e-4, 1.0, 17)  # exp µ
SPREADS = (0.5, 1.0, 2.0)  # ω


@dataclass(frozen=True)
class Quadratic:
    """What one axis' points say of θ = (g, c): log likelihood = pull·θ − ½·θ·precision·θ + constant.

    This form holds where the points leave a direction of θ open, as two points do. ``low`` and ``high`` are
    the offsets that the points span, the incumbent's 0 included.
    """

    precision_22: Array
    pull_2: Array
    low: float
    high: float


def quadratic(offsets: Sequence[float], losses: Sequence[Losses], sigma: Sigma) -> Quadratic | None:
    """The points near the minimum, their level profiled out; None where fewer than two are left.

    A mean's variance is σ_Δ²/2n, and what a quadratic is trusted to miss of it
    (:func:`mup_tune.stats.quadratic.weights`).

    Args:
        offsets: log2 offsets from the incumbent, ascending. losses: per offset, over the same seeds.
    """
    block = near_minimum(means(losses))
    if len(block) < 2:
        return None
    rows = [usable(losses[index]) or {} for index in block]
    loss_KS = matrix(rows, common(rows))
    y_K, x_K = loss_KS.mean(axis=1), np.array([offsets[index] for index in block])
    weight_K = weights(y_K, sigma.value / sqrt(2 * loss_KS.shape[1]))
    design_K2 = np.stack([x_K, x_K**2 / 2], axis=1)
    design_K2 = design_K2 - np.average(design_K2, axis=0, weights=weight_K)
    weighted_2K = (design_K2 * weight_K[:, None]).T
    pull_2 = weighted_2K @ (y_K - np.average(y_K, weights=weight_K))
    return Quadratic(weighted_2K @ design_K2, pull_2, min(0.0, x_K[0]), max(0.0, x_K[-1]))


@dataclass(frozen=True)
class Posterior:
    """Moments of g and c by axis, [h, n], under every prior h = (τ, µ, ω), and these priors' weights [h]."""

    weight_h: Array
    g_hn: Array
    c_hn: Array
    gg_hn: Array
    gc_hn: Array
    cc_hn: Array

    @property
    def optima_n(self) -> Array:
        """The move that is expected to gain most: −E[g]/E[c], log2."""
        return np.asarray(-(self.weight_h @ self.g_hn) / (self.weight_h @ self.c_hn))

    def gains_n(self, move_n: Array) -> Array:
        """What each axis' move is expected to gain, nats/token."""
        return np.asarray(self.weight_h @ self._gain_hn(move_n))

    def gain(self, move_n: Array) -> Interval:
        """What all moves gain together if the axes do not act on one another; a normal 95 % interval."""
        gain_hn = self._gain_hn(move_n)
        square_hn = move_n**2 * self.gg_hn + move_n**3 * self.gc_hn + move_n**4 / 4 * self.cc_hn
        within_h, gain_h = (square_hn - gain_hn**2).sum(axis=1), gain_hn.sum(axis=1)
        value = float(self.weight_h @ gain_h)
        variance = float(self.weight_h @ (within_h + (gain_h - value) ** 2))
        half = float(ndtri(UPPER)) * sqrt(max(variance, 0.0))
        return Interval(value, value - half, value + half)

    def _gain_hn(self, move_n: Array) -> Array:
        return -(move_n * self.g_hn + move_n**2 / 2 * self.c_hn)


def posterior(curves: Sequence[Quadratic]) -> Posterior:
    """Slope and curvature of every axis of a group, given the whole group."""
    prior_pc = np.concatenate([_lognormal(median, spread) for median in MEDIANS for spread in SPREADS])
    (gg_n, gc_n), (_, cc_n) = np.moveaxis(np.stack([curve.precision_22 for curve in curves]), 0, -1)
    pull_gn, pull_cn = np.stack([curve.pull_2 for curve in curves], axis=-1)
    sd_tc = TAUS_t[:, None] * CURVATURES_c
    precision_tnc = gg_n[:, None] + 1 / sd_tc[:, None] ** 2
    mean_tnc = (pull_gn[:, None] - gc_n[:, None] * CURVATURES_c) / precision_tnc
    log_tnc = pull_cn[:, None] * CURVATURES_c - cc_n[:, None] / 2 * CURVATURES_c**2
    log_tnc = log_tnc + mean_tnc**2 * precision_tnc / 2 - np.log(sd_tc[:, None] * np.sqrt(precision_tnc))
    highest_n = log_tnc.max(axis=(0, 2))
    likelihood_tnc = np.exp(log_tnc - highest_n[:, None])

    def integrated(value_tnc: Array | float) -> Array:
        """∫ value · likelihood · prior dc as [h, n]."""
        return np.asarray(np.moveaxis((likelihood_tnc * value_tnc) @ prior_pc.T, -1, 1).reshape(-1, len(curves)))

    evidence_hn = integrated(1.0) + np.finfo(np.float64).tiny
    log_h = np.log(evidence_hn).sum(axis=1)
    weight_h = np.exp(log_h - log_h.max())
    moments = (
        mean_tnc,
        CURVATURES_c,
        mean_tnc**2 + 1 / precision_tnc,
        mean_tnc * CURVATURES_c,
        CURVATURES_c**2,
    )
    return Posterior(weight_h / weight_h.sum(), *(integrated(each) / evidence_hn for each in moments))


def _lognormal(median: float, spread: float) -> Array:
    """Prior weights of the curvatures, [1, c]; the grid is even in log c."""
    weight_c = np.exp(-((np.log(CURVATURES_c / median) / spread) ** 2) / 2)
    return np.asarray(weight_c / weight_c.sum())[None]

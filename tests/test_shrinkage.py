"""Empirical Bayes over a group's curves: closed forms, calibration, and what it does without a signal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mup_tune import stats
from mup_tune.stats import Quadratic, Sigma, posterior, quadratic
from mup_tune.stats.quadratic import weights
from mup_tune.stats.shrinkage import CURVATURES_c

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
SE_2 = np.array([0.32, 0.53])  # of (g, c) on GRID, in SDs of a point's mean


def points(slope, curvature, grid=GRID, noise=0.0, seeds=3, rng=None):
    x_K = np.array(grid)
    rng = rng or np.random.default_rng(0)
    loss_KS = 2 + (slope * x_K + curvature / 2 * x_K**2)[:, None] + rng.normal(0, 0.5, seeds)
    return [dict(enumerate(row)) for row in (loss_KS + rng.normal(0, noise, loss_KS.shape)).tolist()]


def told(slopes, curvatures, se):
    """Axes whose slope and curvature were measured, with independent errors of SD ``se`` · SE_2."""
    precision_22 = np.diag(1 / (se * SE_2) ** 2)
    return [
        Quadratic(precision_22, precision_22 @ np.array([g, c]), -2.0, 2.0)
        for g, c in zip(slopes, curvatures, strict=True)
    ]


@given(
    st.floats(-0.1, 0.1),
    st.floats(0.005, 0.2),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_the_information_is_that_of_weighted_least_squares(slope, curvature, common):
    losses = points(slope, curvature, noise=0.004)
    sigma = Sigma(0.006, 20)
    found = quadratic(GRID, losses, sigma)
    block = stats.near_minimum(stats.means(losses))
    assume(len(block) > 2)
    x_K, y_K = np.array(GRID)[block], np.array(stats.means(losses))[block]
    weight_K = weights(y_K, sigma.value / 6**0.5)
    half_bend, linear, _ = np.polyfit(x_K, y_K, 2, w=np.sqrt(weight_K))
    assert np.linalg.solve(found.precision_22, found.pull_2) == pytest.approx(
        [linear, 2 * half_bend], rel=1e-6, abs=1e-9
    )
    shifted = [{seed: loss + common[seed] for seed, loss in point.items()} for point in losses]
    again = quadratic(GRID, shifted, sigma)
    assert again.precision_22 == pytest.approx(found.precision_22, rel=1e-6)
    assert again.pull_2 == pytest.approx(found.pull_2, rel=1e-6, abs=1e-6)


def test_diverged_points_bound_a_curve_and_one_point_is_none():
    losses = points(-0.02, 0.03)
    losses[4] = dict.fromkeys(range(3))
    found = quadratic(GRID, losses, Sigma(0.004, 9))
    assert (found.low, found.high) == (-2, 1)
    alone = [dict.fromkeys(range(3)), losses[1], dict.fromkeys(range(3))]
    assert quadratic((-1.0, 0.0, 1.0), alone, Sigma(0.004, 9)) is None


def test_g_is_integrated_exactly():
    """One axis with correlated errors, by brute force over g, c and every prior."""
    precision_22 = np.linalg.inv([[4e-6, 2e-6], [2e-6, 9e-6]])
    found = posterior([Quadratic(precision_22, precision_22 @ [-0.008, 0.02], -2.0, 2.0)])
    g_g = np.linspace(-0.03, 0.02, 4001)
    c_c = CURVATURES_c[::5]
    log_gc = precision_22 @ [-0.008, 0.02]
    log_gc = log_gc[0] * g_g[:, None] + log_gc[1] * c_c
    log_gc = log_gc - (precision_22[0, 0] * g_g[:, None] ** 2 + precision_22[1, 1] * c_c**2) / 2
    like_gc = np.exp(log_gc - precision_22[0, 1] * g_g[:, None] * c_c - log_gc.max())
    density_gc = np.zeros_like(like_gc)
    for tau in 2.0 ** np.arange(-4, 2):
        sd_c = tau * c_c
        g_given_c = np.exp(-((g_g[:, None] / sd_c) ** 2) / 2) / sd_c
        for median in np.geomspace(1e-4, 1, 17):
            for spread in (0.5, 1.0, 2.0):
                prior_c = np.exp(-((np.log(c_c / median) / spread) ** 2) / 2)
                density_gc += like_gc * g_given_c * prior_c / prior_c.sum()
    density_gc = density_gc[:, c_c > 1e-3] / density_gc[:, c_c > 1e-3].sum()  # below, g's grid is too coarse for sd
    slope, curvature = (density_gc.sum(axis=1) * g_g).sum(), (density_gc.sum(axis=0) * c_c[c_c > 1e-3]).sum()
    assert found.optima_n[0] == pytest.approx(-slope / curvature, rel=0.01)
    assert found.weight_h @ found.c_hn[:, 0] == pytest.approx(curvature, rel=0.01)


def test_without_noise_axes_go_to_their_optima_and_gain_what_these_promise():
    optima, curvatures = np.array([0.8, -0.3, 1.5, 0.05]), np.array([0.03, 0.1, 0.01, 0.05])
    found = posterior(told(-optima * curvatures, curvatures, 1e-6))
    assert found.optima_n == pytest.approx(optima, rel=0.02)
    gain = found.gain(found.optima_n)
    assert gain.value == pytest.approx((curvatures * optima**2 / 2).sum(), rel=0.03)
    assert gain.low == pytest.approx(gain.high, rel=0.1)
    assert found.gain(np.zeros(4)) == stats.Interval(0.0, 0.0, 0.0)
    assert found.gains_n(optima).sum() == pytest.approx(gain.value, rel=0.01)


def test_two_points_are_told_by_the_group():
    """Of slope and curvature they know one sum; the others' curvature says how far to go."""
    curves = [quadratic(GRID, points(-x * 0.04, 0.04), Sigma(0.004, 40)) for x in (0.5, -0.5, 0.7, -0.3)]
    half = quadratic((0.0, 1.0), points(-0.6 * 0.04, 0.04, (0.0, 1.0)), Sigma(0.004, 40))
    found = posterior([*curves, half]).optima_n
    assert 0.25 < found[-1] < 0.7


@pytest.mark.parametrize("se", [0.002, 0.006])
def test_axes_drawn_from_the_prior_are_covered_and_not_overstated(se):
    rng, hits, errors, raw, predicted, true = np.random.default_rng(1), [], [], [], [], []
    for _ in range(200):
        c_n = 0.03 * np.exp(0.5 * rng.normal(size=12))
        optima_n = 0.5 * rng.normal(size=12)
        g_n = -c_n * optima_n
        seen_n2 = np.stack([g_n, c_n], axis=1) + se * SE_2 * rng.normal(size=(12, 2))
        found = posterior(told(*seen_n2.T, se))
        move_n = found.optima_n
        gain = found.gain(move_n)
        truth = float(-(g_n * move_n + c_n * move_n**2 / 2).sum())
        hits.append(gain.low <= truth <= gain.high)
        predicted.append(gain.value)
        true.append(truth)
        errors.append(move_n - optima_n)
        raw.append(np.clip(-seen_n2[:, 0] / np.maximum(seen_n2[:, 1], 1e-3), -2, 2) - optima_n)
    assert 0.89 < np.mean(hits) <= 0.99
    assert np.mean(predicted) == pytest.approx(np.mean(true), rel=0.05)
    assert np.square(errors).mean() < np.square(raw).mean()


@pytest.mark.parametrize(("axes", "seeds"), [(3, 2), (12, 3), (35, 3)])
def test_without_a_signal_nothing_is_promised(axes, seeds):
    rng, sigma, moves = np.random.default_rng(0), Sigma(2**0.5 * 0.003, 40), []
    for _ in range(40):
        losses = [points(0, 0, noise=0.003, seeds=seeds, rng=rng) for _ in range(axes)]
        found = posterior([each for each in (quadratic(GRID, each, sigma) for each in losses) if each])
        moves.append(np.abs(found.optima_n).mean())
        assert found.gain(found.optima_n).high < stats.detectable(sigma, 6, 3)
    assert np.mean(moves) < 0.2


@pytest.mark.parametrize("tests", [1, 3])
def test_about_half_of_all_draws_show_the_detectable_gain(tests):
    rng, sigma = np.random.default_rng(0), Sigma(0.01, 40)
    gain_N6 = stats.detectable(sigma, 6, tests) + rng.normal(0, sigma.value, (2000, 6))
    reference = dict.fromkeys(range(6), 0.0)
    found = [stats.paired_gain(dict(enumerate((-row).tolist())), reference) for row in gain_N6]
    assert 0.48 < np.mean([each.value > 0 and tests * each.p_value < 0.05 for each in found]) < 0.6

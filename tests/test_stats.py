"""Fits and intervals on simulated losses: coverage, bias, and where there is too little to tell."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune import stats
from mup_tune.stats import Sigma, fit_parabola, holm, near_minimum, paired_gain, scatter_sigma, sigma_delta

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)


def simulated(rng, values, seeds, noise):
    """Losses by seed at points of true loss ``values``, with seed offsets that dwarf everything."""
    loss_KS = np.asarray(values)[:, None] + rng.normal(0, 0.5, (1, seeds)) + rng.normal(0, noise, (len(values), seeds))
    return [dict(enumerate(row.tolist())) for row in loss_KS]


def parabola(optimum, curvature=0.05, grid=GRID):
    return [2 + curvature / 2 * (x - optimum) ** 2 for x in grid]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_the_optimums_interval_covers_it(seeds, noise):
    rng = np.random.default_rng(seeds)
    optima = rng.uniform(-1, 1, 1000)
    fits = [(fit_parabola(GRID, simulated(rng, parabola(each), seeds, noise)), each) for each in optima]
    fits = [(fit, each) for fit, each in fits if fit is not None]
    assert len(fits) > 987
    assert 0.90 < np.mean([fit.optimum.low <= each <= fit.optimum.high for fit, each in fits]) < 0.99
    assert abs(np.mean([fit.optimum.value - each for fit, each in fits])) < 0.02
    assert 0.90 < np.mean([fit.curvature.low <= 0.05 <= fit.curvature.high for fit, _ in fits]) < 0.995


def test_pooled_noise_narrows_the_interval_and_still_covers():
    rng, optima = np.random.default_rng(0), np.random.default_rng(1).uniform(-1, 1, 400)
    hits = []
    for optimum in optima:
        points = simulated(rng, parabola(optimum), 1, 0.004)
        hits.append(fit_parabola(GRID, points, Sigma(0.004 * 2**0.5, 40)))
    covered = [fit.optimum.low <= each <= fit.optimum.high for fit, each in zip(hits, optima, strict=True)]
    assert 0.90 < np.mean(covered) < 0.99
    assert fit_parabola(GRID, points).optimum.high - fit_parabola(GRID, points).optimum.low > 1e-3


@pytest.mark.parametrize(("seeds", "pooled"), [(2, False), (3, False), (4, False), (1, True), (2, True), (3, True)])
def test_the_gains_interval_covers_it(seeds, pooled):
    rng, hits = np.random.default_rng(seeds), []
    for _ in range(600):
        points = simulated(rng, [2.0, 1.99] + [2.0] * 10, seeds if seeds > 1 else 2, 0.006)
        sigma = sigma_delta(points[2:]) if pooled else None
        candidate, reference = ({s: each[s] for s in range(seeds)} for each in (points[1], points[0]))
        gain = paired_gain(candidate, reference, sigma)
        hits.append(gain.low <= 0.01 <= gain.high)
    assert 0.92 < np.mean(hits) < 0.98


def test_sigma_delta_is_the_sd_of_a_difference_and_ignores_seed_offsets():
    rng = np.random.default_rng(0)
    found = [sigma_delta(simulated(rng, [2.0, 2.1, 2.3, 2.0], 3, 0.01)) for _ in range(500)]
    assert found[0].dof == 6
    assert np.mean([each.value**2 for each in found]) == pytest.approx(2 * 0.01**2, rel=0.06)
    # χ² with the dof claimed has variance 2/dof: the number of degrees of freedom is not overstated.
    assert np.var([each.value**2 / (2 * 0.01**2) for each in found]) == pytest.approx(2 / 6, rel=0.25)


def test_scatter_about_a_parabola_tells_the_noise_of_one_seed():
    rng = np.random.default_rng(0)
    curves = [(GRID, [next(iter(p.values())) for p in simulated(rng, parabola(0.3), 1, 0.01)]) for _ in range(300)]
    found = scatter_sigma(curves)
    # One seed shares one offset per curve here, which a parabola's constant takes up.
    assert found.value == pytest.approx(0.01 * 2**0.5, rel=0.1)
    assert found.dof == 600
    assert scatter_sigma([(GRID[:3], [1.0, 2.0, 4.0])]) is None


def test_where_nothing_tells_the_noise_there_is_no_gain():
    assert paired_gain({0: 1.0}, {0: 2.0}) is None
    assert paired_gain({0: 1.0}, {1: 2.0}, Sigma(0.1, 5)) is None
    assert paired_gain({0: 1.0, 1: None}, {0: 2.0, 1: 2.0}, Sigma(0.1, 5)) is None
    assert sigma_delta([{0: 1.0}, {0: 2.0}]) is None
    same = paired_gain({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_only_common_seeds_count():
    gain = paired_gain({0: 1.0, 1: 5.0, 7: 0.0}, {0: 1.5, 1: 5.7, 9: 0.0})
    assert gain.value == pytest.approx(0.6)


def test_a_point_that_diverged_on_any_seed_is_no_point():
    points = [{0: value, 1: value + 0.5} for value in parabola(0.4)]
    points[4][1] = None
    fit = fit_parabola(GRID, points)
    assert (fit.points_used, fit.edge) == (4, False)
    assert fit.optimum.value == pytest.approx(0.4, abs=1e-6)


def test_a_cliff_neither_bends_the_fit_nor_invites_the_optimum():
    values = [2.3, 2.15, 2.05, 2.02, 6.0]
    assert near_minimum(values) == [0, 1, 2, 3]
    fit = fit_parabola(GRID, [{0: value, 1: value} for value in values], Sigma(0.005, 8))
    assert 0 < fit.optimum.value <= 1
    assert not fit.edge
    # Without the cliff, parabolas keep all their points, wherever the optimum is.
    for optimum in np.linspace(-3, 3, 41):
        assert near_minimum(parabola(optimum)) == list(range(5))


def test_an_optimum_beyond_the_grid_is_clamped_and_flagged():
    rng = np.random.default_rng(0)
    fit = fit_parabola(GRID, simulated(rng, parabola(3.0), 3, 0.001))
    assert fit.optimum.value == 2
    assert fit.edge
    assert fit.optimum.high > 2.5  # the CI says that the optimum is not inside


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0],  # too few
        [1.0, 3.0, 4.0, 4.5, 4.6],  # concave
        [2.0, 2.2, 2.0, 2.2, 2.0],  # a zigzag explains nothing
    ],
)
def test_no_parabola_where_none_fits(values):
    assert fit_parabola(GRID[: len(values)], [{0: value, 1: value} for value in values], Sigma(0.001, 8)) is None


def test_asymmetry_biases_little():
    rng, errors = np.random.default_rng(0), []
    for optimum in rng.uniform(-1, 1, 300):
        values = [2 + 0.025 * (x - optimum) ** 2 * (1 + 0.15 * (x - optimum)) for x in GRID]
        errors.append(fit_parabola(GRID, simulated(rng, values, 3, 0.002)).optimum.value - optimum)
    assert abs(np.mean(errors)) < 0.1  # a tenth of the grid's spacing, where the sides differ by up to 2.6 times


def test_fits_repeat_exactly():
    points = simulated(np.random.default_rng(0), parabola(0.3), 4, 0.01)
    assert fit_parabola(GRID, points) == fit_parabola(GRID, [dict(reversed(point.items())) for point in points])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_orders_bounds_and_matches_its_definition(p_values):
    adjusted = holm(p_values)
    ranked = sorted(zip(p_values, adjusted, strict=True))
    assert all(low[1] <= high[1] for low, high in pairwise(ranked))
    assert all(p <= each <= min(1, len(p_values) * p) + 1e-12 or each <= 1 for p, each in ranked)
    assert ranked[0][1] == pytest.approx(min(1, len(p_values) * ranked[0][0]))


def test_a_difference_of_symmetric_intervals_has_the_root_of_summed_squares():
    found = stats.difference(stats.Interval(7.0, 4.0, 10.0), stats.Interval(3.0, -1.0, 7.0))
    assert (found.value, found.low, found.high) == pytest.approx((4.0, -1.0, 9.0))


def test_a_difference_takes_each_end_from_the_ends_that_make_it():
    one, other = stats.Interval(5.0, 2.0, 6.0), stats.Interval(1.0, 0.5, 5.0)
    found = stats.difference(one, other)
    assert (found.low, found.high) == pytest.approx((4 - np.hypot(3, 4), 4 + np.hypot(1, 0.5)))
    swapped = stats.difference(other, one)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-4, -found.high, -found.low))


@pytest.mark.parametrize("seeds", [3, 12])
def test_the_interval_of_a_difference_covers_it(seeds):
    """Of two independent paired gains whose noises lie four times apart."""
    rng, held = np.random.default_rng(seeds), 0
    for _ in range(1500):
        gains = [
            paired_gain(candidate, reference)
            for true, noise in ((0.05, 0.02), (0.02, 0.005))
            for reference, candidate in [simulated(rng, [2.0, 2.0 - true], seeds, noise)]
        ]
        found = stats.difference(*gains)
        held += found.low <= 0.03 <= found.high
    assert 0.935 < held / 1500 < 0.99


def test_holm_on_known_numbers():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.one_of(st.none(), st.floats(0.5, 9)), min_size=1, max_size=9))
def test_near_minimum_is_one_run_of_usable_points_around_the_best(values):
    block = near_minimum(values)
    best = stats.argmin(values)
    if best is None:
        assert block == []
    else:
        assert best in block
        assert block == list(range(block[0], block[-1] + 1))
        assert all(values[index] is not None for index in block)

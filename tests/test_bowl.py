"""Bowls over two axes, on surfaces with a known optimum."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mup_tune.stats import fit_bowl

GRID = list(product((-1.0, 0.0, 1.0), (-2.0, -1.0, 0.0, 1.0)))
XX, YY, XY = 0.10, 0.06, -0.05


def surface(x: float, y: float, at: tuple[float, float] = (0.3, -0.6)) -> float:
    u, v = x - at[0], y - at[1]
    return 2.0 + (XX * u**2 + YY * v**2 + 2 * XY * u * v) / 2


def trained(places, noise=0.0, seeds=3, draw=0, at=(0.3, -0.6)):
    rng = np.random.default_rng(draw)
    common = rng.normal(0, 0.3, seeds)
    return [{s: surface(*p, at) + common[s] + rng.normal(0, noise) for s in range(seeds)} for p in places]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_an_exact_bowl_is_recovered_whatever_the_order_of_its_points(seeds):
    places = GRID[::-1]
    bowl = fit_bowl(places, trained(places, seeds=seeds))
    assert (bowl.x.value, bowl.y.value) == pytest.approx((0.3, -0.6), abs=1e-6)
    assert (bowl.xx.value, bowl.yy.value, bowl.xy.value) == pytest.approx((XX, YY, XY), abs=1e-6)
    assert bowl.above_floor(1.0, 1.0) == pytest.approx(surface(1.0, 1.0) - 2.0, abs=1e-6)
    assert bowl.points_used == len(GRID)


@pytest.mark.parametrize("seeds", [2, 3])
def test_bias_and_coverage_over_many_draws(seeds):
    bowls = [fit_bowl(GRID, trained(GRID, noise=0.003, seeds=seeds, draw=draw)) for draw in range(300)]
    assert all(bowls)
    for name, truth in (("x", 0.3), ("y", -0.6), ("xx", XX), ("yy", YY), ("xy", XY)):
        found = [getattr(bowl, name) for bowl in bowls]
        assert np.mean([each.value for each in found]) == pytest.approx(truth, abs=0.03)
        assert np.mean([each.low <= truth <= each.high for each in found]) > 0.9, name


def test_cliffs_diverged_points_and_what_is_behind_them_are_left_out():
    places = [*GRID, (2.0, 0.0), (3.0, 0.0), (-1.0, 2.0)]
    losses = trained(places)
    losses[-3] = {**losses[-3], 1: None}
    losses[-1] = dict.fromkeys(losses[-1], 9.0)
    # (3, -3) is behind a cliff at (1.5, -1.5) only if the best point, (0, 0) or near, sees both in line.
    bowl = fit_bowl(places, losses)
    assert (bowl.x.value, bowl.y.value) == pytest.approx((0.3, -0.6), abs=0.02)
    assert bowl.points_used in (len(GRID), len(GRID) + 1)


def test_a_vertex_outside_is_the_lowest_point_of_the_box():
    # On a ridge the box's lowest point is not the vertex with each coordinate clipped.
    bowl = fit_bowl(GRID, trained(GRID, at=(1.6, 0.0)))
    assert bowl.vertex == pytest.approx((1.6, 0.0), abs=1e-6)
    assert (bowl.x.value, bowl.y.value) == pytest.approx((1.0, -XY / YY * (1.0 - 1.6)), abs=1e-6)
    assert bowl.x.high >= 1.0


def test_no_bowl_where_the_best_point_is_the_better_answer():
    assert fit_bowl(GRID[:6], trained(GRID[:6])) is None
    line = [(float(x), 0.0) for x in range(-4, 5)]
    assert fit_bowl(line, trained(line)) is None  # nothing tells the second axis
    saddle = [dict.fromkeys(range(3), 2 + 0.1 * x * x - 0.1 * y * y) for x, y in GRID]
    assert fit_bowl(GRID, saddle) is None
    rng = np.random.default_rng(3)
    noise = [fit_bowl(GRID, [{s: 2 + rng.normal(0, 0.01) for s in range(3)} for _ in GRID]) for _ in range(60)]
    assert np.mean([each is None for each in noise]) > 0.5
    assert fit_bowl(GRID, [{0: None, 1: None}] * len(GRID)) is None


def test_a_surface_that_is_no_bowl_says_so_and_is_less_sure():
    def skewed(strength):
        rng = np.random.default_rng(0)
        rows = trained(GRID, noise=0.001)
        return [
            {s: loss + strength * (x - 0.3) ** 3 + rng.normal(0, 1e-4) for s, loss in row.items()}
            for (x, _), row in zip(GRID, rows, strict=True)
        ], [
            {s: loss + strength * (y + 0.6) ** 3 for s, loss in row.items()}
            for (_, y), row in zip(GRID, rows, strict=True)
        ]

    plain, bent = fit_bowl(GRID, skewed(0.0)[1]), fit_bowl(GRID, skewed(0.012)[1])
    assert plain.lack_of_fit > 0.1 > bent.lack_of_fit
    assert bent.y.high - bent.y.low > plain.y.high - plain.y.low

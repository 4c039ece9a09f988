"""Invariants of the fold-over design."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.search.fold_over import PER_UNIT, RADII, STAYS, fold_over, on_grid

SIZES = {
    "axes": st.integers(1, 40),
    "pairs": st.integers(1, 60),
    "radius": st.sampled_from([0.05, 0.35, 0.5, 1.0, 4.0]),
}


@given(**SIZES, seed=st.integers(0, 2**32))
def test_pairs_cancel_and_rows_have_three_levels_of_one_radius(axes: int, pairs: int, radius: float, seed: int) -> None:
    design = fold_over(axes, pairs, radius, (seed, 1))
    assert design.shape == (2 * pairs, axes)
    assert (design[::2] == -design[1::2]).all()
    allowed = on_grid(np.array(RADII) * radius)
    for row in np.abs(design):
        levels = set(row[row > 0])
        assert len(levels) <= 1
        assert levels <= set(allowed)
    assert (design * PER_UNIT == np.round(design * PER_UNIT)).all()


@given(**SIZES, seed=st.integers(0, 2**32))
def test_equal_seeds_draw_equal_designs(axes: int, pairs: int, radius: float, seed: int) -> None:
    assert (fold_over(axes, pairs, radius, (seed, 2)) == fold_over(axes, pairs, radius, (seed, 2))).all()


def test_rounds_and_tuning_seeds_draw_their_own() -> None:
    drawn = {fold_over(20, 20, 0.5, seeds).tobytes() for seeds in [(0, 1), (0, 2), (1, 1), (0, 1, 1)]}
    assert len(drawn) == 4


def test_levels_and_radii_come_as_often_as_they_say_and_axes_are_not_confounded() -> None:
    design = fold_over(30, 2000, 0.5, (3,))
    rows = design[::2]
    assert abs((rows == 0).mean() - STAYS) < 0.01
    assert abs((rows > 0).mean() - (rows < 0).mean()) < 0.01
    radius = np.abs(rows).max(axis=1)
    for each in on_grid(np.array(RADII) * 0.5):
        assert abs((radius == each).mean() - 1 / 3) < 0.04
    assert np.abs(np.corrcoef(rows.T) - np.eye(30)).max() < 0.1


def test_a_half_difference_holds_no_curvature_and_a_half_sum_no_slope() -> None:
    rng = np.random.default_rng(0)
    slope, hessian = rng.normal(size=7), rng.normal(size=(7, 7))
    design = fold_over(7, 9, 0.5, (4,))
    losses = design @ slope + np.einsum("ni,ij,nj->n", design, hessian, design)
    np.testing.assert_allclose((losses[::2] - losses[1::2]) / 2, design[::2] @ slope, atol=1e-12)
    bends = np.einsum("ni,ij,nj->n", design[::2], hessian, design[::2])
    np.testing.assert_allclose((losses[::2] + losses[1::2]) / 2, bends, atol=1e-12)

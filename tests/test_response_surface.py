"""The response surface: closed forms, invariances, outliers, and whether its posterior keeps its word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.search.fold_over import fold_over
from mup_tune.stats.curvatures import Curvatures
from mup_tune.stats.surface import Surface, fit_surface

SEEDS = (0, 1, 2)
OFFSETS = np.array([0.3, -0.2, 0.05])


def design(axes: int, pairs: int, draw: int, radius: float = 0.5) -> tuple[np.ndarray, list[int]]:
    """Trials and their seeds, two of a pair on one."""
    return fold_over(axes, pairs, radius, (draw, 7)), [SEEDS[row // 2 % 3] for row in range(2 * pairs)]


def quadratic(x_NK: np.ndarray, slope_K: np.ndarray, hessian_KK: np.ndarray) -> np.ndarray:
    return x_NK @ slope_K + np.einsum("ni,ij,nj->n", x_NK, hessian_KK, x_NK) / 2


def drawn(axes: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and curvatures, in nats/token per unit and unit², from the prior: optima some 2/3 off."""
    rng = np.random.default_rng([draw, 11])
    curvature_K = 0.03 * np.exp(0.6 * rng.normal(size=axes))
    return -curvature_K * rng.normal(0, 0.67, size=axes), curvature_K


def noisy(axes: int, pairs: int, draw: int, noise: float) -> tuple[Surface, np.ndarray, np.ndarray]:
    slope_K, curvature_K = drawn(axes, draw)
    x_NK, seeds = design(axes, pairs, draw)
    losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + OFFSETS[seeds]
    losses_N = losses_N + np.random.default_rng([draw, 12]).normal(0, noise, len(losses_N))
    return fit_surface(x_NK, seeds, losses_N, np.zeros(axes)), slope_K, curvature_K


def slopes(surface: Surface) -> np.ndarray:
    return np.array([each.value for each in surface.slopes()])


def curvatures(surface: Surface) -> np.ndarray:
    return np.array([each.value for each in surface.curvatures()])


@pytest.mark.parametrize(
    "noise",
    [
        0.0001,
        0.002,
    ],
)
def test_a_quadratic_is_recovered_and_so_is_its_lowest_point(noise: float) -> None:
    slope_K, curvature_K = np.array([-0.03, 0.01, 0.02, -0.005]), np.array([0.05, 0.02, 0.04, 0.03])
    x_NK, seeds = design(4, 100, 0)
    losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + OFFSETS[seeds]
    found = fit_surface(x_NK, seeds, losses_N + np.random.default_rng(0).normal(0, noise, 200), np.zeros(4))
    assert slopes(found) == pytest.approx(slope_K, abs=1e-4 + noise)
    assert curvatures(found) == pytest.approx(curvature_K, abs=5e-4 + 5 * noise)
    assert found.minimum(2.0) == pytest.approx(-slope_K / curvature_K, abs=0.03 + 60 * noise)
    assert found.minimum(0.25) == pytest.approx(np.clip(-slope_K / curvature_K, -0.25, 0.25), abs=0.03 + 60 * noise)
    assert found.noise == pytest.approx(noise, abs=1e-4 + 0.2 * noise)
    step_K = np.array([0.4, -0.2, -0.3, 0.1])
    true = -quadratic(step_K[None], slope_K, np.diag(curvature_K))[0]
    assert found.gain(step_K).value == pytest.approx(true, abs=2e-4 + noise)


def test_losses_without_noise_have_a_surface_too() -> None:
    x_NK, seeds = design(4, 100, 0)
    slope_K, curvature_K = np.array([-0.03, 0.01, 0.02, -0.005]), np.array([0.05, 0.02, 0.04, 0.03])
    found = fit_surface(x_NK, seeds, quadratic(x_NK, slope_K, np.diag(curvature_K)), np.zeros(4))
    # Rounding is the noise that is left, and the fit is none the better for it. It still points the way.
    assert (np.sign(slopes(found)) == np.sign(slope_K)).all()
    assert found.gain(found.minimum(0.5)).value > 0


def test_interactions_turn_the_step() -> None:
    """Two axes coupled so strongly that each alone would go the other way."""
    slope_K, hessian_KK = np.array([-0.02, -0.004]), np.array([[0.05, 0.03], [0.03, 0.05]])
    x_NK, seeds = design(2, 60, 1)
    losses_N = quadratic(x_NK, slope_K, hessian_KK) + np.random.default_rng(1).normal(0, 0.001, 120)
    found = fit_surface(x_NK, seeds, losses_N + OFFSETS[seeds], np.zeros(2))
    assert found.hessian == pytest.approx(hessian_KK, abs=0.006)
    assert found.minimum(2.0) == pytest.approx(-np.linalg.solve(hessian_KK, slope_K), abs=0.2)
    assert found.minimum(2.0)[1] < 0 < -slope_K[1] / hessian_KK[1, 1]


def test_effects_are_told_at_the_centre_and_not_at_the_origin() -> None:
    slope_K, curvature_K = np.array([-0.03, 0.01, 0.02]), np.array([0.05, 0.02, 0.04])
    centre_K = np.array([0.3, -0.2, 0.1])
    x_NK, seeds = design(3, 40, 2)
    losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + np.random.default_rng(2).normal(0, 0.001, 80)
    found = fit_surface(x_NK, seeds, losses_N, centre_K)
    assert slopes(found) == pytest.approx(slope_K + curvature_K * centre_K, abs=4e-3)


def shifted(by_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and curvatures [12] without and with ``by_N`` [40] on the losses."""
    slope_K, curvature_K = drawn(6, 3)
    x_NK, seeds = design(6, 20, 3)
    losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + np.random.default_rng(3).normal(0, 0.005, 40)
    fits = [fit_surface(x_NK, seeds, each, np.zeros(6)) for each in (losses_N, losses_N + by_N)]
    assert fits[1].noise == pytest.approx(fits[0].noise, rel=1e-5)
    plain, other = (np.concatenate([slopes(each), curvatures(each)]) for each in fits)
    return plain, other


@pytest.mark.parametrize("shift", [3.0, -40.0])
def test_a_level_drops_out(shift: float) -> None:
    plain, other = shifted(np.full(40, shift))
    assert other == pytest.approx(plain, abs=1e-7)


@pytest.mark.parametrize("shift", [1.0, -40.0])
def test_offsets_of_seeds_drop_out(shift: float) -> None:
    plain, other = shifted(shift * OFFSETS[design(6, 20, 3)[1]])
    assert other == pytest.approx(plain, abs=1e-7)


@given(st.integers(0, 2**16), st.sampled_from([0.1, 8.0, 1000.0]))
@settings(max_examples=4, deadline=None)
def test_order_of_trials_and_axes_is_nothing_and_losses_scale(draw: int, scale: float) -> None:
    slope_K, curvature_K = drawn(5, draw)
    x_NK, seeds = design(5, 15, draw)
    rng = np.random.default_rng(draw)
    losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + OFFSETS[seeds] + rng.normal(0, 0.005, 30)
    plain = fit_surface(x_NK, seeds, losses_N, np.zeros(5))
    rows, axes = rng.permutation(30), rng.permutation(5)
    other = fit_surface(x_NK[rows][:, axes], [seeds[row] for row in rows], losses_N[rows], np.zeros(5))
    assert slopes(other) == pytest.approx(slopes(plain)[axes], rel=1e-4, abs=1e-7)
    assert curvatures(other) == pytest.approx(curvatures(plain)[axes], rel=1e-4, abs=1e-7)
    step_K = np.full(5, 0.3)
    large = fit_surface(x_NK, seeds, scale * losses_N, np.zeros(5))
    assert slopes(large) == pytest.approx(scale * slopes(plain), rel=1e-4, abs=1e-7 * scale)
    assert large.noise == pytest.approx(scale * plain.noise, rel=1e-4)
    assert large.gain(step_K).low == pytest.approx(scale * plain.gain(step_K).low, rel=1e-3, abs=1e-7 * scale)
    assert large.minimum(0.75) == pytest.approx(plain.minimum(0.75), abs=0.02)


def test_a_cliff_does_not_steer() -> None:
    """A tenth of the trials lie some hundred times the noise too high."""
    kept = []
    for draw in range(6):
        slope_K, curvature_K = drawn(8, draw)
        x_NK, seeds = design(8, 40, draw)
        rng = np.random.default_rng(draw)
        losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + OFFSETS[seeds] + rng.normal(0, 0.003, 80)
        clean = fit_surface(x_NK, seeds, losses_N, np.zeros(8)).minimum(0.75)
        cliff_N = np.where(rng.random(80) < 0.1, 0.3 * rng.random(80), 0.0)
        step_K = fit_surface(x_NK, seeds, losses_N + cliff_N, np.zeros(8)).minimum(0.75)

        def gain(step_K: np.ndarray, slope_K: np.ndarray = slope_K, c_K: np.ndarray = curvature_K) -> float:
            return -float(quadratic(step_K[None], slope_K, np.diag(c_K))[0])

        kept.append((gain(step_K), gain(clean)))
    steered, clean_too = np.sum(kept, axis=0)
    assert steered > 0.6 * clean_too


def test_a_flat_landscape_promises_nothing_that_its_interval_excludes() -> None:
    shown = 0
    for draw in range(12):
        x_NK, seeds = design(12, 24, draw)
        losses_N = OFFSETS[seeds] + np.random.default_rng([draw, 5]).normal(0, 0.005, 48)
        found = fit_surface(x_NK, seeds, losses_N, np.zeros(12))
        gain = found.gain(found.minimum(0.75))
        shown += gain.low > 0
        assert gain.value < 2 * 0.005
        assert 0.0025 < found.noise < 0.0075
    assert shown <= 1


@pytest.mark.parametrize(
    ("axes", "pairs", "noise"),
    [
        (12, 30, 0.02),
        (24, 40, 0.02),
        (12, 30, 0.006),
        (12, 30, 0.0015),
    ],
)
def test_intervals_cover_on_landscapes_from_the_prior(axes: int, pairs: int, noise: float) -> None:
    """95 % intervals of slopes, of curvatures and of the gain of steps that were not chosen."""
    held, kept, gains = [], [], []
    for draw in range(180 // axes):
        found, slope_K, curvature_K = noisy(axes, pairs, draw, noise)
        held += [each.low <= true <= each.high for each, true in zip(found.slopes(), slope_K, strict=True)]
        kept += [each.low <= true <= each.high for each, true in zip(found.curvatures(), curvature_K, strict=True)]
        for step_K in np.random.default_rng(draw).normal(0, 0.4, (6, axes)):
            off = found.gain(step_K).value + quadratic(step_K[None], slope_K, np.diag(curvature_K))[0]
            gains.append(abs(off) < 1.96 * found.sd(step_K))
    assert np.mean(held) >= 0.87
    assert np.mean(kept) >= 0.87
    assert np.mean(gains) >= 0.85


def test_shrinking_beats_least_squares_where_trials_are_few() -> None:
    """48 trials for 24 slopes and curvatures: what the step gains of what there is to gain."""
    found, least = [], []
    for draw in range(8):
        surface, slope_K, curvature_K = noisy(12, 24, draw, 0.02)
        x_NK, seeds = design(12, 24, draw)
        losses_N = quadratic(x_NK, slope_K, np.diag(curvature_K)) + OFFSETS[seeds]
        losses_N = losses_N + np.random.default_rng([draw, 12]).normal(0, 0.02, 48)
        terms = np.column_stack([x_NK, x_NK**2 / 2, np.eye(3)[seeds]])
        fit = np.linalg.lstsq(terms, losses_N, rcond=None)[0]
        down_K = np.where(fit[12:24] > 0, np.clip(-fit[:12] / fit[12:24], -0.75, 0.75), -0.75 * np.sign(fit[:12]))
        for gains, step_K in ((found, surface.minimum(0.75)), (least, down_K)):
            gains.append(-quadratic(step_K[None], slope_K, np.diag(curvature_K))[0])
    assert np.sum(found) > 1.1 * np.sum(least)


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="3 trials on 2 seeds are too few for a surface"):
        fit_surface(np.zeros((3, 2)), [0, 0, 1], np.zeros(3), np.zeros(2))


def test_an_axis_without_news_keeps_its_prior() -> None:
    """Lognormal curvature and slope −c·d: mean and variance in closed form."""
    prior = Curvatures(np.log(0.03), 0.5, 0.7)
    _, mean_K2, covariance_K22 = prior.beside(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    mean = 0.03 * np.exp(0.5**2 / 2)
    square = 0.03**2 * np.exp(2 * 0.5**2)
    assert mean_K2[0] == pytest.approx([0, mean], abs=1e-9, rel=0.02)
    assert covariance_K22[0, 0, 0] == pytest.approx(0.7**2 * square, rel=0.06)
    assert covariance_K22[0, 1, 1] == pytest.approx(square - mean**2, rel=0.06)
    assert covariance_K22[0, 0, 1] == pytest.approx(0, abs=1e-9)


def test_a_sharp_measurement_overrules_the_prior() -> None:
    prior = Curvatures(np.log(0.03), 0.5, 0.7)
    at_2, precision_22 = np.array([-0.01, 0.04]), np.diag([1 / 0.003**2, 1 / 0.003**2])
    _, mean_K2, covariance_K22 = prior.beside(precision_22[None], (precision_22 @ at_2)[None])
    assert mean_K2[0] == pytest.approx(at_2, abs=0.001)
    assert np.sqrt(np.diag(covariance_K22[0])) == pytest.approx([0.003, 0.003], rel=0.25)

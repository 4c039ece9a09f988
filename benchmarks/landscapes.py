"""What the fits of mup_tune.stats are worth on landscapes whose truth is known, and how often ``micro`` errs.

Losses are simulated as (landscape) + (seed, shared by all points) + (noise), on a grid of factors of 2 with
σ_Δ from the points themselves, as ``elr_ewd`` does it. Shares are over draws; a CI is honest where it covers
90 to 99 %. The second table is on groups of 12: how often any multiplier of a flat group moves, and how often
one that matters does. Run: ``python benchmarks/landscapes.py [DRAWS]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from mup_tune import stats
from mup_tune.multipliers import GROUPS
from mup_tune.search import swept_axis
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.stats import Losses, Parabola

Array = NDArray[np.float64]

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
CURVATURE = 0.05  # nats/token per (log2)²: a factor of 2 beside the optimum costs 25 mnat/token
SEED_SD = 0.5  # what a seed adds to all points alike: pairing has to remove it
NOISES = (0.002, 0.006)
SEEDS = (2, 3)


@dataclass(frozen=True)
class Bowl:
    """Loss over z = offset − optimum, log2. Members diverge at z > ``cliff``; ``optima`` are drawn evenly."""

    loss: Callable[[Array], Array]
    cliff: float = inf
    optima: tuple[float, float] = (-1.0, 1.0)
    lowest: float = 0.0  # z of the best place that trains

    @property
    def curvature(self) -> float:
        """Second difference over one step of the grid: what ½·curvature says a factor of 2 costs."""
        low, mid, high = (float(self.loss(np.array([z]))[0]) for z in (-1.0, 0.0, 1.0))
        return low + high - 2 * mid


def parabola(z: Array) -> Array:
    return CURVATURE / 2 * z**2


def steep(a: float) -> Callable[[Array], Array]:
    """Curvature e^(a·z): flat on the left, a wall on the right; at a = 1 the sides differ 4 times at ±2."""
    return lambda z: CURVATURE / a**2 * (np.exp(a * z) - a * z - 1)


BOWLS: Mapping[str, Bowl] = {
    "parabola": Bowl(parabola),
    "skewed (cubic)": Bowl(lambda z: parabola(z) * (1 + 0.15 * z)),
    "steep right": Bowl(steep(1.0)),
    "very steep right": Bowl(steep(1.5)),
    "stiffening": Bowl(lambda z: parabola(z) * (1 + z**2 / 2)),
    "softening": Bowl(lambda z: CURVATURE * (np.sqrt(1 + z**2) - 1)),
    "flat bottom (z⁴)": Bowl(lambda z: CURVATURE / 8 * z**4),
    "kink at +0.8": Bowl(lambda z: parabola(z) + 0.3 * np.maximum(z - 0.8, 0)),
    "cliff at +0.7": Bowl(parabola, cliff=0.7),
    "cliff at −0.3": Bowl(parabola, cliff=-0.3, lowest=-0.3),
    "beyond the grid": Bowl(parabola, optima=(2.3, 3.5)),
    "flat": Bowl(np.zeros_like),
}


@dataclass(frozen=True)
class Draw:
    """One simulated sweep. ``fit`` is None where the best point is the better answer."""

    optimum: float
    fit: Parabola | None
    gain_covered: bool | None  # None where the centre is the best point
    moved: bool

    @property
    def error(self) -> float:
        return np.nan if self.fit is None else self.fit.optimum.value - self.optimum


def simulate(bowl: Bowl, optimum: float, seeds: int, noise: float, rng: np.random.Generator) -> list[Losses]:
    """Losses by seed at every point of the grid, None where the member diverged."""
    z = np.array(GRID) - optimum
    own_KS, common_S = rng.normal(0, noise, (len(GRID), seeds)), rng.normal(0, SEED_SD, seeds)
    loss_KS = 2 + bowl.loss(np.minimum(z, 9))[:, None] + common_S + own_KS
    return [
        dict.fromkeys(range(seeds)) if z_k > bowl.cliff else dict(enumerate(row.tolist()))
        for z_k, row in zip(z, loss_KS, strict=True)
    ]


def draw(bowl: Bowl, seeds: int, noise: float, rng: np.random.Generator) -> Draw:
    optimum = float(rng.uniform(*bowl.optima))
    points = simulate(bowl, optimum, seeds, noise, rng)
    values = stats.means(points)
    sigma = stats.sigma_delta([stats.usable(points[index]) or {} for index in stats.near_minimum(values)])
    best, centre = stats.argmin(values), GRID.index(0.0)
    gain = None if best in (None, centre) else stats.paired_gain(points[best or 0], points[centre], sigma)
    covered, moved = None, False
    if gain is not None and gain.p_value is not None:
        at_centre, at_best = bowl.loss(np.array([0.0, GRID[best or 0]]) - optimum)
        covered = bool(gain.low <= at_centre - at_best <= gain.high)
        moved = gain.p_value * (sum(value is not None for value in values) - 1) < 0.05
    return Draw(optimum + bowl.lowest, stats.fit_parabola(GRID, points, sigma), covered, moved)


@dataclass(frozen=True)
class Measured:
    """Shares and errors over draws; of the fits, over the draws that have one."""

    bias: float
    rmse: float
    optimum: float
    curvature: float
    gain: float
    moved: float
    robust: float
    fitted: float
    lack_of_fit: tuple[float, ...]


def measure(name: str, seeds: int, noise: float, draws: int) -> Measured:
    bowl, rng = BOWLS[name], np.random.default_rng([seeds, round(1e6 * noise)])
    found = [draw(bowl, seeds, noise, rng) for _ in range(draws)]
    fits = [(each.fit, each.optimum) for each in found if each.fit is not None]
    errors = np.array([each.error for each in found if each.fit is not None] or [np.nan])
    return Measured(
        bias=float(errors.mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        optimum=_share(fit.optimum.low <= truth <= fit.optimum.high for fit, truth in fits),
        curvature=_share(fit.curvature.low <= bowl.curvature <= fit.curvature.high for fit, _ in fits),
        gain=_share(each.gain_covered for each in found if each.gain_covered is not None),
        moved=_share(each.moved for each in found),
        robust=_share(fit.robust for fit, _ in fits),
        fitted=len(fits) / draws,
        lack_of_fit=tuple(fit.lack_of_fit for fit, _ in fits if fit.lack_of_fit is not None),
    )


def group(distance: float, seeds: int, noise: float, draws: int) -> tuple[float, float]:
    """Shares of groups of 12 that move a flat multiplier, and the one whose optimum is ``distance`` away.

    Decided as ``micro`` does, on the first grid: σ_Δ pooled over the group, Bonferroni over points, Holm over
    axes.
    """
    rng, centre = (
        np.random.default_rng([seeds, round(1e6 * noise), round(10 * distance)]),
        untuned(load_shape("cpu-32")),
    )
    wrong, right = 0.0, 0.0
    for _ in range(draws):
        curves = [SweptAxis(name, centre) for name in GROUPS["forward"]]
        common_S = 2 + rng.normal(0, SEED_SD, seeds)
        middle_S = common_S + rng.normal(0, noise, seeds)
        for place, curve in enumerate(curves):
            shift = distance if place == 0 else 0.0
            for x in GRID:
                bowl = float(parabola(np.array(x - shift)) - parabola(np.array(shift))) if shift else 0.0
                loss_S = middle_S if x == 0 else common_S + bowl + rng.normal(0, noise, seeds)
                curve.losses[x] = dict(enumerate(loss_S.tolist()))
        sigma = swept_axis.noise(curves)
        gains = [curve.gain(sigma) for curve in curves]
        p_values = stats.holm([1.0 if gain is None or gain.p_value is None else gain.p_value for gain in gains])
        right += p_values[0] < 0.05
        wrong += any(p < 0.05 for p in p_values[1 if distance else 0 :])
    return wrong / draws, right / draws


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return float(np.mean(counted)) if counted else np.nan


def _percent(share: float, decimals: int) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.{decimals}f} %"


def main(draws: int) -> None:
    print(f"{draws} draws a row; noise: SD of one loss, mnat/token; bias and RMSE of the optimum in log2.")
    print("| landscape | seeds | noise | bias | RMSE | optimum | curvature | gain | moved | robust | fitted |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in BOWLS:
        for noise in NOISES:
            for seeds in SEEDS:
                row = measure(name, seeds, noise, draws)
                covered = [_percent(each, 1) for each in (row.optimum, row.curvature, row.gain)]
                shares = [_percent(each, 0) for each in (row.moved, row.robust, row.fitted)]
                errors = [f"{row.bias:+.3f}", f"{row.rmse:.3f}"]
                if name == "flat":  # there is no optimum to miss
                    errors, covered[0] = ["–", "–"], "–"
                cells = [name, str(seeds), f"{1e3 * noise:g}", *errors, *covered, *shares]
                print(f"| {' | '.join(cells)} |", flush=True)
    print("\n| group of 12 | seeds | noise | a flat one moved | the one that matters moved |\n|---|---|---|---|---|")
    for distance in (0.0, 0.75, 1.0, 1.5):
        what = f"one optimum {distance:g} log2 away ({1e3 * parabola(np.array(distance)):.1f} mnat/token)"
        for noise in NOISES:
            for seeds in SEEDS:
                wrong, right = group(distance, seeds, noise, draws)
                found = f"{100 * right:.0f} %" if distance else "–"
                where = what if distance else "all flat"
                print(f"| {where} | {seeds} | {1e3 * noise:g} | {100 * wrong:.1f} % | {found} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)

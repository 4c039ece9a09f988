"""What the fits of mup_tune.stats are worth on landscapes whose truth is known, and how often ``micro`` errs.

Losses are simulated as (landscape) + (seed, shared by all points) + (noise), on a grid of factors of 2 with
σ_Δ from the points themselves, as ``elr_ewd`` does it. Shares are over draws; a CI is honest where it covers
90 to 99 %. The second table is on groups of 12: how often ``micro`` calls the gain of a flat multiplier
shown, and that of one that matters. The third walks whole ``micro`` stages on groups whose axes act on one
another, a tenth of the draws each: how often they move, and how much of the gain that there is they take.
Run: ``python benchmarks/landscapes.py [DRAWS]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from mup_tune import stats
from mup_tune.findings import State
from mup_tune.multipliers import GROUPS, MULTIPLIER_NAMES
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Context
from mup_tune.search.stages.micro import Micro
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.stats import Losses, Parabola
from mup_tune.trial import Budget

Array = NDArray[np.float64]

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
CURVATURE = 0.05  # nats/token per (log2)²: a factor of 2 beside the optimum costs 25 mnat/token
SEED_SD = 0.5  # what a seed adds to all points alike: pairing has to remove it
BUDGET = Budget(
    seq_len=128, batch_tokens=1024, total_tokens=20_480_000, warmup_tokens=0, decay_tokens=0, val_tokens=1024
)
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


def shown(distance: float, seeds: int, noise: float, draws: int) -> tuple[float, float]:
    """Shares of groups of 12 that show a flat axis' gain, and that of one ``distance`` log2 off its optimum.

    Told as ``micro`` does, on the first grid: σ_Δ pooled over the group, Bonferroni over points, Holm over
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


@dataclass(frozen=True)
class Coupled:
    """A group with curvatures drawn log-evenly in nats/token per (log2)², and optima either way, in log2.

    The Hessian is √C·(1 + ``coupling``·R)·√C with the curvatures C on its diagonal and R symmetric, its
    elements beside the diagonal normal with variance 1/axes.
    """

    axes: int
    curvatures: tuple[float, float] = (0.01, 0.05)
    distances: tuple[float, float] = (0.3, 1.0)
    coupling: float = 0.5


class Simulated(Asked):
    """What a stage asks for, trained at once on one draw of a group: a walk meets no barrier."""

    def __init__(self, group: Coupled, seeds: int, noise: float, rng: np.random.Generator) -> None:
        shape = load_shape("cpu-32")
        super().__init__(Context(shape, BUDGET, tuple(range(seeds))), {})
        self.start, self.noise, self.rng = untuned(shape), noise, rng
        self.names = MULTIPLIER_NAMES[: group.axes]
        root_n = np.exp(rng.uniform(*np.log(np.maximum(group.curvatures, 1e-30)), group.axes) / 2)
        self.optimum_n = rng.uniform(*group.distances, group.axes) * rng.choice([-1, 1], group.axes)
        mixed_nn = np.triu(rng.normal(0, 1 / sqrt(group.axes), (group.axes, group.axes)), 1)
        self.hessian_nn = np.outer(root_n, root_n) * (np.eye(group.axes) + group.coupling * (mixed_nn + mixed_nn.T))
        self.trained: dict[tuple[float, ...], dict[int, float]] = {}

    def truth(self, settings: Settings) -> float:
        """Loss above the optimum's, nats/token."""
        at = [log2(settings.value(name) / self.start.value(name)) for name in self.names]
        return float((at - self.optimum_n) @ self.hessian_nn @ (at - self.optimum_n)) / 2

    def losses(
        self,
        settings: Sequence[Settings],
        seeds: Iterable[int],
        shapes: Sequence[Shape | None] | None = None,
        around: Sequence[Settings] | None = None,
        budgets: Sequence[Budget | None] | None = None,
    ) -> list[Losses]:
        seeds, found = tuple(seeds), list[Losses]()
        for each in settings:
            known = self.trained.setdefault(tuple(each.value(name) for name in self.names), {})
            for seed in seeds:
                known.setdefault(seed, SEED_SD * seed + self.truth(each) + float(self.rng.normal(0, self.noise)))
            found.append({seed: known[seed] for seed in seeds})
        return found


@dataclass(frozen=True)
class Recovered:
    """Means over ``micro`` stages. ``gain``, ``shown`` and ``available`` in nats/token.

    ``gain``: the truth of what they moved. ``shown``: the truth of moving those axes alone, whole, whose own
    gain is shown. ``available``: from the start to the optimum. ``covered``: CIs of the shares' gains that
    hold the truth. ``promised``: predicted gains over the true ones of the whole joint move, as a ratio.
    """

    moved: float
    tested: float
    gain: float
    shown: float
    available: float
    covered: float
    promised: float


def recover(group: Coupled, stage: Micro, seeds: int, noise: float, draws: int) -> Recovered:
    rng = np.random.default_rng([group.axes, seeds, round(1e6 * noise)])
    rows, covered, promised, whole = [], list[bool](), 0.0, 0.0
    for _ in range(draws):
        asked = Simulated(group, seeds, noise, rng)
        ended = stage.walk(asked, State(asked.start))
        (done,) = ended.finding.result.passes
        before = asked.truth(asked.start)
        alone = {
            axis.axis: 2.0**axis.fit.optimum.value
            for axis in done.axes
            if axis.fit and axis.p_value is not None and axis.p_value < stats.SIGNIFICANT
        }
        for move in done.moves:
            shifted = asked.start.scaled({axis: 2.0 ** (move.share * x) for axis, x in done.prediction.joint.items()})
            true = before - asked.truth(shifted)
            covered.append(move.comparison.gain.low <= true <= move.comparison.gain.high)
            if move.share == 1:
                promised, whole = promised + done.prediction.gain.value, whole + true
        after, shown = asked.truth(ended.state.incumbent), asked.truth(asked.start.scaled(alone))
        rows.append((bool(done.taken), bool(done.moves), before - after, before - shown, before))
    return Recovered(*np.mean(rows, axis=0), covered=_share(covered), promised=promised / whole if whole else np.nan)


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return float(np.mean(counted)) if counted else np.nan


def _percent(share: float, decimals: int) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.{decimals}f} %"


COUPLED = (
    ("12 flat", Coupled(12, (0.0, 0.0), (0.0, 0.0)), (-4, -2, 0, 2, 4)),
    ("12 at their optima", Coupled(12, distances=(0.0, 0.0)), (-4, -2, 0, 2, 4)),
    ("12 optima 0.3–1 log2 away", Coupled(12), (-4, -2, 0, 2, 4)),
    ("the same, three points", Coupled(12), (-2, 0, 2)),
    ("35 optima 0.3–1 log2 away", Coupled(35), (-4, -2, 0, 2, 4)),
    ("the same, three points", Coupled(35), (-2, 0, 2)),
)


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
    print("\n| group of 12 | seeds | noise | a flat one shown | the one that matters shown |\n|---|---|---|---|---|")
    for distance in (0.0, 0.75, 1.0, 1.5):
        what = f"one optimum {distance:g} log2 away ({1e3 * parabola(np.array(distance)):.1f} mnat/token)"
        for noise in NOISES:
            for seeds in SEEDS:
                wrong, right = shown(distance, seeds, noise, draws)
                found = f"{100 * right:.0f} %" if distance else "–"
                where = what if distance else "all flat"
                print(f"| {where} | {seeds} | {1e3 * noise:g} | {100 * wrong:.1f} % | {found} |", flush=True)
    print("\n| `micro` on | noise | tested | moved | of the gain | by shown axes | covered | predicted/true |")
    print("|---|---|---|---|---|---|---|---|")
    for what, group_, offsets in COUPLED:
        for noise in (0.0025, 0.006, 0.015):
            names = list(MULTIPLIER_NAMES[: group_.axes])
            row = recover(group_, Micro(group=names, offsets=offsets), 3, noise, max(1, draws // 10))
            shares = [_percent(each, 1) for each in (row.tested, row.moved)]
            some = row.available > 1e-9
            shares += [_percent(each / row.available if some else np.nan, 0) for each in (row.gain, row.shown)]
            shares += [_percent(row.covered, 1), f"{row.promised:.2f}" if some else "–"]
            print(f"| {what} | {1e3 * noise:g} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)

"""How much of the gain at hand does a search recover? On simulated landscapes over ELR, EWD and all 35.

    python benchmarks/simulated_searches.py --workers 16 --out runs/simulated-searches.json

A landscape is over what a loss depends on: every group's own ELR and EWD or η, and the forward multipliers.
Each coordinate bends by 3 to 60 mnat/token per (log2)², and its optimum lies 0.3 to 1 log2 off, to either
side. Coordinates act on one another mildly (correlations of SD 0.05), bowls are skewed, and a cliff stands 2
log2 beyond the optimum along a random direction, behind which runs diverge. A trial adds its seed's offset
(SD 50 mnat) and noise. The stages themselves walk, their trials answered at once.

Told are: the share of the gain at hand, (f(start) − f(end)) / (f(start) − f(optimum)), as a mean with its
95 % CI over landscapes (Student's t); how often a flat landscape was moved; and how often the surface's
intervals hold the truth. All methods start from the same Settings and take the same trials, verification
included. On 16 cores the defaults take some five minutes without the Gaussian process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mup_tune import stats
from mup_tune.cli.output import print_rows
from mup_tune.files import write_atomic
from mup_tune.findings import State
from mup_tune.findings.surface import ResponseSurface
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search.coordinates import coordinates
from mup_tune.search.stage import Context, Stage
from mup_tune.search.stages.joint import Joint
from mup_tune.search.stages.micro import Micro
from mup_tune.search.stages.surface import SurfaceStage
from mup_tune.settings import Settings, untuned
from mup_tune.shape import load_shape
from mup_tune.stats.losses import Array
from mup_tune.trial import Budget, Trial, TrialResult

AXES = ("elr", "ewd", *MULTIPLIER_NAMES)
SHAPE = load_shape("cpu-32")
START = untuned(SHAPE)
MIXED = coordinates(dict.fromkeys(AXES, 1.0), SHAPE)
BUDGET = Budget(
    seq_len=128, batch_tokens=1024, total_tokens=20_480_000, warmup_tokens=0, decay_tokens=0, val_tokens=1024
)
MNAT = 1e-3
SAMPLERS = ("tpe", "gp", "cma-es", "trust-region", "random")
METHODS = ("surface", "micro", *SAMPLERS)
# Pairs and rounds of a surface by the trials that it may take, its line searches and verification included.
SURFACES = {150: (16, 3), 300: (40, 3), 600: (62, 4)}
VERIFIED, BATCH = 4, 16  # seeds that verify a sampler's two finalists, and candidates a round


@dataclass(frozen=True)
class Landscape:
    """One draw, by ``number``; ``noise`` in nats/token. ``flat``: noise and seeds alone."""

    number: int
    noise: float
    flat: bool = False

    @cached_property
    def parts(self) -> tuple[Array, Array, Array, Array]:
        """Optimum [M], Hessian at it [M, M], skew [M], direction of the cliff [M]."""
        rng, m = np.random.default_rng(self.number), len(MIXED)
        bends = MNAT * np.exp(rng.uniform(np.log(3), np.log(60), m))
        optimum = rng.choice([-1.0, 1.0], m) * rng.uniform(0.3, 1.0, m)
        upper = np.triu(rng.normal(0, 0.05, (m, m)), 1)
        values, vectors = np.linalg.eigh(upper + upper.T + np.eye(m))
        correlated = (vectors * np.maximum(values, 0.1)) @ vectors.T
        hessian = correlated * np.sqrt(bends[:, None] * bends[None, :])
        return optimum, hessian, rng.normal(0, 0.3, m) + 1e-6, rng.normal(0, 1, m) / np.sqrt(m)

    def excess(self, z: Array) -> float:
        """Loss above the bottom at coordinates ``z``, in nats/token; NaN where a run diverges."""
        if self.flat:
            return 0.0
        optimum, hessian, skew, cliff = self.parts
        u, bends = z - optimum, np.diag(hessian)
        own = bends * (np.exp(np.clip(skew * u, -20, 20)) - 1 - skew * u) / skew**2
        beyond = float(cliff @ u) - 2.0
        wall = 0.2 * max(beyond, 0.0) ** 2
        return np.nan if beyond > 1 else float(own.sum() + u @ (hessian - np.diag(bends)) @ u / 2 + wall)

    def at(self, settings: Settings) -> float:
        return self.excess(MIXED @ [log2(settings.value(axis) / START.value(axis)) for axis in AXES])

    @cached_property
    def gain(self) -> float:
        """What there is to be had from the start."""
        found = minimize(lambda z: np.nan_to_num(self.excess(z), nan=1e3), self.parts[0], method="Powell")
        return self.at(START) - float(found.fun)

    def row(self, trial: Trial) -> TrialResult:
        loss = self.at(trial.settings)
        if np.isnan(loss):
            return TrialResult(trial, "diverged", float("nan"), float("nan"), "step 3")
        offset = np.random.default_rng([self.number, trial.seed]).normal(0, 50 * MNAT)
        own = np.random.default_rng([self.number, int(trial.hash, 16) % 2**32]).normal(0, self.noise)
        return TrialResult(trial, "ok", 2.0 + loss + offset + own, 0.0)


def stage(method: str, trials: int) -> Stage:
    """The stage of a method that takes at most ``trials``."""
    if method == "surface":
        pairs, rounds = SURFACES[trials]
        return SurfaceStage(pairs=pairs, rounds=rounds)
    if method == "micro":
        return Micro(group=list(MULTIPLIER_NAMES), offsets=(-1, 0, 1), refine=False, extend=0)
    left = trials - 1 - 3 * VERIFIED
    batch = left if method == "random" else BATCH
    fields = {"axes": list(AXES), "sampler": method, "trials": left, "batch": batch}
    return Joint.model_validate({**fields, "radius": 1.0, "n_seeds": 1, "verify_seeds": VERIFIED})


def ran(method: str, landscape: Landscape, trials: int) -> dict[str, Any]:
    """One search to its end: share of the gain, trials, whether it moved, and the surface's intervals."""
    # One at a time takes two points an axis beside the start, and as many seeds as the trials buy.
    seeds = tuple(range(max(2, (trials - 24) // 71))) if method == "micro" else (0, 1)
    context, known, state = Context(SHAPE, BUDGET, seeds), dict[str, TrialResult](), State(START)
    walker = stage(method, trials)
    while missing := [trial for trial in walker.propose(context, state, known) if trial.hash not in known]:
        known |= {trial.hash: landscape.row(trial) for trial in missing}
    found = walker.conclude(context, state, known)
    end = landscape.at(found.state.incumbent)
    moved = found.state.incumbent != START
    said: dict[str, Any] = {"trials": len(known), "moved": moved, "covers": []}
    said["share"] = 0.0 if landscape.flat else (landscape.at(START) - end) / landscape.gain
    result = found.finding.result
    if isinstance(result, ResponseSurface):
        said["covers"] = covers(landscape, result)
    return said


def covers(landscape: Landscape, result: ResponseSurface) -> list[tuple[str, bool, float, float]]:
    """(which interval, whether it holds the truth, its value, the truth) of predictions and of the proof."""
    found = []
    for each in result.rounds:
        if each.predicted is None:
            continue
        centre = moved(each.centre, result)
        truth = landscape.at(centre) - landscape.at(
            moved({a: each.centre[a] + s for a, s in each.step.items()}, result)
        )
        found.append(
            (f"round {each.number}", each.predicted.low <= truth <= each.predicted.high, each.predicted.value, truth)
        )
    if result.moved is not None and result.moved.gain is not None:
        ends = {axis.axis: log2(axis.after / axis.before) for axis in result.axes}
        if result.taken:
            truth = landscape.at(START) - landscape.at(START.scaled({a: 2.0**x for a, x in ends.items()}))
            gain = result.moved.gain
            found.append(("verification", gain.low <= truth <= gain.high, gain.value, truth))
    return found


def moved(units: dict[str, float], result: ResponseSurface) -> Settings:
    return START.scaled({axis: 2.0 ** (result.units.get(axis, 1.0) * x) for axis, x in units.items()})


def cell(task: tuple[str, float, int, int, bool]) -> dict[str, Any]:
    method, noise, trials, number, flat = task
    return {
        "method": method,
        "noise": noise,
        "budget": trials,
        "flat": flat,
        **ran(method, Landscape(number, noise, flat), trials),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "gp"])
    parser.add_argument("--noise", nargs="+", type=float, default=[2.5, 5, 15], help="SD of one trial, mnat/token")
    parser.add_argument("--trials", nargs="+", type=int, choices=SURFACES, default=list(SURFACES))
    parser.add_argument("--landscapes", type=int, default=20)
    parser.add_argument("--flat", type=int, default=60, help="flat landscapes, by the surface and by micro")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    grid = product(args.methods, args.noise, args.trials, range(args.landscapes))
    tasks = [(method, MNAT * noise, trials, number, False) for method, noise, trials, number in grid]
    tasks += [(m, 5 * MNAT, 300, n, True) for m in args.methods if m in ("surface", "micro") for n in range(args.flat)]
    with ProcessPoolExecutor(args.workers) as pool:
        rows = list(pool.map(cell, tasks))
    write_atomic(args.out, json.dumps(rows, indent=1) + "\n")
    show(rows, args.methods)


def show(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    table = []
    for method, noise, budget in product(
        methods, sorted({r["noise"] for r in rows}), sorted({r["budget"] for r in rows})
    ):
        of = [r for r in rows if (r["method"], r["noise"], r["budget"], r["flat"]) == (method, noise, budget, False)]
        if of:
            shares = {index: r["share"] for index, r in enumerate(of)}
            gain = stats.paired_gain(dict.fromkeys(shares, 0.0), shares)
            ci = "" if gain is None else f"{gain.low:.2f} … {gain.high:.2f}"
            taken = f"{np.mean([r['trials'] for r in of]):.0f}"
            table.append(
                {
                    "method": method,
                    "noise (mnat)": 1e3 * noise,
                    "trials": taken,
                    "share": f"{np.mean(list(shares.values())):.2f}",
                    "95 % CI": ci,
                }
            )
    print_rows(table, "Share of the gain recovered")
    for method in methods:
        flat = [r["moved"] for r in rows if r["method"] == method and r["flat"]]
        if flat:
            print(f"{method}: moved {np.mean(flat):.1%} of {len(flat)} flat landscapes")
    intervals: dict[tuple[float, str], list[tuple[bool, float, float]]] = {}
    for r in rows:
        for name, held, value, truth in r["covers"] if not r["flat"] else ():
            intervals.setdefault((r["noise"], name), []).append((held, value, truth))
    covered = [
        {
            "noise (mnat)": 1e3 * noise,
            "interval": name,
            "covers": f"{np.mean([h for h, _, _ in each]):.0%}",
            "mean (mnat)": f"{1e3 * np.mean([v for _, v, _ in each]):.1f}",
            "truth (mnat)": f"{1e3 * np.mean([t for _, _, t in each]):.1f}",
            "of": len(each),
        }
        for (noise, name), each in sorted(intervals.items())
    ]
    print_rows(covered, "The surface's intervals")


if __name__ == "__main__":
    main()

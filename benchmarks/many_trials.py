"""What 10,000 trials cost the tool itself: the driver's memory, `status`, `report`, the page.

    python benchmarks/many_trials.py runs/many --trials 10000

Nothing trains: losses come from a bowl over all axes plus noise, curves are flat lines. Everything else is
the real thing: a plan with a joint search, the journal, the tables, the commands in processes of their own.
A folder that holds such a run already is measured as it is.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from math import log2
from pathlib import Path
from statistics import median

import numpy as np

from mup_tune.engine import inline
from mup_tune.engine.work import Calibration, Outcome, Report, Work
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import write_tables
from mup_tune.search.loop import Sweep
from mup_tune.search.plan import Plan, plan_from
from mup_tune.settings import AXES, Settings
from mup_tune.trial import Pack, PackResult, Trial, TrialResult

LOGGED = 60  # steps in a curve
CORPUS = {"hash": "made up", "name": "a bowl"}
METRICS = ("bits_per_byte", "train_loss", "eta_lambda_T", "clipped_fraction", "grad_norm", "tokens_per_s", "flops")


def plan(trials: int) -> Plan:
    reference = "ELR-EWD-tuned untuned"
    stages = [
        {"kind": "elr_ewd", "reference": reference},
        {"kind": "joint", "axes": "all", "sampler": "random", "trials": trials, "batch": trials, "n_seeds": 1},
        {"kind": "confirm", "against": [reference], "n_seeds": 12, "horizons": [1.25, 1.5, 2]},
    ]
    budget = {"seq_len": 128, "batch_tokens": 128, "total_tokens": 128 * LOGGED, "warmup_tokens": 0}
    budget |= {"decay_tokens": 0, "val_tokens": 128}
    return plan_from({"name": "many", "proxy": "cpu-32", "seeds": [0, 1], "budget": budget, "stages": stages}, "many")


class Bowl:
    """A runner whose loss is a bowl around the start, half an octave from its bottom on every axis."""

    def __init__(self, start: Settings) -> None:
        self.start, self.random = start, np.random.default_rng(0)

    def __call__(self, work: Work, report: Report) -> Outcome:
        if not isinstance(work, Pack):
            return Calibration({size: 1e6 * size**0.9 for size in work.sizes}, "a bowl")
        rows = tuple(TrialResult(t, "ok", self.loss(t), 0.003, "", dict.fromkeys(METRICS, 1.0)) for t in work.trials)
        steps, members = range(1, LOGGED + 1), range(len(rows))
        curves = {"member": [float(member) for member in members for _ in steps]}
        curves["step"] = [float(step) for _ in members for step in steps]
        curves["tokens"] = [128 * step for step in curves["step"]]
        curves |= {name: [1.0] * len(curves["step"]) for name in ("loss", "grad_norm", "clipped", "eta")}
        record = {"backend": "none", "device": "a bowl", "tokens_per_s": 1e6, "seconds": 1.0}
        return PackResult(work, rows, curves, record)

    def loss(self, trial: Trial) -> float:
        off = (log2(trial.settings.value(axis) / self.start.value(axis)) - 0.5 for axis in AXES)
        longer = 0.05 * log2(trial.budget.total_tokens / (128 * LOGGED))
        return 2.0 - longer + 0.004 * sum(each**2 for each in off) + float(self.random.normal(0, 0.003))


def made(folder: Path, trials: int) -> tuple[float, float]:
    """Seconds to walk the plan, and the driver's memory at its highest, MB."""
    asked, started = plan(trials), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RunFolder.create_or_resume(folder, asked.resolved(), asked.hash, CORPUS) as run:
        journal = Journal(run, writable=True)
        inline.drive(Sweep(asked, journal), lambda _: Bowl(asked.start), lambda _: None)
        journal.set_note("complete", True)
        write_tables(run, journal)
        journal.close()
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"imports alone: {before / 1e3:.0f} MB")
    return time.perf_counter() - started, highest / 1e3


def command(*arguments: str, repeats: int = 3) -> float:
    """Median seconds of a command in a process of its own."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mup_tune", *arguments], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    args = parser.parse_args()
    seconds, highest = made(args.run, args.trials)
    print(f"driver: {seconds:.1f} s, {highest:.0f} MB")
    print(f"journal: {(args.run / 'journal.log').stat().st_size / 1e6:.1f} MB")
    for name in ("status", "report"):
        print(f"{name}: {command(name, str(args.run)):.2f} s")
    print(f"page: {(args.run / 'report' / 'index.html').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

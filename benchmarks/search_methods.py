"""Which search finds most from one start, for the same FLOPs, on a real proxy?

    python benchmarks/search_methods.py --out runs/search-methods --executor inline

A repeat has tuning seeds and a data order of its own. It tunes ELR and EWD of `untuned` together first; from
there every method searches ELR, EWD and all 35 multipliers: one `surface` stage; one `micro` stage over all
multipliers; and one `joint` stage a sampler, one seed a candidate, for the trials that the surface took
(centre and verification are paid from them too). Every result then meets the tuned start on the same fresh
seeds and on a data order that tuned nothing.

Gains are paired by seed, nats/token. A repeat's CI is Student's t over its seeds: it says how sure these
settings are. The CI over repeats is Student's t over the repeats' mean gains: it says how sure the method is,
and from three repeats (2 degrees of freedom) it is wide. All parts are run folders: the same command resumes.
The same question on simulated landscapes is benchmarks/simulated_searches.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mup_tune import stats
from mup_tune.cli.live import Display
from mup_tune.cli.output import console, err_console, led, print_rows
from mup_tune.errors import UserError
from mup_tune.files import dump_yaml, write_atomic
from mup_tune.findings import State
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search.execute import execute, open_sweep
from mup_tune.search.plan import Plan, load_plan
from mup_tune.search.stages.joint import Joint
from mup_tune.stats import Interval, Losses

PLAN, SCALE = "falcon_h1", "cpu"
START, SURFACE, MICRO, UNTUNED = "tuned start", "surface", "micro", "untuned"
SAMPLERS = ("tpe", "gp", "cma-es", "trust-region", "random")
METHODS = (SURFACE, MICRO, *SAMPLERS)
RADIUS = 1.0  # log2: as far as the surface's three rounds reach
BATCH = 16  # candidates a round: populations stay full, and a sampler still hears a dozen answers
FRESH_ORDER = 1000  # added to data_seed where results are confirmed
TUNED = {"kind": "elr_ewd", "elr_offsets": [-1, 0, 1, 2, 3], "ewd_offsets": [-2, -1, 0, 1, 2]}


@dataclass(frozen=True)
class Ran:
    """A finished run: what it ended at, what its search spent, its last finding's comparisons by name."""

    state: State
    trials: int
    settings: str
    losses: dict[str, tuple[Losses, Losses]]


@dataclass(frozen=True)
class Result:
    """One method in one repeat: its and untuned's confirmed loss by seed."""

    flops: float
    trials: int
    settings: str
    losses: Losses
    untuned: Losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default=PLAN, help="whose proxy, budget and seeds: a shipped plan or a YAML file")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[SURFACE, "tpe", "cma-es", "random"])
    parser.add_argument("--scale", help=f"an overlay of the plan ({SCALE} for {PLAN})")
    parser.add_argument("--set", dest="assign", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--proxy", help="another proxy than the plan's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", type=int, metavar="INDEX", help="this repeat alone, several at once; then all, to print"
    )
    parser.add_argument("--confirm-seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray")
    args = parser.parse_args()
    assign = (*args.assign, *([f"proxy={args.proxy}"] if args.proxy else []))
    scale = args.scale or (SCALE if args.plan == PLAN else None)
    try:
        base = load_plan(args.plan, scale, assign)
        wanted = range(args.repeats) if args.only is None else [args.only]
        methods = [SURFACE, *(each for each in args.methods if each != SURFACE)]
        repeats = [repeat(base, index, methods, args.confirm_seeds, args.out, args.executor) for index in wanted]
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.only is not None:
        return
    report = {"plan": args.plan, "scale": scale, "set": assign, **summary(repeats)}
    write_atomic(args.out / "search_methods.json", json.dumps(report, indent=2) + "\n")
    show(repeats, report)
    console.print(f"All numbers: {args.out / 'search_methods.json'}", soft_wrap=True)


def repeat(
    base: Plan, index: int, methods: list[str], confirm_seeds: int, out: Path, executor: str
) -> dict[str, Result]:
    """The start and all methods of one repeat, tuned and confirmed."""
    header = base.header.model_dump(mode="json", exclude_none=True)
    order = header["budget"]["data_seed"] + index
    header |= {"seeds": [100 * index + seed for seed in base.header.seeds], "start": UNTUNED}
    header["budget"]["data_seed"] = order

    def ran(method: str, stages: list[dict[str, Any]], **changed: Any) -> Ran:
        name = f"repeat{index}-{method.replace(' ', '-')}"
        return run(name, {**header, "name": name, "stages": stages, **changed}, out, executor)

    start = ran(START, [TUNED])
    searched = {SURFACE: ran(SURFACE, [{"kind": "surface"}], start=start.settings)}
    for method in methods[1:]:
        searched[method] = ran(method, [search(method, searched[SURFACE].trials)], start=start.settings)
    fresh = {**header["budget"], "data_seed": order + FRESH_ORDER}
    confirmation = [
        {"kind": "baselines", "include": [UNTUNED]},
        {"kind": "confirm", "against": [UNTUNED], "n_seeds": confirm_seeds},
    ]
    results = {}
    for method, found in {START: start, **searched}.items():
        confirmed = ran(f"confirm {method}", confirmation, start=found.settings, budget=fresh).losses[UNTUNED]
        results[method] = Result(found.state.flops, found.trials, found.settings, *confirmed)
    return results


def search(method: str, trials: int) -> dict[str, Any]:
    """The stage that spends at most ``trials``: what centre and verification leave goes to candidates."""
    if method == MICRO:
        return {"kind": "micro", "group": list(MULTIPLIER_NAMES), "offsets": [-2, 0, 2], "refine": False, "extend": 0}
    axes = ["elr", "ewd", *MULTIPLIER_NAMES]
    fields = {"kind": "joint", "axes": axes, "sampler": method, "radius": RADIUS, "n_seeds": 1}
    stage = Joint.model_validate(fields)
    left = trials - 1 - (1 + stage.finalists) * stage.verify_seeds
    if left < 2:
        raise UserError(f"the surface took {trials} trials, too few for a search", fix="Give it more")
    return {**fields, "trials": left, "batch": left if method == "random" else BATCH}  # random has nothing to hear


def run(name: str, plan: dict[str, Any], out: Path, executor: str) -> Ran:
    """Write the plan, execute it or what is left of it, and read what it ended at."""
    (out / "plans").mkdir(parents=True, exist_ok=True)
    path = out / "plans" / f"{name}.yaml"
    write_atomic(path, dump_yaml(plan))
    loaded = load_plan(str(path))
    with open_sweep(loaded, out / "runs" / name) as (folder, sweep):
        err_console.print(led(name, ""))
        with Display(sweep, err_console) as on_event:
            finding = execute(loaded, folder, sweep, executor, None, None, on_event)[-1]
        losses = {each.reference: (each.candidate_losses, each.reference_losses) for each in finding.comparisons}
        return Ran(sweep.state, len(sweep.journal.rows), str(folder.settings / "incumbent.yaml"), losses)


def summary(repeats: list[dict[str, Result]]) -> dict[str, Any]:
    """Everything as plain data: each result, and each gain per repeat and over repeats."""
    others = [method for method in repeats[0] if method not in (START, SURFACE)]
    pairs = {f"{method} over {START}": (method, START) for method in (SURFACE, *others)}
    pairs |= {f"{SURFACE} over {other}": (SURFACE, other) for other in others}
    pairs |= {f"{START} over {UNTUNED}": (START, UNTUNED)}
    gains = {}
    for label, (ours, theirs) in pairs.items():
        sides = [(losses(each, ours), losses(each, theirs)) for each in repeats]
        means = [dict(enumerate(stats.means(side))) for side in zip(*sides, strict=True)]
        per_repeat = [as_data(stats.paired_gain(*side)) for side in sides]
        gains[label] = {"over_repeats": as_data(stats.paired_gain(*means)), "per_repeat": per_repeat}
    return {"repeats": [{name: vars(each) for name, each in methods.items()} for methods in repeats], "gains": gains}


def losses(results: dict[str, Result], method: str) -> Losses:
    return results[START].untuned if method == UNTUNED else results[method].losses


def as_data(gain: Interval | None) -> dict[str, float | None] | None:
    return None if gain is None else vars(gain)


def show(repeats: list[dict[str, Result]], report: dict[str, Any]) -> None:
    """One table: what each method spent and reached, its gain in each repeat (CI over seeds) and over all."""
    rows = []
    for label, gain in report["gains"].items():
        ours = [each[label.split(" over ")[0]] for each in repeats]
        levels = stats.means([each.losses for each in ours])
        for index, (each, level) in enumerate(zip(ours, levels, strict=True)):
            rows.append(row(label, str(index), f"{each.trials}", each.flops, level, gain["per_repeat"][index]))
        mean = None if None in levels else fmean(level for level in levels if level is not None)
        rows.append(row(label, "all", "", fmean(each.flops for each in ours), mean, gain["over_repeats"]))
    caption = "nats/token on fresh seeds; CIs: t over the seeds of a repeat, and in `all` over the repeats"
    print_rows(rows, f"Search methods at equal FLOPs: {report['plan']}", caption)


def row(
    label: str, index: str, trials: str, flops: float, loss: float | None, gain: dict[str, float] | None
) -> dict[str, Any]:
    said = ("–", "–") if gain is None else (f"{gain['value']:+.4f}", f"{gain['low']:+.4f}…{gain['high']:+.4f}")
    level = "diverged" if loss is None else f"{loss:.4f}"
    names = ("comparison", "repeat", "trials", "FLOPs", "loss", "gain", "95 % CI")
    return dict(zip(names, (label, index, trials, f"{flops:.3g}", level, *said), strict=True))


if __name__ == "__main__":
    main()

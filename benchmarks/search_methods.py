"""Does the staged method find more than TPE or random search over all 35 multipliers, for the same FLOPs?

    python benchmarks/search_methods.py --out runs/search-methods --executor inline

A repeat runs, on tuning seeds and a data order of its own: the plan's stages without its baselines and
confirmation ("staged"); one `joint` stage over ELR and all multipliers around `untuned`, one seed a
candidate, by TPE and by random search, for the FLOPs that staged spent (counted in its journal; centre and
verification are paid from them too); and ELR alone. Every result then meets `untuned` on the same fresh seeds
and on a data order that tuned nothing.

Gains are paired by seed, nats/token. A repeat's CI is Student's t over its seeds: it says how sure these
settings are. The CI over repeats is Student's t over the repeats' mean gains: it says how sure the method is,
and from three repeats (2 degrees of freedom) it is wide. All parts are run folders: the same command resumes.
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
from mup_tune.cli.output import console, err_console, print_rows
from mup_tune.errors import UserError
from mup_tune.files import dump_yaml, write_atomic
from mup_tune.findings import State
from mup_tune.search.execute import execute, open_sweep
from mup_tune.search.plan import Plan, load_plan
from mup_tune.search.stage import Stage
from mup_tune.search.stages.joint import Joint
from mup_tune.stats import Interval, Losses

PLAN, SCALE = "falcon_h1", "cpu"
STAGED, TPE, RANDOM, ELR, UNTUNED = "staged", "TPE", "random search", "ELR-tuned untuned", "untuned"
METHODS = (STAGED, TPE, RANDOM, ELR)
RADIUS = 2.0  # log2, as far as the staged method's grids reach
BATCH = 16  # candidates a round: populations stay full, and TPE still hears dozens of answers
FRESH_ORDER = 1000  # added to data_seed where results are confirmed


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
    parser.add_argument("--plan", default=PLAN, help="the staged method: a shipped plan or a YAML file")
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
        repeats = [repeat(base, index, args.confirm_seeds, args.out, args.executor) for index in wanted]
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.only is not None:
        return
    report = {"plan": args.plan, "scale": scale, "set": assign, **summary(repeats)}
    write_atomic(args.out / "search_methods.json", json.dumps(report, indent=2) + "\n")
    show(repeats, report)
    console.print(f"All numbers: {args.out / 'search_methods.json'}", highlight=False, soft_wrap=True)


def repeat(base: Plan, index: int, confirm_seeds: int, out: Path, executor: str) -> dict[str, Result]:
    """All methods of one repeat, tuned and confirmed."""
    header = base.header.model_dump(mode="json", exclude_none=True)
    order = header["budget"]["data_seed"] + index
    header |= {"seeds": [100 * index + seed for seed in base.header.seeds]}
    header["budget"]["data_seed"] = order

    def ran(method: str, stages: list[dict[str, Any]], **changed: Any) -> Ran:
        name = f"repeat{index}-{method.replace(' ', '-')}"
        return run(name, {**header, "name": name, "stages": stages, **changed}, out, executor)

    stages = zip(header["stages"], base.stages, strict=True)
    tuned = {STAGED: ran(STAGED, [entry for entry, stage in stages if searches(stage)])}
    flops = tuned[STAGED].state.flops
    tuned[ELR] = ran(ELR, [{"kind": "elr_ewd"}], start="untuned")
    for method, sampler in ((TPE, "tpe"), (RANDOM, "random")):
        tuned[method] = ran(method, [joint(base, sampler, flops)], start="untuned")
    fresh = {**header["budget"], "data_seed": order + FRESH_ORDER}
    confirmation = [
        {"kind": "baselines", "include": [UNTUNED]},
        {"kind": "confirm", "against": [UNTUNED], "n_seeds": confirm_seeds},
    ]
    results = {}
    for method in METHODS:
        confirmed = ran(f"confirm {method}", confirmation, start=tuned[method].settings, budget=fresh).losses[UNTUNED]
        spent = tuned[method].state.flops
        results[method] = Result(spent, tuned[method].trials, tuned[method].settings, *confirmed)
    return results


def searches(stage: Stage) -> bool:
    """Whether the stage can move the incumbent; one that needs references only measures it."""
    return stage.on_path and not stage.requires


def joint(base: Plan, sampler: str, flops: float) -> dict[str, Any]:
    """The stage that spends ``flops`` and no more: what centre and verification leave goes to candidates."""
    fields = {"kind": "joint", "axes": "all", "sampler": sampler, "batch": BATCH, "radius": RADIUS, "n_seeds": 1}
    stage = Joint.model_validate(fields)
    aside = 1 + (1 + stage.finalists) * stage.verify_seeds  # the centre, and the verification
    (trial,) = base.context.trials(base.start, base.header.seeds[:1])
    trials = int(flops / trial.flops + 1e-6) - aside
    if trials < 2:
        raise UserError(f"the staged method spent {flops:.3g} FLOPs, too few for a search", fix="Give it more stages")
    return {**fields, "trials": trials, "batch": BATCH if sampler == "tpe" else trials}  # random has nothing to hear


def run(name: str, plan: dict[str, Any], out: Path, executor: str) -> Ran:
    """Write the plan, execute it or what is left of it, and read what it ended at."""
    (out / "plans").mkdir(parents=True, exist_ok=True)
    path = out / "plans" / f"{name}.yaml"
    write_atomic(path, dump_yaml(plan))
    loaded = load_plan(str(path))
    with open_sweep(loaded, out / "runs" / name) as (folder, sweep):
        err_console.print(f"[bold]{name}[/]", highlight=False)
        with Display(sweep, err_console) as on_event:
            finding = execute(loaded, folder, sweep, executor, None, None, on_event)[-1]
        losses = {each.reference: (each.candidate_losses, each.reference_losses) for each in finding.comparisons}
        return Ran(sweep.state, len(sweep.journal.rows), str(folder.settings / "incumbent.yaml"), losses)


def summary(repeats: list[dict[str, Result]]) -> dict[str, Any]:
    """Everything as plain data: each result, and each gain per repeat and over repeats."""
    pairs = {f"{method} over untuned": (method, UNTUNED) for method in METHODS}
    pairs |= {f"{STAGED} over {other}": (STAGED, other) for other in (TPE, RANDOM, ELR)}
    gains = {}
    for label, (ours, theirs) in pairs.items():
        sides = [(losses(each, ours), losses(each, theirs)) for each in repeats]
        means = [dict(enumerate(stats.means(side))) for side in zip(*sides, strict=True)]
        per_repeat = [as_data(stats.paired_gain(*side)) for side in sides]
        gains[label] = {"over_repeats": as_data(stats.paired_gain(*means)), "per_repeat": per_repeat}
    return {"repeats": [{name: vars(each) for name, each in methods.items()} for methods in repeats], "gains": gains}


def losses(results: dict[str, Result], method: str) -> Losses:
    return results[STAGED].untuned if method == UNTUNED else results[method].losses


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

"""What a run cost: trials, FLOPs and hours, of the whole and of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from mup_tune.report import formats
from mup_tune.run.view import RunView


@dataclass(frozen=True)
class Cost:
    """``seconds``: of packs, summed over devices. ``flops`` is None where trials did not count them."""

    name: str
    trials: int
    diverged: int
    flops: float | None
    seconds: float


def of_stages(run: RunView) -> list[Cost]:
    """In the order they began; a stage that trained nothing of its own has no row."""
    found = []
    for stage in run.stage_keys:
        trials, packs = run.trials[run.trials["stage"] == stage], run.packs[run.packs["stage"] == stage]
        if len(trials):
            found.append(_cost(stage, trials, packs))
    return found


def of_run(run: RunView) -> Cost:
    return _cost("all", run.trials, run.packs)


def _cost(name: str, trials: pd.DataFrame, packs: pd.DataFrame) -> Cost:
    flops = float(trials["flops"].sum()) if "flops" in trials and trials["flops"].notna().any() else None
    seconds = float(packs["seconds"].sum()) if "seconds" in packs else 0.0
    return Cost(name, len(trials), int((trials["status"] != "ok").sum()), flops, seconds)


def devices(run: RunView) -> list[str]:
    """The kinds of devices that packs trained on."""
    if "device" not in run.packs:
        return []
    return sorted({str(each) for each in run.packs["device"].dropna()})


def elapsed(run: RunView) -> float | None:
    """Seconds from the start to the last pack, pauses included; None before the first."""
    if run.packs.empty:
        return None
    ends = [datetime.fromisoformat(str(end)) for end in run.packs["committed_utc"]]
    return (max(ends) - datetime.fromisoformat(run.record.created)).total_seconds()


@dataclass(frozen=True)
class Tile:
    """A number on the first screen, and what stands below it."""

    value: str
    unit: str
    below: str


def tiles(run: RunView) -> list[Tile]:
    """Trials, FLOPs, hours by the clock and on devices; nothing where nothing was trained."""
    total, wall, names = of_run(run), elapsed(run), devices(run)
    if not total.trials:
        return []
    lost = f"{total.diverged:,} diverged" if total.diverged else "none diverged"
    found = [Tile(f"{total.trials:,}", "trials", f"{lost}, in {formats.plural(len(run.packs), 'pack')}")]
    if total.flops:
        found.append(Tile(formats.scientific(total.flops), "FLOPs", "of training; validation is not counted"))
    if wall is not None and wall > 0:
        found.append(Tile(formats.duration(wall), "by the clock", f"{formats.hours(wall)}, pauses included"))
    if total.seconds:
        unit = "GPU-hours" if any("cpu" not in each.lower() for each in names) else "CPU-lane-hours"
        on = f"on {', '.join(names)}{_lanes(run)}" if names else "summed over packs"
        found.append(Tile(f"{total.seconds / 3600:.3g}", unit, on))
    return found


def _lanes(run: RunView) -> str:
    lanes = list(run.packs["plan.lanes"].dropna()) if "plan.lanes" in run.packs else []
    return f", {formats.plural(int(max(lanes)), 'lane')}" if len(lanes) else ""

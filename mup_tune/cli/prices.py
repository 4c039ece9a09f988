"""What a plan costs in hours, for ``plan``: speeds from where they are known, and a table over devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mup_tune.engine.work import Calibration
    from mup_tune.run.journal import Journal
    from mup_tune.search.plan import Plan
    from mup_tune.search.pricing import Price, Speeds
    from mup_tune.shape import Shape
    from mup_tune.trial import Budget

GPUS = (1, 8, 64, 512)
PAYS = 0.5  # utilisation below which more devices mostly wait


@dataclass(frozen=True)
class Prices:
    """What is known of a plan's time. Without speeds all is None, and ``unknown`` names the Shapes.

    ``stages`` and ``total`` are on the devices asked for, ``over`` is the total on several counts of them.
    """

    stages: tuple[Price | None, ...]
    total: Price | None
    over: tuple[Price, ...]
    devices: tuple[str, ...]
    unknown: tuple[str, ...]
    widest: int  # trials of the largest wave
    waves: int


def prices(plan: Plan, run: Path | None, tokens_per_s: float | None, gpus: int) -> Prices:
    """The plan on ``gpus`` devices: at the stated speed, else as ``run`` calibrated, else as any run did."""
    from mup_tune.search.pricing import price, unknown_speeds

    speeds = _stated(plan, tokens_per_s) if tokens_per_s else _measured(run)
    waves = [wave for each in plan.rehearsal for wave in each.waves]
    widest = max((sum(wave.trials.values()) for wave in waves), default=0)
    unknown = unknown_speeds(plan.rehearsal, speeds)
    if unknown:
        names = tuple(shape.name for shape in unknown)
        return Prices((None,) * len(plan.rehearsal), None, (), (), names, widest, len(waves))
    stages = tuple(price(each.waves, speeds, gpus) for each in plan.rehearsal)
    over = {count: price(waves, speeds, count) for count in sorted({*GPUS, gpus})}
    known = (speeds(*each) for wave in waves for each in wave.trials)
    devices = tuple(dict.fromkeys(each.device for each in known if each))
    return Prices(stages, over[gpus], tuple(over.values()), devices, (), widest, len(waves))


def _stated(plan: Plan, tokens_per_s: float) -> Speeds:
    from mup_tune.search.pricing import flat

    return flat(tokens_per_s, plan.shape, plan.header.budget.seq_len)


def _measured(run: Path | None) -> Speeds:
    from mup_tune.engine.calibrations import from_note, newest, note_name

    journal = _journal(run) if run else None

    @cache
    def speeds(shape: Shape, budget: Budget) -> Calibration | None:
        note = journal.get_note(note_name(shape, budget)) if journal else None
        return newest(shape, budget) if note is None else from_note(note)

    return speeds


def _journal(run: Path) -> Journal:
    from mup_tune.run.folder import RunFolder
    from mup_tune.run.journal import Journal

    return Journal(RunFolder.open(run), writable=False)


def as_fields(price: Price | None, per_hour: float | None) -> dict[str, Any]:
    """The keys of ``plan --json``; None where the speed is not known."""
    found: dict[str, Any] = {
        "packs": price and price.packs,
        "hours": price and price.hours,
        "gpu_hours": price and price.gpu_hours,
        "utilisation": price and price.utilisation,
    }
    return found if per_hour is None else found | {"price": price and price.gpu_hours * per_hour}


def table(over: Sequence[Price], per_hour: float | None) -> list[dict[str, Any]]:
    """A row a number of devices, for people."""
    rows = []
    for each in over:
        row = {"devices": each.gpus, "packs": each.packs, "hours": f"{each.hours:.3g}"}
        row |= {"device-hours": f"{each.gpu_hours:.3g}", "utilisation": f"{each.utilisation:.0%}"}
        rows.append(row | ({"price": f"{each.gpu_hours * per_hour:,.2f}"} if per_hour is not None else {}))
    return rows


def advice(found: Prices) -> str:
    """Where more devices stop paying, and why."""
    paying = [each.gpus for each in found.over if each.utilisation >= PAYS]
    if len(paying) == len(found.over):
        return ""
    where = f"Beyond {max(paying)} of them more devices" if paying else "Several devices"
    return (
        f"{where} would mostly wait: {found.waves} waves of trials follow one another, the widest has "
        f"{found.widest:,}, and a wave ends with its longest pack."
    )

"""Between a run's values and the plain JSON that its journal holds. NaN and infinity become null."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.settings import GLOBAL_AXES, Settings
from mup_tune.trial import Trial, TrialResult

AXES = (*GLOBAL_AXES, *MULTIPLIER_NAMES)
# What decides a pack's losses besides its trials. Devices of one kind may differ between the lanes of a run.
MADE_BY = {"mup_tune": "mup-tune", "torch": "torch", "backend": "backend", "cpu": "CPU capability"}
OTHER_VERSION = "Another version of mup-tune wrote this run: go on with that one, or start a new run"


@dataclass(frozen=True)
class Member:
    """A finished trial and the pack it was committed with; ``index`` is its place there."""

    stage: str
    pack: str
    index: int
    row: TrialResult


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Refuse a run's file whose records are whole and yet not such as this version writes."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        first, *_ = str(error).split("\n")
        problem = f"holds a record that cannot be read ({type(error).__name__}: {first})"
        raise UserError(problem, file=file, fix=OTHER_VERSION) from error


def plain(value: Any) -> Any:
    """Plain JSON data: numpy scalars become Python's, tuples lists, keys strings, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return plain(value.item()) if hasattr(value, "item") else value


def row_record(row: TrialResult, pack_id: str, index: int) -> dict[str, Any]:
    """What the journal keeps of a member besides its trial, which the record that planned it holds.

    Raises:
        ValueError: an ok member without a finite loss: a runner's bug, which no decision must be built on.
    """
    if row.ok and not math.isfinite(row.loss):
        raise ValueError(f"trial {row.trial.hash} is called ok and has the loss {row.loss}")
    return {
        "hash": row.trial.hash,
        "pack": pack_id,
        "member": index,
        "status": row.status,
        "loss": plain(row.loss) if row.ok else None,
        "loss_se": plain(row.loss_se),
        "reason": row.reason,
        "metrics": plain(row.metrics),
    }


def row_from(record: dict[str, Any], trial: Trial) -> TrialResult:
    return TrialResult(
        trial,
        record["status"],
        _number(record["loss"]),
        _number(record["loss_se"]),
        record["reason"],
        {key: _number(value) for key, value in record["metrics"].items()},
    )


def trial_from(data: dict[str, Any], expected_hash: str) -> Trial:
    """The trial, whose identity must not have changed since it was written."""
    trial = Trial.model_validate(data)
    if trial.hash != expected_hash:
        raise UserError(
            f"the trial {expected_hash} in the journal now hashes to {trial.hash}",
            fix=OTHER_VERSION,
        )
    return trial


def moved_axes(settings: Settings, before: Settings) -> dict[str, float]:
    """Axes whose value differs from the Settings that the stage started from."""
    return {axis: settings.value(axis) for axis in AXES if settings.value(axis) != before.value(axis)}


def made_differently(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two packs' records say that their losses may not compare; nothing where they do not say so."""
    known = {name: key for key, name in MADE_BY.items() if key in then and key in now}
    changes = [f"{name} {then[key]}, now {now[key]}" for name, key in known.items() if then[key] != now[key]]
    return "; ".join(changes)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

"""A run's tables, made of its journal."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mup_tune.findings import Finding, State
from mup_tune.run.columns import PACKS, STAGES, TRIAL, TRIALS, Table, schema
from mup_tune.run.journal import Journal
from mup_tune.run.records import AXES, Member

DTYPES = {"integer": "int64", "number": "float64"}
PLANNED = "plan."
# What every table has; metrics, axes and what a pack's record says come as they are known.
TRIAL_COLUMNS = tuple(column.name for column in TRIAL)
PACK_COLUMNS = ("stage", "pack", "members", "committed_utc", "curves", "sha256")


def trial_table(journal: Journal) -> pd.DataFrame:
    """A row a finished trial, in the order of commits."""
    members = journal.members()
    metrics = sorted({name for member in members for name in member.row.metrics})
    # Column by column: a dictionary a row would hold ten times the table.
    columns: dict[str, list[Any]] = {name: [] for name in (*TRIAL_COLUMNS, *metrics, *AXES)}
    for member in members:
        row = _trial(member)
        for name, column in columns.items():
            column.append(row.get(name))
    return _typed(pd.DataFrame(columns), TRIALS)


def _trial(member: Member) -> dict[str, Any]:
    row, trial = member.row, member.row.trial
    return {
        "stage": member.stage,
        "pack": member.pack,
        "member": member.index,
        "hash": trial.hash,
        "shape": trial.shape.name,
        "d_model": trial.shape.d_model,
        "n_layers": trial.shape.n_layers,
        "total_tokens": trial.budget.total_tokens,
        "settings": trial.settings.name,
        "settings_hash": trial.settings.content_hash(),
        "seed": trial.seed,
        "status": row.status,
        "loss": row.loss,
        "loss_se": row.loss_se,
        "reason": row.reason,
        **row.metrics,
        **{axis: trial.settings.value(axis) for axis in AXES},
    }


def stage_table(journal: Journal) -> pd.DataFrame:
    """A row a concluded stage, in the plan's order."""
    members: dict[str, list[Member]] = {}
    for member in journal.members():
        members.setdefault(member.stage, []).append(member)
    records: dict[str, list[dict[str, Any]]] = {}
    for pack in journal.packs():
        records.setdefault(pack["stage"], []).append(pack["record"])
    rows = [
        _stage(*concluded, members.get(key, []), records.get(key, []))
        for key in journal.stages()
        if (concluded := journal.conclusion(key))
    ]
    return _typed(pd.DataFrame(rows, columns=[column.name for column in STAGES.columns]), STAGES)


def _stage(finding: Finding, state: State, members: list[Member], records: list[dict[str, Any]]) -> dict[str, Any]:
    trials = [member.row.trial for member in members]
    compared = finding.result.gained
    gain = compared.gain if compared else None
    moved = finding.before.content_hash() != finding.after.content_hash()
    return {
        "stage": finding.stage,
        "kind": finding.kind,
        "title": finding.title,
        "result": finding.result.type,
        "decision": "beside" if not finding.on_path else "moved" if moved else "kept",
        "trials": len(trials),
        "diverged": sum(not member.row.ok for member in members),
        "tokens": sum(trial.budget.steps * trial.budget.batch_tokens for trial in trials),
        "flops": sum(trial.flops for trial in trials),
        "seconds": sum(record.get("seconds", 0.0) for record in records),
        "sigma_delta": finding.sigma_delta,
        "gain": gain.value if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
        "gain_over": compared.reference if compared else "",
        "outcome": compared.outcome if compared else "",
        "settings": state.incumbent.name,
        "settings_hash": state.incumbent.content_hash(),
        "code": "; ".join(_distinct(record.get("mup_tune") for record in records)),
    }


def pack_table(journal: Journal) -> pd.DataFrame:
    """A row a committed pack, in the order of commits."""
    rows = [
        {
            "stage": pack["stage"],
            "pack": pack["pack"],
            "members": len(pack["hashes"]),
            "committed_utc": pack["committed_utc"],
            "curves": pack["curves"]["file"],
            "sha256": pack["curves"]["sha256"],
            **{key: _cell(value) for key, value in pack["record"].items() if key not in PACK_COLUMNS},
            **{f"{PLANNED}{key}": _cell(value) for key, value in pack["info"].items()},
        }
        for pack in journal.packs()
    ]
    extra = dict.fromkeys(key for row in rows for key in row if key not in PACK_COLUMNS)
    return _typed(pd.DataFrame(rows, columns=[*PACK_COLUMNS, *extra]), PACKS)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _typed(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Numbers of their column's type, in an empty table too; what may be missing cannot be an integer."""
    types = {}
    for name in frame.columns:
        column = table.column(name)
        if column and column.type in DTYPES and not (column.type == "integer" and frame[name].isna().any()):
            types[name] = DTYPES[column.type]
    return frame.astype(types)


def to_csv(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()  # a text buffer would hold four bytes a character
    frame.to_csv(buffer, index=False)
    return buffer.getvalue()


def to_parquet(frame: pd.DataFrame, table: Table) -> bytes:
    """Each column's unit and meaning stand in the file, as its field's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    made = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(made.cast(schema(made.schema, table)), buffer)
    return buffer.getvalue()

"""Tables of a run for its users. Nothing of mup-tune reads them: what a command says comes from the journal.

``tables/``: trials.parquet, trials.csv, packs.csv, findings.json. ``settings/``: incumbent.yaml, one YAML a
concluded stage, one a named reference.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import to_json

from mup_tune.errors import UserError
from mup_tune.files import write_atomic
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.records import AXES, Member

FINDINGS = "findings.json"
TRIAL_COLUMNS = ("stage", "pack", "member", "hash", "shape", "d_model", "n_layers", "total_tokens", "settings")
OUTCOME_COLUMNS = ("seed", "status", "loss", "loss_se", "reason")
PACK_COLUMNS = ("stage", "pack", "members", "committed_utc", "curves", "sha256")


def write_tables(folder: RunFolder, journal: Journal) -> None:
    """Write ``tables/`` and ``settings/`` anew from what the journal knows; each file appears whole.

    The incumbent's file comes first, and what cannot be written stops none of the others.

    Raises:
        UserError: names the first file that could not be written, when all others are.
    """
    findings, state = journal.findings(), journal.state()
    learned = {"stages": journal.stages(), "findings": findings, "state": state.to_json() if state else None}
    # References first: where one bears a stage's name, the stage's file is the one users were told of.
    named = {slug(name): settings for name, settings in state.references.items()} if state else {}
    named |= {slug(finding.stage): finding.after for finding in findings}
    if state:
        named.pop("incumbent", None)
        named = {"incumbent": state.incumbent, **named}
    trials, packs = trial_table(journal), pack_table(journal)
    made: dict[Path, Callable[[], str | bytes]] = {
        **{folder.settings / _file(stem): settings.to_yaml for stem, settings in named.items()},
        folder.tables / "trials.parquet": lambda: trials.to_parquet(None, index=False),
        folder.tables / "trials.csv": lambda: _csv(trials),
        folder.tables / "packs.csv": lambda: _csv(packs),
        folder.tables / FINDINGS: lambda: to_json(learned, indent=1) + b"\n",  # json's takes ten times the text's size
    }
    failed: list[tuple[Path, Exception]] = []
    for path, content in made.items():
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content())
        except (OSError, ValueError, ArithmeticError) as error:  # of the disk, an encoding, a column
            failed.append((path, error))
    if failed:
        path, first = failed[0]
        why = first.strerror if isinstance(first, OSError) else first
        more = f", and {len(failed) - 1} more files neither" if len(failed) > 1 else ""
        raise UserError(f"could not be written ({why}){more}", file=path, fix="The same command tries again") from None


def _csv(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()  # a text buffer would hold four bytes a character
    table.to_csv(buffer, index=False)
    return buffer.getvalue()


def slug(name: str) -> str:
    """A file's stem for a name that people chose."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _file(stem: str) -> str:
    """The YAML file's name, which is UTF-8 whatever the locale says of file names."""
    return os.fsdecode(f"{stem}.yaml".encode())


def trial_table(journal: Journal) -> pd.DataFrame:
    """A row a finished trial, in the order of commits."""
    members = journal.members()
    metrics = sorted({name for member in members for name in member.row.metrics})
    # Column by column: a dictionary a row would hold ten times the table.
    columns: dict[str, list[Any]] = {name: [] for name in (*TRIAL_COLUMNS, *OUTCOME_COLUMNS, *metrics, *AXES)}
    for member in members:
        row = _trial(member)
        for name, column in columns.items():
            column.append(row.get(name))
    return pd.DataFrame(columns)


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
        "seed": trial.seed,
        "status": row.status,
        "loss": row.loss,
        "loss_se": row.loss_se,
        "reason": row.reason,
        **row.metrics,
        **{axis: trial.settings.value(axis) for axis in AXES},
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
            **{f"plan.{key}": _cell(value) for key, value in pack["info"].items()},
        }
        for pack in journal.packs()
    ]
    extra = dict.fromkeys(key for row in rows for key in row if key not in PACK_COLUMNS)
    return pd.DataFrame(rows, columns=[*PACK_COLUMNS, *extra])


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value

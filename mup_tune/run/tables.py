"""Tables of a run for reports and users, and the view that reads them. The journal never reads them.

``tables/``: trials.parquet, trials.csv, packs.csv, findings.json. ``settings/``: incumbent.yaml, one YAML a
concluded stage, one a named reference.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mup_tune.errors import UserError
from mup_tune.files import read_json, write_atomic
from mup_tune.findings import Finding, State
from mup_tune.run.description import PlanRecord, RunRecord
from mup_tune.run.folder import RunFolder
from mup_tune.run.records import AXES, Member, readable
from mup_tune.settings import Settings

if TYPE_CHECKING:  # views must not pay for Optuna
    from mup_tune.run.journal import Journal

FINDINGS = "findings.json"
TRIAL_COLUMNS = ("stage", "pack", "member", "hash", "shape", "d_model", "n_layers", "total_tokens", "settings")
OUTCOME_COLUMNS = ("seed", "status", "loss", "loss_se", "reason")
PACK_COLUMNS = ("stage", "pack", "members", "committed_utc", "curves", "sha256")
TEXT = dict.fromkeys(("stage", "pack", "committed_utc", "curves", "sha256"), str)  # hex is no number


@dataclass(frozen=True)
class RunView:
    """A run as its tables tell it.

    Attributes:
        path: the run folder.
        plan: the resolved plan. record: ``run.json``.
        stage_keys: stages begun, in order; findings: those of the concluded ones.
        trials: a row a trial: stage, pack, member, hash, shape, d_model, n_layers, total_tokens, settings
            (name), seed, status, loss (nats/token, NaN if diverged), loss_se, reason, the metrics, elr, ewd,
            rope_base, the 35 multipliers.
        packs: a row a committed pack: stage, pack, members, committed_utc, curves, sha256, what ran (backend,
            tokens_per_s, mfu, seconds …) and, as ``plan.*``, what was planned.
        incumbent: the best Settings after the last concluded stage.
        references: named Settings that stages compare with.
        live: whether a driver was at work when the view was loaded.
    """

    path: Path
    plan: PlanRecord
    record: RunRecord
    stage_keys: tuple[str, ...]
    findings: tuple[Finding, ...]
    trials: pd.DataFrame
    packs: pd.DataFrame
    incumbent: Settings | None
    references: dict[str, Settings]
    live: bool

    def curves(self, pack_id: str) -> pd.DataFrame:
        """A committed pack's curves by logged step: member, step, tokens, loss, grad_norm, clipped, eta."""
        named = self.packs.loc[self.packs["pack"] == pack_id]
        if named.empty:
            raise UserError(f"no committed pack {pack_id!r}", file=self.path)
        path = RunFolder.open(self.path).curves / str(named["curves"].iloc[0])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=path) from None
        if hashlib.sha256(content).hexdigest() != named["sha256"].iloc[0]:
            raise UserError("is not the file that the run committed: its SHA-256 differs", file=path)
        return pd.read_parquet(io.BytesIO(content))


def load_run(path: str | Path) -> RunView:
    """The view of a run whose tables were written. Reads neither the journal nor, until asked, the curves."""
    folder = RunFolder.open(path)
    trials, packs = folder.tables / "trials.parquet", folder.tables / "packs.csv"
    if not all(file.is_file() for file in (trials, packs, folder.tables / FINDINGS)):
        raise UserError("has no tables yet", file=path, fix="They are written when its first stage ends")
    learned = read_learned(folder)
    state = learned.state
    return RunView(
        path=folder.path,
        plan=folder.plan,
        record=folder.record,
        stage_keys=learned.stages,
        findings=learned.findings,
        trials=pd.read_parquet(io.BytesIO(trials.read_bytes())),
        packs=pd.read_csv(packs, dtype=TEXT),
        incumbent=state.incumbent if state else None,
        references=dict(state.references) if state else {},
        live=folder.is_live(),
    )


@dataclass(frozen=True)
class Learned:
    """``findings.json``: stages begun, findings of the concluded ones, what the last one handed on."""

    stages: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    state: State | None = None


def read_learned(folder: RunFolder) -> Learned:
    """What a run has found; nothing where its tables are not written yet."""
    file = folder.tables / FINDINGS
    if not file.is_file():
        return Learned()
    data = read_json(file)
    with readable(file):
        findings = tuple(Finding.model_validate(each) for each in data["findings"])
        return Learned(tuple(data["stages"]), findings, State.from_json(data["state"]) if data["state"] else None)


def write_tables(folder: RunFolder, journal: Journal) -> None:
    """Write ``tables/`` and ``settings/`` anew from what the journal knows; each file appears whole."""
    folder.tables.mkdir(exist_ok=True)
    folder.settings.mkdir(exist_ok=True)
    trials, packs = _trials(journal), _packs(journal)
    write_atomic(folder.tables / "trials.parquet", trials.to_parquet(None, index=False))
    write_atomic(folder.tables / "trials.csv", trials.to_csv(index=False))
    write_atomic(folder.tables / "packs.csv", packs.to_csv(index=False))
    findings, state = journal.findings(), journal.state()
    learned = {
        "stages": journal.stages(),
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "state": state.to_json() if state else None,
    }
    write_atomic(folder.tables / FINDINGS, json.dumps(learned, indent=1, ensure_ascii=False) + "\n")
    # References first: where one bears a stage's name, the stage's file is the one users were told of.
    named = {slug(name): settings for name, settings in state.references.items()} if state else {}
    named |= {slug(finding.stage): finding.after for finding in findings}
    if state:
        named["incumbent"] = state.incumbent
    for stem, settings in named.items():
        write_atomic(folder.settings / f"{stem}.yaml", settings.to_yaml())


def slug(name: str) -> str:
    """A file's stem for a name that people chose."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _trials(journal: Journal) -> pd.DataFrame:
    members = journal.members()
    metrics = sorted({name for member in members for name in member.row.metrics})
    columns = [*TRIAL_COLUMNS, *OUTCOME_COLUMNS, *metrics, *AXES]
    return pd.DataFrame([_trial(member) for member in members], columns=columns)


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


def _packs(journal: Journal) -> pd.DataFrame:
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

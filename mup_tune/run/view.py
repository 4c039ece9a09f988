"""A run for who reads it: the journal's facts as tables and values."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.run.description import PlanRecord, RunRecord
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import pack_table, trial_table
from mup_tune.settings import Settings


@dataclass(frozen=True)
class RunView:
    """A run as its journal tells it.

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
    """The view of a run as it is now, in progress or not. Curves are not read until asked for.

    Raises:
        UserError: it is no run, its journal cannot be read, or no stage of it has begun.
    """
    folder = RunFolder.open(path)
    journal = Journal(folder, writable=False)
    if not journal.stages():
        raise UserError("no stage of this run has begun yet", file=path, fix="`mup-tune sweep` begins it")
    state = journal.state()
    return RunView(
        path=folder.path,
        plan=folder.plan,
        record=folder.record,
        stage_keys=tuple(journal.stages()),
        findings=tuple(journal.findings()),
        trials=trial_table(journal),
        packs=pack_table(journal),
        incumbent=state.incumbent if state else None,
        references=dict(state.references) if state else {},
        live=folder.is_live(),
    )

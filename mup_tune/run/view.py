"""A run for who reads it: the journal's facts as tables and values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.run import columns, frames
from mup_tune.run.curves import no_curves, read_curves
from mup_tune.run.description import PlanRecord, RunRecord
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import Settings
from mup_tune.trial import Trial


@dataclass(frozen=True)
class RunView:
    """A run as its journal told it when it was loaded. :func:`load_run` lists the tables' columns.

    Attributes:
        path: the run folder.
        plan: the resolved plan: name, data, seeds, budget, proxy, start, target, stages, references.
        record: ``run.json``: versions, corpus, when and on which machine.
        stage_keys: stages begun, in order.
        findings: what each concluded stage learned, in order. ``result`` holds what its kind measured.
        trials: a DataFrame, a row a finished trial.
        stages: a DataFrame, a row a concluded stage.
        packs: a DataFrame, a row a committed pack.
        settings: the incumbent, the best Settings after the last concluded stage; None before the first.
        references: named Settings that stages compare with.
        sensitivity: curvature of the loss by axis, in nats/token per (log2)², as the last stage fitted it. It
            is 0 where none is shown.
        live: whether a driver was at work.
    """

    path: Path
    plan: PlanRecord
    record: RunRecord
    stage_keys: tuple[str, ...]
    findings: tuple[Finding, ...]
    trials: pd.DataFrame
    stages: pd.DataFrame
    packs: pd.DataFrame
    settings: Settings | None
    references: dict[str, Settings]
    sensitivity: dict[str, float]
    live: bool
    commits: tuple[dict[str, Any], ...] = field(repr=False)

    @classmethod
    def of(cls, folder: RunFolder, journal: Journal) -> RunView:
        """What ``journal`` knows now."""
        state = journal.state()
        return cls(
            path=folder.path,
            plan=folder.plan,
            record=folder.record,
            stage_keys=tuple(journal.stages()),
            findings=tuple(journal.findings()),
            trials=frames.trial_table(journal),
            stages=frames.stage_table(journal),
            packs=frames.pack_table(journal),
            settings=state.incumbent if state else None,
            references=dict(state.references) if state else {},
            sensitivity=dict(state.sensitivity) if state else {},
            live=folder.is_live(),
            commits=tuple(journal.packs()),
        )

    @cached_property
    def curves(self) -> pd.DataFrame:
        """All curves as one DataFrame, a row a logged point. They are read when first asked for.

        Raises:
            UserError: a file of curves is gone, or not the one that the run committed.
        """
        import pyarrow as pa

        found: pd.DataFrame = pa.concat_tables([no_curves(), *map(self._read, self.commits)]).to_pandas()
        return found

    def curve(self, trial_hash: str) -> pd.DataFrame:
        """The rows of :attr:`curves` of one trial, from its pack's file alone.

        Raises:
            UserError: no finished trial has this hash, or the file is gone or not the run's.
        """
        if trial_hash not in self._packs:
            raise UserError(f"no finished trial {trial_hash!r}", file=self.path, fix="`trials` has them under `hash`")
        found: pd.DataFrame = self._read(self._packs[trial_hash]).to_pandas()
        return found[found["hash"] == trial_hash].reset_index(drop=True)

    def curves_of(self, settings: Settings, stages: Collection[str] = ()) -> dict[int, pd.Series[float]]:
        """Training loss over tokens by seed, of the ok trials of ``settings`` at the plan's proxy and Budget.

        Args:
            stages: those that may have trained them; every stage if empty.
        """
        rows = self.trials[self.trials["status"] == "ok"].set_index("hash")
        if stages:
            rows = rows[rows["stage"].isin(stages)]
        found: dict[int, pd.Series[float]] = {}
        for seed in sorted({int(seed) for seed in rows["seed"]}):
            hash_ = Trial(shape=self.plan.proxy, budget=self.plan.budget, settings=settings, seed=seed).hash
            if hash_ in rows.index:
                curve = self.curve(hash_)
                found[seed] = pd.Series(curve["loss"].to_numpy(), index=curve["tokens"].to_numpy(), name=seed)
        return found

    @cached_property
    def _packs(self) -> dict[str, dict[str, Any]]:
        return {hash_: pack for pack in self.commits for hash_ in pack["hashes"]}

    @cached_property
    def _last(self) -> dict[str, Any]:
        """The table that was read last, by its pack: members of one pack are often asked for in a row."""
        return {}

    def _read(self, pack: dict[str, Any]) -> Any:
        name = pack["curves"]["file"]
        if name not in self._last:
            table = read_curves(RunFolder.open(self.path).curves, pack)
            self._last.clear()
            self._last[name] = table
        return self._last[name]


def load_run(path: str | Path) -> RunView:
    """A run folder as tables and values, as it is now, in progress or not. It needs no torch.

    The tables ``trials``, ``stages`` and ``packs`` are read at once, ``curves`` when it is first asked for,
    and ``curve(hash)`` reads a single trial's. Losses and gains are nats/token, and a gain is positive where
    the loss falls. :class:`RunView` has what there is besides, such as ``settings``, ``findings``, ``plan``
    and ``live``. What is missing is NaN or empty.

    Args:
        path: the folder that ``mup-tune sweep --run`` was given.

    Raises:
        UserError: it is no run, its journal cannot be read, or no stage of it has begun.
    """
    folder = RunFolder.open(path)
    journal = Journal(folder, writable=False)
    if not journal.stages():
        raise UserError("no stage of this run has begun yet", file=path, fix="`mup-tune sweep` begins it")
    return RunView.of(folder, journal)


load_run.__doc__ = "\n\n".join([str(load_run.__doc__).rstrip(), *map(columns.told, columns.TABLES)])

"""The journal of a run: an Optuna ``JournalStorage`` file with one writer, the driver.

A stage is a study. A finished member is a trial of it, everything else is a JSON attribute of it: ``stage``,
``plan <pack>``, ``replace <pack>``, ``commit <pack>`` and ``conclusion``. Notes on the whole run are
attributes of the study ``run``. Shape, Budget, Settings and seed of a member are stored once, in the first
record that plans it. Its own record names them by their hash.

A record counts once it is whole, and every write is safe to repeat. So a driver that is killed anywhere
leaves a journal that the next one opens, repairs and continues.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from mup_tune.errors import UserError
from mup_tune.files import content_hash
from mup_tune.findings import Finding, State
from mup_tune.run.contents import NOTES, Contents, Kind
from mup_tune.run.curves import write_curves
from mup_tune.run.folder import RunFolder, utc_now
from mup_tune.run.records import OTHER_VERSION, Member, moved_axes, plain, readable, row_record
from mup_tune.run.repair import repair
from mup_tune.settings import Settings
from mup_tune.trial import Pack, PackResult, TrialResult

WIDE = optuna.distributions.FloatDistribution(1e-30, 1e30, log=True)  # one per axis: dashboards want log axes


class Journal:
    """Everything a run knows. A writable one needs the folder's lock; without it a copy is read, once."""

    def __init__(self, folder: RunFolder, writable: bool) -> None:
        if writable and not folder.locked:
            raise ValueError("a writable journal needs a folder that holds the run's lock")
        self.folder, self.writable = folder, writable
        self._state, self._studies = Contents(), dict[str, optuna.Study]()
        self._broken = False  # a write broke off: what the file holds is unknown
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if writable:
            self._open()
        else:
            with tempfile.TemporaryDirectory(prefix="mup-tune-") as copies:
                copy = Path(copies) / folder.journal.name
                if folder.journal.is_file():
                    shutil.copyfile(folder.journal, copy)
                repair(copy)
                self._load(copy)
            self._studies.clear()  # their file is gone

    @property
    def rows(self) -> dict[str, TrialResult]:
        """All members of committed packs by trial hash. It grows with every commit; do not change it."""
        return self._state.rows

    def members(self) -> list[Member]:
        """The same with stage, pack and place, in the order of commits."""
        return list(self._state.members.values())

    def stages(self) -> list[str]:
        """Keys of the stages begun so far, in order."""
        return list(self._state.stages)

    def trial_count(self, stage_key: str) -> int:
        """Trials that were trained for a stage; what it took over from earlier stages is theirs."""
        return sum(member.stage == stage_key for member in self._state.members.values())

    def begin_stage(self, key: str, kind: str, title: str, before: Settings) -> None:
        """Journal what a stage starts from. Again is free; with another incumbent it is an error."""
        known = self._ready().befores.get(key)
        if known is None:
            value = {"kind": kind, "title": title, "before": before.model_dump(mode="json")}
            self._write(Kind.STAGE, key, value)
        elif content_hash(known.model_dump(mode="json")) != content_hash(before.model_dump(mode="json")):
            raise UserError(
                f"stage {key} was begun with other settings than the stages before it lead to now",
                file=self.folder.journal,
                fix=OTHER_VERSION,
            )

    def plan_pack(self, stage_key: str, pack: Pack, info: dict[str, Any]) -> None:
        """Journal a pack's composition before it starts; ``info`` is plain data on why it looks so."""
        if pack.id not in self._ready().packs:
            value = {"hashes": _hashes(pack), "info": plain(info), "trials": self._new_trials(stage_key, [pack])}
            self._write(Kind.PLAN, stage_key, value, pack.id)

    def planned(self, stage_key: str) -> list[Pack]:
        """Packs that are neither committed nor replaced, in the order they were planned."""
        state = self._state
        return [pack for pack in state.packs.values() if pack.stage == stage_key and pack.id not in state.closed]

    def replace_pack(self, stage_key: str, pack_id: str, why: str, by: Sequence[Pack]) -> None:
        """Drop a planned pack and plan others for its trials, in one record."""
        if pack_id in self._ready().closed:
            return
        value = {
            "by": {pack.id: _hashes(pack) for pack in by},
            "info": {"replaces": pack_id, "why": why},
            "trials": self._new_trials(stage_key, by),
        }
        self._write(Kind.REPLACE, stage_key, value, pack_id)

    def commit(self, result: PackResult) -> bool:
        """Take a planned pack's result: curves, then members, then the record that makes them count.

        Members that a broken-off commit already journalled keep their first record, and so their curves.

        Returns:
            False for a pack that was committed or replaced before: nothing is written.

        Raises:
            ValueError: the pack was never planned, or the rows are not its members in order.
        """
        pack, state = result.pack, self._ready()
        if pack.id in state.closed:
            return False
        if pack.id not in state.packs:
            raise ValueError(f"pack {pack.id} was not planned")
        if [row.trial.hash for row in result.rows] != _hashes(state.packs[pack.id]):
            raise ValueError(f"the rows of pack {pack.id} are not its members in order")
        kept = {i for i, hash_ in enumerate(_hashes(pack)) if state.journalled.get(hash_, {}).get("pack") == pack.id}
        records = [row_record(row, pack.id, index) for index, row in enumerate(result.rows)]
        curves = write_curves(self.folder.curves / f"{pack.id}.parquet", result.curves, kept)
        for row, record in zip(result.rows, records, strict=True):
            if record["hash"] not in state.journalled:
                self._add(pack.stage, row, record)
        value = {"record": plain(result.record), "curves": curves, "committed_utc": utc_now()}
        self._write(Kind.COMMIT, pack.stage, value, pack.id)
        return True

    def packs(self) -> list[dict[str, Any]]:
        """Committed packs in order: stage, pack, hashes, info, record, curves (file, sha256) and time."""
        return list(self._state.commits)

    def conclude(self, stage_key: str, finding: Finding, state: State) -> None:
        """Journal a stage's decision. The first one stands."""
        if stage_key not in self._ready().conclusions:
            value = {"finding": finding.model_dump(mode="json"), "state": state.to_json()}
            self._write(Kind.CONCLUSION, stage_key, value)

    def conclusion(self, stage_key: str) -> tuple[Finding, State] | None:
        """A stage's finding and what it handed on; None while it runs."""
        return self._state.conclusions.get(stage_key)

    def state(self) -> State | None:
        """What the last concluded stage handed on."""
        handed_on = [concluded[1] for stage in self.stages() if (concluded := self.conclusion(stage))]
        return handed_on[-1] if handed_on else None

    def findings(self) -> list[Finding]:
        """Findings of the concluded stages, in stage order."""
        return [self._state.conclusions[key][0] for key in self._state.stages if key in self._state.conclusions]

    def set_note(self, key: str, value: Any) -> None:
        """Keep plain data on the whole run under a name; the last one counts."""
        self._ready()
        self._write(Kind.NOTE, NOTES, plain(value), key)

    def get_note(self, key: str) -> Any:
        return self._state.notes.get(key)

    def close(self) -> None:
        """No more writes through this object. The folder's lock is the folder's to give back."""
        self.writable = False
        self._studies.clear()

    def _new_trials(self, stage_key: str, packs: Iterable[Pack]) -> dict[str, Any]:
        """Trials that no record holds yet: each is stored once."""
        if stage_key not in self._state.befores:
            raise ValueError(f"stage {stage_key!r} was not begun")
        for pack in packs:
            if pack.stage != stage_key:
                raise ValueError(f"pack {pack.id} belongs to stage {pack.stage!r}, not to {stage_key!r}")
        trials = {trial.hash: trial for pack in packs for trial in pack.trials}
        return {hash_: t.model_dump(mode="json") for hash_, t in trials.items() if hash_ not in self._state.trials}

    def _write(self, kind: Kind, study: str, value: Any, of: str = "") -> None:
        with self._record(study) as to:
            to.set_user_attr(kind.key(of), value)
            self._state.apply(kind, study, of, value)

    def _add(self, stage: str, row: TrialResult, record: dict[str, Any]) -> None:
        moved = moved_axes(row.trial.settings, self._state.befores[stage])
        params = {axis: value for axis, value in moved.items() if WIDE.low <= value <= WIDE.high}
        trial = create_trial(
            state=TrialState.COMPLETE if row.ok else TrialState.FAIL,
            value=row.loss if row.ok else None,
            params=params,
            distributions=dict.fromkeys(params, WIDE),
            user_attrs=record,
        )
        with self._record(stage) as to:
            to.add_trial(trial)
            self._state.apply(Kind.MEMBER, stage, record["hash"], record)

    @contextmanager
    def _record(self, study: str) -> Iterator[optuna.Study]:
        self._broken = True
        if study not in self._studies:
            self._studies[study] = optuna.create_study(storage=self._storage, study_name=study)
        yield self._studies[study]
        self._broken = False

    def _ready(self) -> Contents:
        """The state to write against. After a write that broke off, the file is repaired and read anew."""
        if not self.writable:
            raise RuntimeError("this journal is read-only or closed")
        if self._broken:
            self._open()
        return self._state

    def _open(self) -> None:
        """Make the live file and its surroundings sound, and read them. The lock keeps others out."""
        journal = self.folder.journal
        for leftover in (*journal.parent.glob(f"{journal.name}.lock*"), *self.folder.curves.glob(".*.parquet.*")):
            leftover.unlink()
        repair(journal)
        self._storage = self._load(journal)
        self._broken = False

    def _load(self, file: Path) -> JournalStorage:
        try:
            path = str(file.absolute())
            storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        except (ValueError, KeyError) as error:
            raise UserError(f"a record in the middle is damaged ({error})", file=self.folder.journal) from None
        self._state, self._studies = Contents(), {}
        with readable(self.folder.journal):
            for name in optuna.get_all_study_names(storage):
                self._studies[name] = study = optuna.load_study(storage=storage, study_name=name)
                for trial in study.get_trials(deepcopy=False):
                    record = _checked(trial)
                    self._state.apply(Kind.MEMBER, name, record["hash"], record)
                for key, value in study.user_attrs.items():
                    kind, of = Kind.parse(name, key)
                    self._state.apply(kind, name, of, value)
        return storage


def last_state(folder: RunFolder) -> State | None:
    """What a run's last concluded stage handed on, for who reads nothing else."""
    journal = Journal(folder, writable=False)
    try:
        return journal.state()
    finally:
        journal.close()


def _hashes(pack: Pack) -> list[str]:
    return [trial.hash for trial in pack.trials]


def _checked(trial: FrozenTrial) -> dict[str, Any]:
    """A member's record, whose loss must be the study's value: nobody else writes to this journal."""
    record = trial.user_attrs
    value = trial.values[0] if trial.values else math.nan
    if "hash" not in record or (record["loss"] is not None and record["loss"] != value):
        raise UserError(f"trial {trial.number} in the journal was not written by mup-tune", fix="Start a new run")
    return record

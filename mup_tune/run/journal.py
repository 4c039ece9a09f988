"""The journal of a run: an Optuna ``JournalStorage`` file with one writer, the driver.

A stage is a study. A finished member is a trial of it, everything else is a JSON attribute of it: ``stage``,
``plan <pack>``, ``replace <pack>``, ``commit <pack>`` and ``conclusion``. Notes on the whole run are
attributes of the study ``run``. Shape, Budget, Settings and seed of a member are stored once, in the first
record that plans it. Its own record names them by their hash.

A record counts once it is whole, and every write is safe to repeat. So a driver that is killed anywhere
leaves a journal that the next one opens, repairs and continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mup_tune.errors import UserError, located
from mup_tune.files import content_hash, naming
from mup_tune.findings import Finding, State
from mup_tune.run.contents import NOTES, Contents, Kind, Tally
from mup_tune.run.curves import write_curves
from mup_tune.run.folder import RunFolder, utc_now
from mup_tune.run.optuna_log import OptunaLog, Row
from mup_tune.run.records import OTHER_VERSION, Member, moved_axes, plain, readable, row_record
from mup_tune.run.repair import repair
from mup_tune.settings import Settings
from mup_tune.trial import Pack, PackResult, TrialResult


class Journal:
    """Everything a run knows. A writable one needs the folder's lock; without it the file is read once.

    ``torn``: bytes at the file's end that no driver had finished, and that were dropped.
    """

    def __init__(self, folder: RunFolder, writable: bool) -> None:
        if writable and not folder.locked:
            raise ValueError("a writable journal needs a folder that holds the run's lock")
        self.folder, self.writable = folder, writable
        self._state, self._log = Contents(), OptunaLog(folder.journal)
        self.torn = 0
        self._broken = False  # a write broke off: what the file holds is unknown
        _refuse_remains(folder)
        if writable:
            self._open()
        else:
            self._load()

    @property
    def rows(self) -> dict[str, TrialResult]:
        """All members of committed packs by trial hash. It grows with every commit; do not change it."""
        with readable(self.folder.journal):
            return self._state.rows

    def members(self) -> list[Member]:
        """The same with stage, pack and place, in the order of commits."""
        rows, places = self.rows, self._state.places
        return [Member(stage, pack, index, rows[hash_]) for hash_, (stage, pack, index) in places.items()]

    def tally(self) -> Tally:
        """How many trials are finished, how many of them diverged, and the lowest loss."""
        return self._state.tally()

    def stages(self) -> list[str]:
        """Keys of the stages begun so far, in order."""
        return list(self._state.stages)

    def trial_count(self, stage_key: str) -> int:
        """Trials that were trained for a stage; what it took over from earlier stages is theirs."""
        return sum(stage == stage_key for stage, _, _ in self._state.places.values())

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
        if pack.id not in self._ready().compositions:
            value = {"hashes": _hashes(pack), "info": plain(info), "trials": self._new_trials(stage_key, [pack])}
            self._write(Kind.PLAN, stage_key, value, pack.id)
            self._state.adopt(pack.trials)

    def planned(self, stage_key: str) -> list[Pack]:
        """Packs that are neither committed nor replaced, in the order they were planned."""
        state = self._state
        stages = {pack_id: stage for pack_id, (stage, _) in state.compositions.items() if pack_id not in state.closed}
        return [state.pack(pack_id) for pack_id, stage in stages.items() if stage == stage_key]

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

    def replacements(self) -> list[tuple[Pack, ...]]:
        """What took the place of each pack that was replaced, in order."""
        return [tuple(map(self._state.pack, packs)) for packs in self._state.replacements]

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
        if pack.id not in state.compositions:
            raise ValueError(f"pack {pack.id} was not planned")
        if [row.trial.hash for row in result.rows] != state.compositions[pack.id][1]:
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

    def _new_trials(self, stage_key: str, packs: Iterable[Pack]) -> dict[str, Any]:
        """Trials that no record holds yet: each is stored once."""
        if stage_key not in self._state.befores:
            raise ValueError(f"stage {stage_key!r} was not begun")
        for pack in packs:
            if pack.stage != stage_key:
                raise ValueError(f"pack {pack.id} belongs to stage {pack.stage!r}, not to {stage_key!r}")
        trials = {trial.hash: trial for pack in packs for trial in pack.trials}
        return {hash_: t.model_dump(mode="json") for hash_, t in trials.items() if not self._state.knows(hash_)}

    def _write(self, kind: Kind, study: str, value: Any, of: str = "") -> None:
        with self._whole():
            self._log.set_attribute(study, kind.key(of), value)
            self._state.apply(kind, study, of, value)

    def _add(self, stage: str, row: TrialResult, record: dict[str, Any]) -> None:
        moved = moved_axes(row.trial.settings, self._state.befores[stage])
        with self._whole():
            self._log.add_trial(stage, record["loss"], moved, record)
            self._state.apply(Kind.MEMBER, stage, record["hash"], record)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._broken = True
        yield
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
        with naming(journal):
            journal.touch()
            self.torn += repair(journal)
        self._load()
        with readable(journal):
            self._state.check()
        self._broken = False

    def _load(self) -> None:
        self._state = Contents()
        with located(file=self.folder.journal), readable(self.folder.journal):
            for record in self._log.records():
                if isinstance(record, Row):
                    self._state.apply(Kind.MEMBER, record.study, record.attributes["hash"], _checked(record))
                else:
                    kind, of = Kind.parse(record.study, record.key)
                    self._state.apply(kind, record.study, of, record.value)


def last_state(folder: RunFolder) -> State | None:
    """What a run's last concluded stage handed on, for who reads nothing else."""
    journal = Journal(folder, writable=False)
    try:
        return journal.state()
    finally:
        journal.close()


def _hashes(pack: Pack) -> list[str]:
    return [trial.hash for trial in pack.trials]


def _checked(row: Row) -> dict[str, Any]:
    """A member's record, whose loss must be the study's value: nobody else writes to this journal."""
    if row.attributes["loss"] != row.value:
        problem = f"a trial of the study {row.study!r} was not written by mup-tune"
        raise UserError(problem, fix="Start a new run")
    return row.attributes


def _refuse_remains(folder: RunFolder) -> None:
    """A run without its journal has lost what it knows; to begin anew would write over what is left of it."""
    gone, empty = not folder.journal.exists(), folder.journal.is_file() and not folder.journal.stat().st_size
    parts = (folder.curves, folder.tables, folder.settings) if gone else (folder.curves,) if empty else ()
    remains = [part.name for part in parts if part.exists()]
    if remains:
        raise UserError(
            f"the journal is {'gone' if gone else 'empty'}, and the run's {', '.join(remains)} are still here",
            file=folder.journal,
            fix="Put the journal back from a copy, or name another --run folder",
        )

"""A journal in memory: its records, taken in one after another, at loading as after each write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum, auto
from itertools import islice
from typing import Any

from mup_tune.findings import Finding, State
from mup_tune.run.records import row_from, trial_from
from mup_tune.settings import Settings
from mup_tune.trial import Pack, Trial, TrialResult

NOTES = "run"  # the study that holds no stage but notes on the whole run


class Kind(StrEnum):
    """The kinds of records. A member is a trial of its stage's study; all others are attributes of one."""

    NOTE = auto()
    STAGE = auto()
    PLAN = auto()
    REPLACE = auto()
    MEMBER = auto()
    COMMIT = auto()
    CONCLUSION = auto()

    def key(self, of: str) -> str:
        """The attribute's name; ``of`` is the pack it is about, or the note's own name."""
        return of if self is Kind.NOTE else f"{self} {of}".rstrip()

    @classmethod
    def parse(cls, study: str, key: str) -> tuple[Kind, str]:
        """The kind and what it is about, from the name of an attribute of ``study``."""
        if study == NOTES:
            return cls.NOTE, key
        kind, _, of = key.partition(" ")
        return cls(kind), of


@dataclass(frozen=True)
class Tally:
    """Finished trials, how many of them diverged, and the lowest loss in nats/token, if there is one."""

    trials: int
    diverged: int
    best_loss: float | None


@dataclass
class Contents:
    """The journal in memory: what the records say, in their order.

    Trials and rows are made of their records when they are first asked for: who only counts pays for no more.
    """

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    befores: dict[str, Settings] = field(default_factory=dict)
    compositions: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # pack id -> stage, trial hashes
    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: dict[str, Kind] = field(default_factory=dict)  # pack id -> COMMIT or REPLACE
    replacements: list[list[str]] = field(default_factory=list)  # ids of the packs that took another's place
    journalled: dict[str, dict[str, Any]] = field(default_factory=dict)  # also of packs whose commit broke off
    places: dict[str, tuple[str, str, int]] = field(default_factory=dict)  # hash -> stage, pack, index
    commits: list[dict[str, Any]] = field(default_factory=list)
    conclusions: dict[str, tuple[Finding, State]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    _trials: dict[str, Trial | dict[str, Any]] = field(default_factory=dict)
    _rows: dict[str, TrialResult] = field(default_factory=dict)

    def apply(self, kind: Kind, study: str, of: str, value: Any) -> None:
        """Take one record in. ``of`` is the pack or note it is about, for a member its trial's hash."""
        getattr(self, f"_apply_{kind}")(study, of, value)

    def adopt(self, trials: Iterable[Trial]) -> None:
        """Keep these objects for trials that were just taken in, instead of copies made of their records."""
        self._trials.update({trial.hash: trial for trial in trials})

    def knows(self, hash_: str) -> bool:
        """Whether a record holds the trial of this hash."""
        return hash_ in self._trials

    def check(self) -> None:
        """Make every trial of its record.

        Raises:
            UserError: one has another hash now than when it was written.
        """
        for hash_ in self._trials:
            self.trial(hash_)

    def trial(self, hash_: str) -> Trial:
        found = self._trials[hash_]
        if not isinstance(found, Trial):
            found = self._trials[hash_] = trial_from(found, hash_)
        return found

    def pack(self, pack_id: str) -> Pack:
        stage, hashes = self.compositions[pack_id]
        return Pack(pack_id, stage, tuple(map(self.trial, hashes)))

    @property
    def rows(self) -> dict[str, TrialResult]:
        """Committed members by trial hash, in the order of commits; one dictionary that grows."""
        for hash_ in islice(self.places, len(self._rows), None):
            self._rows[hash_] = row_from(self.journalled[hash_], self.trial(hash_))
        return self._rows

    def tally(self) -> Tally:
        """Counts of the committed members."""
        losses = [self.journalled[hash_]["loss"] for hash_ in self.places]
        fine = [loss for loss in losses if loss is not None]
        return Tally(len(losses), len(losses) - len(fine), min(fine, default=None))

    def _apply_note(self, study: str, name: str, value: Any) -> None:
        self.notes[name] = value

    def _apply_stage(self, stage: str, of: str, value: dict[str, Any]) -> None:
        self.stages[stage] = value
        self.befores[stage] = Settings.model_validate(value["before"])

    def _apply_plan(self, stage: str, pack_id: str, value: dict[str, Any]) -> None:
        self._take_packs(stage, {pack_id: value["hashes"]}, value)

    def _apply_replace(self, stage: str, pack_id: str, value: dict[str, Any]) -> None:
        self.closed[pack_id] = Kind.REPLACE
        self._take_packs(stage, value["by"], value)
        self.replacements.append(list(value["by"]))

    def _apply_member(self, stage: str, hash_: str, value: dict[str, Any]) -> None:
        self.journalled.setdefault(hash_, value)

    def _apply_commit(self, stage: str, pack_id: str, value: dict[str, Any]) -> None:
        self.closed[pack_id] = Kind.COMMIT
        curves = {key: str(value["curves"][key]) for key in ("file", "sha256")}
        told = {"record": dict(value["record"]), "curves": curves, "committed_utc": str(value["committed_utc"])}
        _, hashes = self.compositions[pack_id]
        for index, hash_ in enumerate(hashes):
            self.journalled[hash_]  # a commit without its members is no commit
            self.places.setdefault(hash_, (stage, pack_id, index))
        self.commits.append({"stage": stage, "pack": pack_id, "hashes": hashes, "info": self.infos[pack_id], **told})

    def _apply_conclusion(self, stage: str, of: str, value: dict[str, Any]) -> None:
        self.conclusions[stage] = Finding.model_validate(value["finding"]), State.from_json(value["state"])

    def _take_packs(self, stage: str, compositions: dict[str, list[str]], value: dict[str, Any]) -> None:
        """Packs with their trials. A trial is stored in the first record that needs it, here or earlier."""
        if stage not in self.befores:
            raise ValueError(f"stage {stage!r} has packs and was not begun")
        for hash_, data in value["trials"].items():
            self._trials.setdefault(hash_, data)
        for pack_id, hashes in compositions.items():
            missing = [hash_ for hash_ in hashes if hash_ not in self._trials]
            if missing:
                raise ValueError(f"pack {pack_id} has the trial {missing[0]}, which no record holds")
            self.compositions[pack_id], self.infos[pack_id] = (stage, hashes), value["info"]

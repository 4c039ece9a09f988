"""A journal in memory: its records, taken in one after another, at loading as after each write."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from mup_tune.findings import Finding, State
from mup_tune.run.records import Member, row_from, trial_from
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


@dataclass
class Contents:
    """The journal in memory: what the records say, in their order."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    befores: dict[str, Settings] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    packs: dict[str, Pack] = field(default_factory=dict)
    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: dict[str, Kind] = field(default_factory=dict)  # pack id -> COMMIT or REPLACE
    journalled: dict[str, dict[str, Any]] = field(default_factory=dict)  # also of packs whose commit broke off
    members: dict[str, Member] = field(default_factory=dict)
    rows: dict[str, TrialResult] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    conclusions: dict[str, tuple[Finding, State]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def apply(self, kind: Kind, study: str, of: str, value: Any) -> None:
        """Take one record in. ``of`` is the pack or note it is about, for a member its trial's hash."""
        getattr(self, f"_apply_{kind}")(study, of, value)

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

    def _apply_member(self, stage: str, hash_: str, value: dict[str, Any]) -> None:
        self.journalled.setdefault(hash_, value)

    def _apply_commit(self, stage: str, pack_id: str, value: dict[str, Any]) -> None:
        self.closed[pack_id] = Kind.COMMIT
        pack = self.packs[pack_id]
        hashes = [trial.hash for trial in pack.trials]
        for index, trial in enumerate(pack.trials):
            if trial.hash not in self.members:
                row = row_from(self.journalled[trial.hash], trial)
                self.members[trial.hash], self.rows[trial.hash] = Member(stage, pack_id, index, row), row
        self.commits.append({"stage": stage, "pack": pack_id, "hashes": hashes, "info": self.infos[pack_id], **value})

    def _apply_conclusion(self, stage: str, of: str, value: dict[str, Any]) -> None:
        self.conclusions[stage] = Finding.model_validate(value["finding"]), State.from_json(value["state"])

    def _take_packs(self, stage: str, compositions: dict[str, list[str]], value: dict[str, Any]) -> None:
        """Packs with their trials. A trial is stored in the first record that needs it, here or earlier."""
        for hash_, data in value["trials"].items():
            self.trials.setdefault(hash_, trial_from(data, hash_))
        for pack_id, hashes in compositions.items():
            self.packs[pack_id] = Pack(pack_id, stage, tuple(self.trials[hash_] for hash_ in hashes))
            self.infos[pack_id] = value["info"]

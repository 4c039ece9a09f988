"""A journal in memory: its records, taken in one after another, at loading as after each write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mup_tune.findings import Finding, State
from mup_tune.run.records import Member, row_from, trial_from
from mup_tune.settings import Settings
from mup_tune.trial import Pack, Trial, TrialResult

NOTES = "run"  # the study that holds no stage but notes on the whole run


@dataclass
class Contents:
    """The journal in memory: what the records say, in their order."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    befores: dict[str, Settings] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    packs: dict[str, Pack] = field(default_factory=dict)
    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)  # pack id -> "commit" or "replace"
    journalled: dict[str, tuple[str, TrialResult]] = field(default_factory=dict)  # also of packs whose commit broke off
    members: dict[str, Member] = field(default_factory=dict)
    rows: dict[str, TrialResult] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    conclusions: dict[str, tuple[Finding, State]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def attribute(self, study: str, key: str, value: Any) -> None:
        """Take one study attribute in."""
        what, _, pack_id = key.partition(" ")
        if study == NOTES:
            self.notes[key] = value
        elif what == "stage":
            self.stages[study] = value
            self.befores[study] = Settings.model_validate(value["before"])
        elif what == "conclusion":
            self.conclusions[study] = Finding.model_validate(value["finding"]), State.from_json(value["state"])
        elif what == "plan":
            self._packs(study, {pack_id: value["hashes"]}, value)
        elif what == "replace":
            self.closed[pack_id] = what
            self._packs(study, value["by"], value)
        elif what == "commit":
            self.closed[pack_id] = what
            self._committed(self.packs[pack_id], value)

    def trial(self, record: Mapping[str, Any]) -> None:
        """Take one member's record in."""
        trial = self._trial(record["hash"], record["trial"])
        self.journalled.setdefault(trial.hash, (record["pack"], row_from(dict(record), trial)))

    def _trial(self, hash_: str, data: dict[str, Any]) -> Trial:
        if hash_ not in self.trials:
            self.trials[hash_] = trial_from(data, hash_)
        return self.trials[hash_]

    def _packs(self, stage: str, compositions: dict[str, list[str]], value: dict[str, Any]) -> None:
        for hash_, data in value["trials"].items():
            self._trial(hash_, data)
        for pack_id, hashes in compositions.items():
            self.packs[pack_id] = Pack(pack_id, stage, tuple(self.trials[hash_] for hash_ in hashes))
            self.infos[pack_id] = value["info"]

    def _committed(self, pack: Pack, value: dict[str, Any]) -> None:
        hashes = [trial.hash for trial in pack.trials]
        for index, hash_ in enumerate(hashes):
            if hash_ not in self.members:
                row = self.journalled[hash_][1]
                self.members[hash_], self.rows[hash_] = Member(pack.stage, pack.id, index, row), row
        self.commits.append(
            {"stage": pack.stage, "pack": pack.id, "hashes": hashes, "info": self.infos[pack.id], **value}
        )

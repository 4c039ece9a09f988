"""Optuna's journal file, written and read record by record.

The file is the one of ``optuna.storages.JournalStorage``, so that Optuna and its dashboards open it. Optuna
itself replays every record into objects and copies all attributes of a study at each look: at 10,000 trials
that takes many seconds and hundreds of MB. A run needs the records in their order and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from mup_tune.errors import UserError
from mup_tune.files import naming

MINIMIZE, COMPLETE, FAIL = 1, 1, 3  # optuna.study.StudyDirection, optuna.trial.TrialState
LOWEST, HIGHEST = 1e-30, 1e30
# One distribution for every axis: dashboards want log axes, and a run has no fixed bounds.
WIDE = json.dumps({"name": "FloatDistribution", "attributes": {"low": LOWEST, "high": HIGHEST, "log": True}})
WORKER = "mup-tune"


class Op(IntEnum):
    """Optuna's codes of the operations that a run writes."""

    CREATE_STUDY = 0
    SET_STUDY_USER_ATTR = 2
    CREATE_TRIAL = 4


@dataclass(frozen=True)
class Attribute:
    """A study's attribute; the last one of a key counts."""

    study: str
    key: str
    value: Any


@dataclass(frozen=True)
class Row:
    """A trial of a study: its value, None if it failed, and its attributes."""

    study: str
    value: float | None
    attributes: dict[str, Any]


@dataclass
class OptunaLog:
    """One journal file with one writer. ``studies`` numbers the studies in the order they were created."""

    file: Path
    studies: dict[str, int] = field(default_factory=dict)

    def records(self) -> Iterator[Attribute | Row]:
        """All records in their order, up to a tail that its writer did not finish.

        Raises:
            UserError: a line in the middle is damaged, or is nothing that a run writes.
        """
        self.studies.clear()
        try:
            with self.file.open("rb") as lines:
                yield from self._records(lines)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=self.file) from None

    def set_attribute(self, study: str, key: str, value: Any) -> None:
        self._append(Op.SET_STUDY_USER_ATTR, study_id=self._study(study), user_attr={key: value})

    def add_trial(
        self, study: str, value: float | None, params: Mapping[str, float], attributes: Mapping[str, Any]
    ) -> None:
        """A finished trial; its value is None if it failed. Params out of Optuna's bounds are left out."""
        shown = {name: each for name, each in params.items() if LOWEST <= each <= HIGHEST}
        now = datetime.now(UTC).isoformat()
        self._append(
            Op.CREATE_TRIAL,
            study_id=self._study(study),
            datetime_start=now,
            datetime_complete=now,
            state=FAIL if value is None else COMPLETE,
            value=value,
            values=None,
            params=shown,
            distributions=dict.fromkeys(shown, WIDE),
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={},
        )

    def _study(self, name: str) -> int:
        if name not in self.studies:
            self._append(Op.CREATE_STUDY, study_name=name, directions=[MINIMIZE])
            self.studies[name] = len(self.studies)
        return self.studies[name]

    def _append(self, op: Op, **fields: Any) -> None:
        """One line, durable when this returns."""
        line = json.dumps({"op_code": op, "worker_id": WORKER, **fields}, separators=(",", ":"), allow_nan=False)
        # A file that vanishes under its run is not begun anew, so nothing creates it here.
        with naming(self.file), open(os.open(self.file, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _records(self, lines: Iterator[bytes]) -> Iterator[Attribute | Row]:
        names: list[str] = []
        damaged = ""  # what is wrong with a line that may still be the tail
        for number, line in enumerate(lines, 1):
            if damaged:
                raise UserError(damaged, file=self.file, fix="Restore the file from a copy, or start a new run")
            try:
                data = from_json(line)
                if not line.endswith(b"\n") or not isinstance(data, dict):
                    raise ValueError("no whole record")
            except ValueError as error:
                damaged = f"line {number} is damaged ({error})"
                continue
            try:
                record = self._record(data, names)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problem = f"line {number} is no record of a run ({type(error).__name__}: {error})"
                raise UserError(problem, file=self.file, fix="Start a new run, or restore the file") from None
            if record is not None:
                yield record

    def _record(self, data: dict[str, Any], names: list[str]) -> Attribute | Row | None:
        op = Op(data["op_code"])
        if op is Op.CREATE_STUDY:
            name = str(data["study_name"])
            if name not in self.studies:
                self.studies[name] = len(names)
                names.append(name)
            return None
        number = data["study_id"]
        if number not in range(len(names)):
            raise ValueError(f"no line before creates study {number}")
        study = names[number]
        if op is Op.CREATE_TRIAL:
            return Row(study, data["value"], data["user_attrs"])
        ((key, value),) = data["user_attr"].items()
        return Attribute(study, key, value)

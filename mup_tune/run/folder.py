"""The folder of a run: who may write to it, its plan and its corpus, and where everything lies."""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mup_tune.cores import usable_cores
from mup_tune.errors import UserError, refused
from mup_tune.files import dump_yaml, read_json, read_yaml, remove_leftovers, validated, write_atomic
from mup_tune.run.description import CorpusRecord, PlanRecord, RunRecord
from mup_tune.version import VERSION, commit

LOCK, RECORD, PLAN = "lock", "run.json", "plan.yaml"
SHOWN = 5  # differing fields that a refusal lists


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Holder(NamedTuple):
    """The process that the lock file names."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunFolder:
    """A run's folder. Sub-folders are made by whoever writes into them; the properties only name them.

    Attributes:
        path: absolute path of the folder.
        killed: the driver before that ended without giving the run back, if there was one.
    """

    def __init__(self, path: Path, lock: int | None, killed: Holder | None = None) -> None:
        self.path, self._lock, self.killed = path, lock, killed

    @classmethod
    def create_or_resume(
        cls, path: str | Path, plan: dict[str, Any], plan_hash: str, corpus: dict[str, Any]
    ) -> RunFolder:
        """The folder for writing, made if it is new; no other driver gets it until :meth:`close`.

        Args:
            plan: the resolved plan as plain data.
            corpus: facts on the data set; ``hash`` is its identity, ``name`` a label.

        Raises:
            UserError: another driver holds it; it belongs to another plan or corpus; it is no run and not
            empty.
        """
        folder = Path(path).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            lock, killed = _take_lock(folder)
        except OSError as error:
            problem = f"cannot be used as a run folder ({str(error.strerror).lower()})"
            raise UserError(problem, file=path, fix=_fix(error)) from None
        run = cls(folder, lock, killed)
        for each in (run.path, run.curves, run.tables, run.settings):
            remove_leftovers(each)
        try:
            if _is_run(folder):
                run._same(plan, plan_hash, corpus)
            else:
                record = _record(plan_hash, corpus).model_dump(mode="json", exclude_unset=True)
                write_atomic(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
                write_atomic(folder / PLAN, dump_yaml(plan))  # last: both files together make a folder a run
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder for reading; takes no lock. A :class:`UserError` with the nearest run if it is none."""
        folder = Path(path).absolute()
        if not _is_run(folder):
            problem = "is not a run folder" if folder.exists() else "no such run"
            raise UserError(problem, file=path, fix=_nearest(folder))
        return cls(folder, None)

    @property
    def locked(self) -> bool:
        """Whether this object holds the run for writing."""
        return self._lock is not None

    @property
    def journal(self) -> Path:
        return self.path / "journal.log"

    @property
    def curves(self) -> Path:
        return self.path / "curves"

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    @property
    def settings(self) -> Path:
        return self.path / "settings"

    @property
    def log(self) -> Path:
        """What loggers keep."""
        return self.path / "log"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @cached_property
    def plan(self) -> PlanRecord:
        """The resolved plan that the run was created with."""
        return validated(PlanRecord, read_yaml(self.path / PLAN), self.path / PLAN)

    @cached_property
    def record(self) -> RunRecord:
        """Version, plan hash, corpus, when and on which machine the run was created."""
        return validated(RunRecord, read_json(self.path / RECORD), self.path / RECORD)

    def is_live(self) -> bool:
        """Whether a driver holds the run now, this process included."""
        try:
            probe = os.open(self.path / LOCK, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _flock(probe, fcntl.LOCK_SH)
        except OSError:  # no locks on this file system, and so no driver
            return False
        finally:
            os.close(probe)  # also gives the shared lock back

    def close(self) -> None:
        """Give the run back. The lock file stays: without it two drivers could lock two files of one name."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _same(self, plan: dict[str, Any], plan_hash: str, corpus: dict[str, Any]) -> None:
        if self.record.plan_hash != plan_hash:
            changes = differences(read_yaml(self.path / PLAN), _plain(plan))
            found = [f"{field} was {old}, now {new}" for field, old, new in changes]
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            what = "; ".join(found[:SHOWN]) + more or "only its hash differs: another version of mup-tune wrote it"
            raise UserError(
                f"this run belongs to another plan ({what})",
                file=self.path / PLAN,
                fix="Give the plan it was started with, or another --run folder",
            )
        old, new = self.record.corpus, corpus
        if old.hash != new["hash"]:
            raise UserError(
                f"this run was trained on the corpus {old.name} [{old.hash}], not on {new['name']} [{new['hash']}]",
                file=self.path / RECORD,
                field="corpus.hash",
                fix="Give the data it was started with, or another --run folder",
            )


def differences(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted field, old value, new value) wherever two plans differ; labels (``name``) do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            if key != "name":
                where = f"{field}.{key}" if field else str(key)
                yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{field}[{index}]")
    elif old != new:
        yield field, _short(old), _short(new)


_ABSENT = object()


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(plan: dict[str, Any]) -> Any:
    return json.loads(json.dumps(plan))  # tuples become lists, as they do in plan.yaml


def _record(plan_hash: str, corpus: dict[str, Any]) -> RunRecord:
    """The record of a run that begins here and now."""
    return RunRecord(
        version=VERSION,
        plan_hash=plan_hash,
        corpus=CorpusRecord.model_validate(corpus),
        created=utc_now(),
        host=platform.node(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=usable_cores(),
        commit=commit(),
    )


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file() and (folder / PLAN).is_file()


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but a run, a half-made run, or nothing."""
    beside = (f".{RECORD}.", f".{PLAN}.")  # where atomic writes start
    foreign = [
        name for name in sorted(os.listdir(folder)) if name not in (LOCK, RECORD) and not name.startswith(beside)
    ]
    if foreign and not _is_run(folder):
        raise UserError(
            f"the folder is not empty (it holds {foreign[0]!r}) and is not a run",
            file=folder,
            fix="Name a new folder, or that of a run",
        )


def _nearest(folder: Path) -> str | None:
    """A hint on runs inside the folder, or beside it with a similar name."""
    inside = _runs_in(folder)
    if inside:
        return f"It holds runs: {', '.join(inside[:SHOWN])}"
    beside = _runs_in(folder.parent)
    close = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.5) or beside[:1]
    return f"Did you mean {folder.parent / close[0]}?" if close else None


def _runs_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if _is_run(entry))
    except (OSError, ValueError):  # a name may hold what no path can
        return []


def _take_lock(folder: Path) -> tuple[int, Holder | None]:
    """An exclusive flock on the run, an open file descriptor, and whom the file names as its holder so far.

    The flock ends with its process, however that ends. So a file that names a process, dead or of a number
    that was given again, holds nobody off.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for attempt in range(4):
            if _flock(lock, fcntl.LOCK_EX):
                before = _holder(lock)
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)
                return lock, before
            if attempt < 3:
                time.sleep(0.05)  # a reader's is_live() holds the lock for microseconds
        raise UserError(
            f"another driver is at work on this run ({_holder(lock) or 'a process that has just started'})",
            file=folder,
            fix="Wait until it ends or stop it; the same command then resumes the run",
        )
    except BaseException:
        os.close(lock)
        raise


def _fix(error: OSError) -> str:
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        return "Its file system has no locks: name a folder on another one"
    known = refused(error)
    return known.fix if known and known.fix else "Name another folder"


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise


def _holder(lock: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(lock, 4096, 0)))
    except (ValueError, TypeError):
        return None

"""The one error type that users are meant to see, and the help it gives."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mup_tune.interrupts import cause

PLACE, SENTENCE = 300, 1200  # characters of a file's or field's name, and of a sentence: 37 axes can be listed


class UserError(Exception):
    """Wrong input: one clear message on one line, exit code 2, no traceback.

    What it quotes may be anything that a file or a shell can hold. Control characters are shown as escapes,
    and what is too long to read is cut in its middle.

    Args:
        problem: what is wrong, as a sentence without its full stop.
        file: where the value was read from.
        field: dotted path of the field inside the file, or the flag.
        fix: what to do about it.
    """

    exit_code = 2

    def __init__(
        self, problem: str, *, file: str | Path | None = None, field: str | None = None, fix: str | None = None
    ) -> None:
        self.problem, self.file, self.field, self.fix = problem, file, field, fix
        where = ": ".join(_readable(str(part), PLACE) for part in (file, field) if part)
        told = _readable(problem, SENTENCE) + (f". {_readable(fix, SENTENCE)}" if fix else "")
        super().__init__((f"{where}: " if where else "") + told)


def _readable(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    half = limit // 2
    return shown if len(shown) <= limit else f"{shown[:half]} … {shown[-half:]}"


class DivergedError(UserError):
    """Nothing was learned, since every trial diverged: one message, exit code 3 (inconclusive)."""

    exit_code = 3


FIXES = {
    errno.ENOSPC: "Free space on its disk, then give the same command again: what is finished is kept",
    errno.EDQUOT: "Free some of your quota, then give the same command again: what is finished is kept",
    errno.EFBIG: "Raise `ulimit -f`, then give the same command again: what is finished is kept",
    errno.ENOENT: "It vanished meanwhile: put it back, then give the same command again",
    errno.ESTALE: "Its file system went away: mount it, then give the same command again",
    errno.EACCES: "Name a place that you may use",
    errno.EPERM: "Name a place that you may use",
    errno.EROFS: "Name a place that can be written",
    errno.ENAMETOOLONG: "Name a shorter one",
    errno.ENOTDIR: "Name a place below a folder",
    errno.ELOOP: "Its links lead in a circle: name what they should point at",
    errno.EIO: "Look at its disk, then give the same command again: what is finished is kept",
    errno.EMFILE: "Raise `ulimit -n`",
    errno.ENFILE: "The machine has no more open files to give: ask its administrator",
}


def refused(error: OSError) -> UserError | None:
    """What the machine refuses to a command, with the fix; None for what would be a fault of the program."""
    if error.errno not in FIXES:
        return None
    return UserError(str(error.strerror).lower(), file=error.filename, fix=FIXES[error.errno])


class InterruptedRunError(Exception):
    """A signal stopped the command: exit code 128 + its number, 130 for Ctrl-C.

    Args:
        then: what is kept and how to go on, as sentences.
    """

    def __init__(self, then: str) -> None:
        number = cause()
        by = "" if number == signal.SIGINT else f" by {number.name}"
        super().__init__(f"Interrupted{by}. {then}")
        self.exit_code = 128 + number


@contextmanager
def located(file: str | Path | None = None, field: str | None = None) -> Iterator[None]:
    """Say where a :class:`UserError` from inside was met.

    An error that names a field and no file gets ``file``, and its field is taken as lying below ``field``. An
    error that names its own file keeps its place.
    """
    try:
        yield
    except UserError as error:
        if error.file:
            raise
        below = ".".join(part for part in (field, error.field) if part)
        raise UserError(error.problem, file=file, field=below or None, fix=error.fix) from None


@contextmanager
def as_value_error() -> Iterator[None]:
    """Turn a :class:`UserError` into the ValueError that a pydantic validator may raise."""
    try:
        yield
    except UserError as error:
        raise ValueError(". ".join(part for part in (error.problem, error.fix) if part)) from None


def unknown(what: str, value: object, allowed: Iterable[object]) -> str:
    """A sentence on an unknown ``value``, with the nearest allowed one as a suggestion."""
    options = [str(option) for option in allowed]
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {str(value)!r}{hint} (allowed: {', '.join(options)})"

"""The one error type that users are meant to see, and the help it gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Wrong input: one clear message, exit code 2, no traceback.

    Args:
        problem: what is wrong, as a sentence without its full stop.
        file: where the value was read from.
        field: dotted path of the field inside the file, or the flag.
        fix: what to do about it.
    """

    def __init__(
        self, problem: str, *, file: str | Path | None = None, field: str | None = None, fix: str | None = None
    ) -> None:
        self.problem, self.file, self.field, self.fix = problem, file, field, fix
        where = ": ".join(str(part) for part in (file, field) if part)
        super().__init__((f"{where}: " if where else "") + problem + (f". {fix}" if fix else ""))


@contextmanager
def located(file: str | Path | None = None, field: str | None = None) -> Iterator[None]:
    """Say where: a :class:`UserError` from inside gets ``file``, and ``field`` before its own."""
    try:
        yield
    except UserError as error:
        dotted = ".".join(part for part in (field, error.field) if part)
        raise UserError(error.problem, file=error.file or file, field=dotted or None, fix=error.fix) from None


class InterruptedRunError(Exception):
    """The user pressed Ctrl-C; what was committed is kept and the message says how to resume (exit code 130)."""


def unknown(what: str, value: object, allowed: Iterable[object]) -> str:
    """A sentence on an unknown ``value``, with the nearest allowed one as a suggestion."""
    options = [str(option) for option in allowed]
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {str(value)!r}{hint} (allowed: {', '.join(options)})"

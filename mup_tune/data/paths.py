"""Paths that corpus.json can hold."""

from __future__ import annotations

from pathlib import Path

from mup_tune.errors import UserError


def storable(path: Path) -> Path:
    """``path``, if it can stand in JSON.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError("is not a path in UTF-8, and corpus.json has to name it", file=ascii(str(path))) from None
    return path

"""The formats of an export. A module here that defines a :class:`.format.Format` adds one."""

from __future__ import annotations

from collections.abc import Iterable

from mup_tune.errors import UserError, unknown
from mup_tune.registry import import_modules
from mup_tune.transfer.format import Format

import_modules(__name__, __path__)


def formats(asked: Iterable[str]) -> list[Format]:
    """The formats of ``asked``, each a name or a comma list, in their order and each once.

    Raises:
        UserError: an unknown name.
    """
    names = dict.fromkeys(part.strip() for each in asked for part in each.split(","))
    for name in names:
        if name not in Format.known:
            raise UserError(unknown("format", name, Format.known), field="--format")
    return [Format.known[name] for name in names]

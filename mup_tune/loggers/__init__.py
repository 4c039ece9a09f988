"""Loggers tell a run where people already look.

A module here that defines a :class:`.logger.Logger` adds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from mup_tune.errors import UserError, unknown
from mup_tune.loggers.logger import Logger
from mup_tune.registry import import_modules

import_modules(__name__, __path__)


def loggers(asked: Iterable[str]) -> list[type[Logger]]:
    """The loggers of these names, each once, whose packages are there.

    Raises:
        UserError: an unknown name, or a package that is missing or cannot be imported.
    """
    names = list(dict.fromkeys(asked))
    for name in names:
        if name not in Logger.known:
            raise UserError(unknown("logger", name, Logger.known), field="--log")
    found = [Logger.known[name] for name in names]
    for logger in found:
        try:
            for module in logger.needs:
                import_module(module)
        except Exception as error:  # a package that is there and broken raises what it likes
            first, *_ = str(error).splitlines() or [""]
            problem = f"{logger.name} cannot be imported ({type(error).__name__}: {first})"
            raise UserError(problem, field="--log", fix='`pip install "mup-tune[log]"`, or leave it out') from None
    return found

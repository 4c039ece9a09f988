"""Kinds that register themselves: importing every module of a package is all that finds them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of ``package``, whose ``__path__`` is ``path``."""
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")

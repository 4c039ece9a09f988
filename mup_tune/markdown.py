"""Markdown of what a program knows: names as they are, tables and lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """``text`` as Markdown that shows it verbatim: no emphasis, links, code, HTML, tables or mathematics."""
    return re.sub(r"([\\`*\[\]<>|&$~#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)

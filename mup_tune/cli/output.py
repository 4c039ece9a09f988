"""How commands print: a rich table for people, JSON for scripts.

What is printed holds names that users chose, so nothing in a string is ever taken for markup, an emoji code
or a number to colour. Style is deliberate: a :class:`rich.text.Text`, such as :func:`led` makes.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Terminal(Console):
    """A console that prints strings as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Nobody reads on (``| head -1``): the rest goes nowhere, and the command does its work."""
        self.quiet = True
        with suppress(OSError):  # a stream without a file of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = Terminal()
err_console = Terminal(stderr=True)


WIDE = 240  # columns that a table takes at most where a user asks for all of it


def replace_unencodable() -> None:
    """Let stdout and stderr replace what their encoding lacks, so that a ± cannot end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def number(value: object) -> str:
    """A number for people: five significant digits, no trailing zeros."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    return " × ".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)


def led(lead: str, rest: str, style: str = "bold") -> Text:
    """A line whose first words are styled, and the rest as it is."""
    return Text.assemble((lead, style), rest)


def say(*lines: str | Text) -> None:
    """Lines for people, without wrapping."""
    for line in lines:
        console.print(line, soft_wrap=True)


def print_json(data: Any) -> None:
    """Plain JSON on stdout, whatever the terminal. What its encoding lacks is escaped, not replaced."""
    everything = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    console.out(json.dumps(data, indent=2, ensure_ascii=not everything))


def print_rows(rows: Sequence[dict[str, Any]], title: str, caption: str = "", wide: bool = False) -> None:
    """Rows with the same keys, as a table. ``wide``: a line a row, however narrow the terminal is."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left", box=None)
    for place, key in enumerate(rows[0]):
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        # What a row is about stays in one piece, as long as it leaves a narrow terminal room for the rest.
        whole = place == 0 and max(len(number(row[key])) for row in rows) <= 24
        table.add_column(key, justify="right" if numeric else "left", overflow="fold", no_wrap=whole or numeric or wide)
    for row in rows:
        table.add_row(*(number(value) for value in row.values()))
    (Terminal(file=console.file, width=max(console.width, WIDE)) if wide else console).print(table)

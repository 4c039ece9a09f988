"""How commands print: a rich table for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console()
err_console = Console(stderr=True)


def number(value: object) -> str:
    """A number for people: five significant digits, no trailing zeros."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    return " × ".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)


def say(*lines: str) -> None:
    """Lines for people exactly as they are: no markup, no colours, no wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Plain JSON on stdout, whatever the terminal."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[dict[str, Any]], title: str, caption: str = "") -> None:
    """Rows with the same keys, as a table."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left", box=None)
    for place, key in enumerate(rows[0]):
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        # What a row is about stays in one piece, as long as it leaves a narrow terminal room for the rest.
        whole = place == 0 and max(len(number(row[key])) for row in rows) <= 24
        table.add_column(key, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(number(value) for value in row.values()))
    console.print(table)

"""``index.html`` of a folder of reports: a table with a row a report, which a script can sort and search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mup_tune.files import write_atomic
from mup_tune.report import formats
from mup_tune.report.html import rendered
from mup_tune.report.summary import Summary, read_summary

FILE = "index.html"
MARK = '<meta name="generator" content="mup-tune reports">'
NAMED = "reports"  # a folder of that name is given an index


@dataclass(frozen=True)
class Entry:
    """One report: the folder that it lies in and what it says. ``problem``: why nothing is known of it."""

    name: str
    summary: Summary | None
    problem: str = ""

    @property
    def link(self) -> str:
        return f"{quote(self.name, safe='')}/{FILE}"


def entries(folder: Path) -> list[Entry]:
    """The reports in a folder, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            summary = read_summary(path)
            if summary is not None:
                found.append(Entry(path.name, summary))
    return found


def index_page(name: str, reports: Sequence[Entry]) -> str:
    """The page, the newest report first."""
    ordered = sorted(reports, key=lambda each: (each.summary.date if each.summary else "", each.name), reverse=True)
    return rendered(
        "index.html",
        name=name,
        reports=ordered,
        generator=MARK,
        day=lambda iso: formats.instant(iso)[:10],
        duration=formats.duration,
    )


def has_index(folder: Path) -> bool:
    """Whether its index is one of ours."""
    try:
        with (folder / FILE).open(encoding="utf-8") as file:
            return MARK in file.read(4096)
    except (OSError, UnicodeDecodeError):
        return False


def wants_index(folder: Path) -> bool:
    """A folder with an index of ours, or one that is called reports and has no other page there."""
    return has_index(folder) or (folder.resolve().name == NAMED and not (folder / FILE).exists())


def write_index(folder: Path) -> Path | None:
    """Write the index anew where the folder wants one; its file."""
    if not wants_index(folder):
        return None
    write_atomic(folder / FILE, index_page(folder.resolve().name, entries(folder)))
    return folder / FILE

"""A report as a folder: the page, its Markdown, its tables and figures, and what an index says of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mup_tune.errors import UserError
from mup_tune.files import out_folder
from mup_tune.interrupts import stops_deferred
from mup_tune.report.markdown import markdown
from mup_tune.report.page import render
from mup_tune.report.standalone import figures
from mup_tune.report.summary import FILE, summary_of
from mup_tune.report.tables import csv, tables
from mup_tune.run.view import RunView

PAGE = "index.html"
FILES = (PAGE, "report.md", FILE)
FOLDERS = {"tables": ".csv", "figures": ".svg"}  # what each holds
ATTEMPTS = 5  # another process may write the same folder


def files_of(run: RunView) -> dict[str, bytes]:
    """Every file of a run's report by its place. The same run gives the same bytes."""
    page, made = render(run), tables(run)
    drawn = figures(page)
    return {
        PAGE: page.encode(),
        "report.md": markdown(run, made, drawn).encode(),
        FILE: summary_of(run).text().encode(),
        **{f"tables/{name}.csv": csv(each) for name, each in made.items()},
        **{f"figures/{each.name}.svg": each.svg.encode() for each in drawn},
    }


def write_report(run: RunView, out: Path, field: str = "--out") -> Path:
    """Write the report of a run to the folder ``out``; the page in it.

    Raises:
        UserError: as :func:`write_folder`.
    """
    report_place(out, field)
    write_folder(files_of(run), out, field)
    return out / PAGE


def write_folder(files: Mapping[str, bytes], out: Path, field: str = "--out") -> None:
    """Write ``files`` as the whole content of the folder ``out``, all of it or nothing.

    A report that lies there gives way at once. Whoever reads meets the old one or the new one, and for the
    moment between two renames none.

    Raises:
        UserError: ``out`` cannot be written, or holds something that no report of ours has.
    """
    place = report_place(out, field)
    fresh, old = (place.with_name(f".{place.name}{which}.{os.getpid()}") for which in ("", ".old"))
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for name, content in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _put(fresh, place, old)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be written ({error.strerror})", field=field) from None
    finally:
        for each in (fresh, old):
            shutil.rmtree(each, ignore_errors=True)


def report_place(out: Path, field: str = "--out") -> Path:
    """Where a report is written: ``out``, or what it points at. To be called before any long work.

    Raises:
        UserError: it cannot be a folder there, or one is there that is no report of ours.
    """
    place = out_folder(out, field)
    foreign = next(_foreign(place), None) if place.is_dir() else None
    if foreign is not None:
        problem = f"{str(out)!r} holds {foreign!r}, which is not part of a report"
        raise UserError(problem, field=field, fix="Name a new folder, or that of a report")
    return place


def _foreign(folder: Path) -> Iterator[str]:
    """What lies in a folder beside the files of a report."""
    for entry in sorted(folder.iterdir()):
        suffix = FOLDERS.get(entry.name)
        if suffix and entry.is_dir() and not entry.is_symlink():
            for each in sorted(entry.iterdir()):
                if each.suffix != suffix or not each.is_file():
                    yield f"{entry.name}/{each.name}"
        elif entry.name not in FILES or not entry.is_file():
            yield entry.name
    if (folder / PAGE).exists() and not (folder / FILE).exists():
        yield PAGE


def _put(fresh: Path, place: Path, old: Path) -> None:
    """Swap a folder in. Between the two renames no signal strikes."""
    for attempt in range(ATTEMPTS):
        with stops_deferred():
            if place.is_dir():
                os.replace(place, old)
            try:
                os.replace(fresh, place)
                return
            except OSError as error:
                if old.is_dir() and not place.exists():
                    os.replace(old, place)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == ATTEMPTS - 1:
                    raise
        shutil.rmtree(old, ignore_errors=True)

"""What ``mup-tune serve`` shows of a folder: an index, its reports as they lie there, and pages of its runs.

A place names one of few files: nothing else of the folder can be asked for, hidden files, links that lead out
of it and the runs' own files included.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from mup_tune.errors import UserError
from mup_tune.report.folder import FILES, FOLDERS, PAGE, files_of
from mup_tune.report.html import rendered
from mup_tune.report.index import Entry, entries, index_page
from mup_tune.report.summary import read_summary, summary_of
from mup_tune.run.folder import RunFolder
from mup_tune.run.view import load_run

KEPT = 16  # runs whose files stay in memory
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Found:
    """What a place holds. ``content`` is made when it is asked for; ``version`` changes when it does."""

    content: Callable[[], bytes]
    suffix: str
    version: str


@dataclass(frozen=True)
class Moved:
    """The place is a folder, and its name lacks the slash at its end."""

    to: str


class Site:
    """The reports and runs in one folder. ``only``: the one of them that is shown, where one was asked for.

    Figures are drawn by one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        alone = is_run(folder) or read_summary(folder) is not None
        self.root: Path = folder.parent if alone else folder
        self.only: str | None = folder.name if alone else None
        self._made: OrderedDict[Path, tuple[str, Mapping[str, bytes] | UserError]] = OrderedDict()
        self._drawing = threading.Lock()

    def find(self, target: str) -> Found | Moved | None:
        """What lies at the path of a request, which is still quoted."""
        parts = unquote(target.split("?", 1)[0].split("#", 1)[0]).split("/")
        if parts.pop(0) != "":
            return None
        if parts in ([""], [PAGE]):
            return self._index()
        name, *below = parts
        folder = self._folder(name)
        if folder is None:
            return None
        if not below:
            return Moved(f"{target.split('?', 1)[0].rsplit('/', 1)[1]}/")
        file = PAGE if below == [""] else "/".join(below)
        if not _served(file):
            return None
        return self._of_run(folder, file) if is_run(folder) else _of_report(folder, file)

    def _folder(self, name: str) -> Path | None:
        """A folder of that name that lies right here, a report or a run."""
        if self.only not in (None, name) or not _plain(name):
            return None
        path = self.root / name
        try:
            inside = path.is_dir() and path.resolve() == path
        except (OSError, ValueError):  # a name may hold what no path can
            return None
        return path if inside and (is_run(path) or read_summary(path) is not None) else None

    def _index(self) -> Found:
        reports = [each for each in entries(self.root) if self._folder(each.name)]
        runs = [path for path in sorted(self.root.iterdir()) if self._folder(path.name) and is_run(path)]
        versions = [f"{each.name} {each.summary}" for each in reports] + [f"{run.name} {version(run)}" for run in runs]
        live = any(each.summary and each.summary.state == "live" for each in reports) or any(map(is_live, runs))

        def content() -> bytes:
            page = index_page(self.root.name, [*reports, *map(self._entry, runs)])
            return (refreshing(page) if live else page).encode()

        return Found(content, ".html", _tag("\n".join(versions)))

    def _entry(self, run: Path) -> Entry:
        """A run in the index: one line even where it cannot be read."""
        try:
            return Entry(run.name, summary_of(load_run(run)))
        except UserError as error:
            return Entry(run.name, None, str(error))

    def _of_run(self, run: Path, file: str) -> Found | None:
        at = version(run)

        def content() -> bytes:
            made = self._files(run, at)
            if isinstance(made, UserError):
                return refreshing(rendered("problem.html", name=run.name, problem=str(made))).encode()
            page = made.get(file, b"")
            return refreshing(page.decode()).encode() if file == PAGE and is_live(run) else page

        if file != PAGE:
            made = self._files(run, at)
            if isinstance(made, UserError) or file not in made:
                return None
        return Found(content, Path(file).suffix, _tag(at))

    def _files(self, run: Path, at: str) -> Mapping[str, bytes] | UserError:
        """The report of a run as of ``at``, made once."""
        with self._drawing:
            known = self._made.get(run)
            if known is None or known[0] != at:
                try:
                    known = at, files_of(load_run(run))
                except UserError as error:
                    known = at, error
                self._made[run] = known
            self._made.move_to_end(run)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
            return known[1]


def is_run(path: Path) -> bool:
    try:
        RunFolder.open(path)
    except UserError:
        return False
    return True


def is_live(run: Path) -> bool:
    return RunFolder.open(run).is_live()


def version(run: Path) -> str:
    """Changes with the journal, and when a driver comes or goes."""
    folder = RunFolder.open(run)
    try:
        stat = folder.journal.stat()
    except OSError:
        return f"no journal {folder.is_live()}"
    return f"{stat.st_size} {stat.st_mtime_ns} {folder.is_live()}"


def refreshing(page: str) -> str:
    """The page with a script that loads it anew when it has changed, and keeps the place in it."""
    before, end, after = page.rpartition("</body>")
    return before + rendered("refresh.html") + end + after


def _of_report(folder: Path, file: str) -> Found | None:
    path = folder / file
    try:
        if path.resolve() != path or not path.is_file():
            return None
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return Found(path.read_bytes, path.suffix, _tag(f"{stat.st_size} {stat.st_mtime_ns}"))


def _served(file: str) -> bool:
    """Whether a report has such files."""
    folder, _, name = file.rpartition("/")
    return file in FILES if not folder else FOLDERS.get(folder) == Path(name).suffix and _plain(name)


def _plain(name: str) -> bool:
    """A name of one entry of a folder, and of none that is hidden."""
    return bool(name) and not name.startswith(".") and not {"/", "\\", "\0"} & set(name)


def _tag(text: str) -> str:
    return f'"{hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]}"'

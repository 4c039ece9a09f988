"""``report``: a run, finished or not, or several side by side, as a folder, a page, or in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.output import console, say
from mup_tune.errors import UserError

OWN = "report"  # where a run's own report lies in its folder


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="The run's folder; several are compared.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE.html",
            help="Folder to write, RUN/report if left out; a .html file takes the page alone. Several runs need it.",
        ),
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Print the answer here, and write nothing.")] = False,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Write the report of a run: the gain with its CI, what was run, all figures, the Settings found.

    The folder holds `index.html`, a page that needs no network and no server, and the same as `report.md`,
    `tables/*.csv` and `figures/*.svg`. A run still in progress gives what is known so far. Several runs give
    one page that compares their Settings, gains, sensitivities and costs.

    Reports that lie side by side in a folder called `reports`, or in one that has an index, are listed in its
    `index.html`. `mup-tune serve` shows them all.
    """
    if terminal:
        _print(runs, out)
        return
    if len(runs) > 1 and out is None:
        fix = "Name a new folder, such as --out reports/comparison"
        raise UserError("several runs need a folder for their comparison", field="--out", fix=fix)
    page = _write(runs, out or runs[0] / OWN)
    say(str(page))
    if show:
        typer.launch(page.resolve().as_uri())


def _write(runs: list[Path], out: Path) -> Path:
    """The report of one run, or of several, to a folder or a file; the page."""
    from mup_tune.files import out_file, write_out
    from mup_tune.report.folder import PAGE, files_of, report_place, write_folder
    from mup_tune.report.index import NAMED, write_index
    from mup_tune.run.view import load_run

    alone = out.suffix.lower() in (".html", ".htm") or (out.exists() and not out.is_dir())
    if not alone and out.parent.name == NAMED and out.parent.parent.is_dir():
        out.parent.mkdir(exist_ok=True)
    (out_file if alone else report_place)(out)  # before any long work
    views = [load_run(run) for run in runs]
    if len(views) == 1 and alone:
        from mup_tune.report.page import write

        write(views[0], out)
        return out
    if len(views) == 1:
        files = files_of(views[0])
    else:
        from mup_tune.report.comparison import compared
        from mup_tune.report.comparison_page import comparison_files

        files = comparison_files(compared(views))
    if alone:
        write_out(out, files[PAGE])
        return out
    write_folder(files, out)
    if out != runs[0] / OWN:
        write_index(out.absolute().parent)
    return out / PAGE


def _print(runs: list[Path], out: Path | None) -> None:
    from mup_tune.report.terminal import told
    from mup_tune.run.view import load_run

    if len(runs) > 1 or out is not None:
        problem = "shows one run, and writes nothing"
        raise UserError(problem, field="--terminal", fix="Give one RUN, and leave --out out")
    say(*told(load_run(runs[0]), console))


def register(app: typer.Typer) -> None:
    app.command()(report)

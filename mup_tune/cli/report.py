"""``report``: one self-contained HTML page on a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.options import RunArgument
from mup_tune.cli.output import say


def report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write; RUN/report.html if left out.")
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Write the page of a run: the gain with its CI, what was run, every sweep's figure, the Settings found.

    The page needs no network and no server. A run still in progress gives a page on what is known so far.
    """
    from mup_tune.report.page import write
    from mup_tune.run.view import load_run

    file = out or run / "report.html"
    write(load_run(run), file)
    say(str(file))
    if show:
        typer.launch(file.resolve().as_uri())


def register(app: typer.Typer) -> None:
    app.command()(report)

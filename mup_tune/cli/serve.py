"""``serve``: reports and runs in the browser, live while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.output import say
from mup_tune.errors import InterruptedRunError, UserError


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of reports or of runs, or one report or run.")
    ] = Path("reports"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 takes a free one.")] = 8765,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = False,
) -> None:
    """Show reports and runs in the browser, on this machine alone (127.0.0.1) and for reading alone.

    Reports are shown as they lie in DIR. Pages of runs are made when they are asked for, and made anew once
    the run has gone on. The page of a run in progress follows it by itself.

    On a machine far away, `ssh -L 8765:127.0.0.1:8765 HOST` brings its port here.
    """
    if not folder.is_dir():
        fix = "`mup-tune report RUN --out reports/NAME` writes a report; `mup-tune serve runs` shows runs"
        raise UserError(f"there is no folder {str(folder)!r}", field="DIR", fix=fix)
    from mup_tune.report.index import write_index
    from mup_tune.report.server import Server
    from mup_tune.report.site import Site

    site = Site(folder)
    with Server(site, port) as server:
        write_index(site.root)
        say(f"{server.url} shows {folder}; Ctrl-C ends it")
        if show:
            typer.launch(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise InterruptedRunError("Nothing is served any more.") from None


def register(app: typer.Typer) -> None:
    app.command()(serve)

"""``dashboard``: a run's trials in optuna-dashboard, on a copy of the journal."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.options import RunArgument
from mup_tune.cli.output import say
from mup_tune.errors import UserError


def dashboard(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens on this machine, 127.0.0.1.")] = 8080,
    copy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the copy there and start nothing: for another machine.")
    ] = None,
) -> None:
    """Look at a run's trials in optuna-dashboard, each stage a study.

    It works on a copy of the journal as it is now, for a dashboard can rename and delete. A sweep is not
    disturbed. `pip install optuna-dashboard` brings what is shown. `optuna-dashboard FILE` opens a copy too.
    """
    from mup_tune.files import out_file, write_out
    from mup_tune.run.folder import RunFolder
    from mup_tune.run.journal import Journal

    if copy:
        out_file(copy, "--copy")
    folder = RunFolder.open(run)
    Journal(folder, writable=False).close()  # what is damaged is said here, and not by a server
    whole = folder.journal.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]  # a sweep may be writing the last line
    if copy:
        write_out(copy, whole, "--copy")
        say(f"{copy}: `optuna-dashboard {copy}` shows it")
        return
    try:
        server = import_module("optuna_dashboard").run_server
    except ImportError:
        fix = "`pip install optuna-dashboard`, or write a copy for another machine with --copy FILE"
        raise UserError("optuna-dashboard is not installed", fix=fix) from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal.log"
        path.write_bytes(whole)
        say(f"http://127.0.0.1:{port} shows {run} as it is now; Ctrl-C ends it")
        server(JournalStorage(JournalFileBackend(str(path))), host="127.0.0.1", port=port)


def register(app: typer.Typer) -> None:
    app.command()(dashboard)

"""The command line. One file a command; heavy imports stand inside it, so that ``--help`` is instant."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mup_tune.cli import (
    basin,
    check,
    dashboard,
    data,
    doctor,
    launch,
    new,
    plan,
    proxy,
    report,
    roles,
    serve,
    status,
    sweep,
    transfer,
    validate,
    verify,
)
from mup_tune.cli.output import err_console, led, replace_unencodable, say
from mup_tune.cores import usable_cores
from mup_tune.errors import InterruptedRunError, UserError, refused
from mup_tune.interrupts import stop_signals
from mup_tune.version import VERSION


class _Program(TyperGroup):
    """All commands: a signal, or a machine that refuses, ends any of them in one way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise refused(error) or error from None
        except KeyboardInterrupt:
            raise InterruptedRunError("Nothing half-made is left; give the same command again.") from None


app = typer.Typer(
    name="mup-tune",
    cls=_Program,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="µP hyperparameter tuning and scaling of Falcon-H1 models: sweep a small proxy, transfer to full size.",
    epilog="Start with `mup-tune sweep quickstart --run runs/first`. Exit codes: 0 done, 1 failed, 2 wrong input, "
    "3 inconclusive or all diverged, 130 interrupted (128 + the signal: 143 by SLURM's SIGTERM).",
)
for command in (
    data,
    proxy,
    roles,
    new,
    plan,
    sweep,
    status,
    validate,
    transfer,
    verify,
    report,
    serve,
    dashboard,
    launch,
    check,
    doctor,
):
    command.register(app)
basin.register(check.check)


def _version(asked: bool) -> None:
    if asked:
        say(f"mup-tune {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def main() -> None:
    """Entry point: a :class:`UserError` becomes one line on stderr and exit code 2."""
    replace_unencodable()
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))  # torch knows no container's CPU limit
    try:
        with stop_signals():
            get_command(app)(prog_name="mup-tune")
    except UserError as error:
        err_console.print(led("error:", f" {error}", "bold red"), soft_wrap=True)
        sys.exit(error.exit_code)
    except InterruptedRunError as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it would hit libraries that tidy up at exit
        err_console.print(str(error), soft_wrap=True)
        sys.exit(error.exit_code)

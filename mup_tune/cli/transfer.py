"""``transfer``: carry tuned settings to a full-size Shape."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.options import JsonOption
from mup_tune.cli.output import console, print_json, say


def transfer(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|SETTINGS", help="A run folder, falcon-h1-published, or a settings YAML."),
    ],
    target: Annotated[str, typer.Option(metavar="NAME|FILE", help="The full-size Shape: shipped, or a YAML file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not exist, or be empty.")],
    batch_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens a step of the target: scales η by √(N/run's). Left out: η as tuned."),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO|from-run",
            help="Share the target's channels anew, SSM:attention:MLP in eighths such as 2:1:5, or the run's best.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a full-size config with its init, parameter groups and schedule.

    The config alone trains from a wrong init: the folder's README.md shows how to use `load_transfer`. With
    transformers installed (`mup-tune[verify]`) the target is built on the meta device and every parameter
    must match exactly one pattern, else nothing is written.
    """
    from mup_tune.shape import load_shape
    from mup_tune.transfer.channels import resplit
    from mup_tune.transfer.hf import export_hf
    from mup_tune.transfer.resolve import at_batch, resolve

    found = resolve(source)
    if batch_tokens is not None:
        found = at_batch(found, batch_tokens)
    shape = load_shape(target)
    export = export_hf(found, shape if channels is None else resplit(shape, channels, source), out)
    if json:
        print_json({**asdict(export), "out": str(export.out)})
        return
    for warning in export.warnings:
        console.print("[bold yellow]warning:[/] ", end="")
        say(warning)
    say(
        f"{export.target}, {export.parameters:,} parameters, from {export.origin}",
        *([f"note: {export.note}"] if export.note else []),
        export.verification,
        f"{export.out}: {', '.join(export.files)}",
        f"Read {export.out / 'README.md'} before training: config.json alone starts from a wrong init.",
    )


def register(app: typer.Typer) -> None:
    app.command()(transfer)

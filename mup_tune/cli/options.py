"""Options that several commands share. Each is declared once, and so reads the same everywhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mup_tune.errors import UserError, unknown


class Executor(StrEnum):
    """What drives a run's packs."""

    RAY = "ray"
    INLINE = "inline"


def one_of(flag: str, what: str, allowed: Iterable[str], help: str) -> Any:
    """An option that takes one of ``allowed``; any other ``what`` is refused with the nearest one."""
    values = {str(each): each for each in allowed}

    def parsed(value: str) -> str:
        if value not in values:
            raise UserError(unknown(what, value, values), field=flag)
        return values[value]

    return typer.Option(flag, parser=parsed, metavar="|".join(values), help=help, autocompletion=lambda: list(values))


def shipped_names(kind: str) -> Callable[[], list[str]]:
    """What a shell offers for a shipped ``proxy_models`` or ``sweeps``, read when it asks."""

    def names() -> list[str]:
        from mup_tune.files import shipped

        return sorted(path.stem for path in shipped(kind).glob("*.yaml"))

    return names


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """The numbers of ``-2,-1,0,1,2``; none of an empty text."""
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers", field=flag, fix="Write it like 1.5,2,4") from None


def again(context: typer.Context, **changes: object) -> str:
    """The command as it was given, for a shell, with some of its options changed; None leaves one out."""
    parts = [context.command_path]
    for each in context.command.params:
        source = context.get_parameter_source(each.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        value = changes.get(each.name or "", context.params.get(each.name or "") if given else None)
        flag = [] if each.param_type_name == "argument" else [max(each.opts, key=len)]
        if isinstance(value, bool):
            parts += flag if value else each.secondary_opts[:1]
        else:
            for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
                parts += [*flag, str(one)]
    return f"{parts[0]} {shlex.join(parts[1:])}".rstrip()


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a plan's value, e.g. seeds=[0,1]. May be repeated."),
]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", metavar="NAME", help="One of the plan's `scales:` overlays.")
]
ExecutorOption = Annotated[
    Executor,
    one_of(
        "--executor", "executor", Executor, "ray: a lane per device. inline: this process, one device (or one core)."
    ),
]
AddressOption = Annotated[str | None, typer.Option(help="A Ray cluster to join; a local one is started if absent.")]
LanesOption = Annotated[int | None, typer.Option(min=1, help="Lanes on Ray; one per GPU, or per core, if absent.")]
SHAPES, PLANS = shipped_names("proxy_models"), shipped_names("sweeps")
ShapeOption = Annotated[
    str,
    typer.Option("--shape", metavar="NAME|FILE", help="A shipped Shape or a YAML file.", autocompletion=SHAPES),
]
FamilyOption = Annotated[
    str,
    typer.Option(
        "--shape",
        metavar="NAME|FILE",
        help="The family: its channel ratios and head dims.",
        autocompletion=SHAPES,
    ),
]
SettingsOption = Annotated[
    str,
    typer.Option(
        "--settings",
        metavar="NAME|FILE",
        help="untuned (relative to --shape), falcon-h1-published, or a settings YAML.",
    ),
]
CorpusOption = Annotated[str, typer.Option("--corpus", help="A prepared corpus.")]
LogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log", metavar="tensorboard|wandb", help="Log to it as well (`pip install mup-tune[log]`). May be repeated."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")]

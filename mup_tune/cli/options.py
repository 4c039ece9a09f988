"""Options that several commands share. Each is declared once, and so reads the same everywhere."""

from __future__ import annotations

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

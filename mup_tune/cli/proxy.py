"""``proxy``: look at a Shape, or make a small one. Trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mup_tune.cli.options import SHAPES, JsonOption
from mup_tune.cli.output import console, print_json, print_rows
from mup_tune.errors import UserError

if TYPE_CHECKING:
    from mup_tune.shape import Shape

proxy = typer.Typer(no_args_is_help=True, help="Look at a Shape, or make a small one after a target's proportions.")


def _facts(shape: Shape, seq_len: int) -> dict[str, Any]:
    return {
        **shape.model_dump(),
        "d_attn": shape.d_attn,
        "n_ssm_heads": shape.n_ssm_heads,
        "parameters": shape.parameters(),
        "seq_len": seq_len,
        "flops_per_token": shape.flops_per_token(seq_len),
    }


@proxy.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A shipped Shape or a YAML file.", autocompletion=SHAPES)
    ],
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence, for the FLOPs of attention.")] = 2048,
    json: JsonOption = False,
) -> None:
    """Sizes, parameter count and training FLOPs per token of a Shape."""
    from mup_tune.shape import load_shape

    shape = load_shape(name)
    facts = _facts(shape, seq_len)
    if json:
        print_json(facts)
        return
    print_rows([{"size": key, "value": value} for key, value in facts.items()], shape.name, shape.note)


@proxy.command("make")
def make(
    target: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The full-size Shape to imitate.", autocompletion=SHAPES)
    ],
    width: Annotated[int, typer.Option(help="d_model of the proxy.")],
    depth: Annotated[int, typer.Option(help="Layers of the proxy.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write.")],
    vocab: Annotated[int | None, typer.Option(help="Vocabulary size; the target's where left out.")] = None,
) -> None:
    """Write a proxy with the target's channel ratios, head dims and d_state; says what it had to round."""
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{str(out)!r} must end in .yaml", field="--out")
    from mup_tune.files import dump_yaml, write_out
    from mup_tune.shape import load_shape, make_proxy

    shape, notes = make_proxy(load_shape(target), width, depth, vocab, out.stem)
    write_out(out, dump_yaml(shape.model_dump()))
    for note in notes:
        console.print(f"rounded: {note}")
    console.print(f"{out}: {shape.parameters():,} parameters" + ("" if notes else ", nothing had to be rounded"))


def register(app: typer.Typer) -> None:
    app.add_typer(proxy, name="proxy")

"""``proxy``, ``multipliers`` and ``roles``: look at Shapes, the 35 and what they resolve to. Trains nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mup_tune.cli.output import console, print_json, print_rows
from mup_tune.errors import UserError
from mup_tune.files import dump_yaml, write_atomic
from mup_tune.multipliers import MULTIPLIERS, scaling_rule
from mup_tune.roles import forward_multipliers, role_table
from mup_tune.settings import load_settings
from mup_tune.shape import Shape, load_shape, make_proxy

ShapeOption = Annotated[str, typer.Option("--shape", metavar="NAME|FILE", help="A shipped Shape or a YAML file.")]
SettingsOption = Annotated[
    str, typer.Option("--settings", metavar="NAME|FILE", help="untuned, falcon-h1-published, or a settings YAML.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

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
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped Shape or a YAML file.")],
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence, for the FLOPs of attention.")] = 2048,
    json: JsonOption = False,
) -> None:
    """Sizes, parameter count and training FLOPs per token of a Shape."""
    shape = load_shape(name)
    facts = _facts(shape, seq_len)
    if json:
        print_json(facts)
        return
    print_rows([{"size": key, "value": value} for key, value in facts.items()], shape.name, shape.note)


@proxy.command("make")
def make(
    target: Annotated[str, typer.Option(metavar="NAME|FILE", help="The full-size Shape to imitate.")],
    width: Annotated[int, typer.Option(help="d_model of the proxy.")],
    depth: Annotated[int, typer.Option(help="Layers of the proxy.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write.")],
    vocab: Annotated[int | None, typer.Option(help="Vocabulary size; the target's where left out.")] = None,
) -> None:
    """Write a proxy with the target's channel ratios, head dims and d_state; says what it had to round."""
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{str(out)!r} must end in .yaml", field="--out")
    if not out.parent.is_dir():
        raise UserError(f"the folder {str(out.parent)!r} does not exist", field="--out")
    shape, notes = make_proxy(load_shape(target), width, depth, vocab, out.stem)
    write_atomic(out, dump_yaml(shape.model_dump()))
    for note in notes:
        console.print(f"rounded: {note}", highlight=False)
    console.print(f"{out}: {shape.parameters():,} parameters" + ("" if notes else ", nothing had to be rounded"))


def multipliers(
    shape: Annotated[str, typer.Option(metavar="NAME|FILE", help="Where `value` is taken; the base if left out.")] = "",
    settings: SettingsOption = "falcon-h1-published",
    json: JsonOption = False,
) -> None:
    """The 35 µP multipliers: 12 forward, 16 learning-rate and 7 weight-decay ones.

    `base` is the stored value, `value` what the rule makes of it at --shape. Many texts say "35 forward
    multipliers"; only 12 of the 35 are (arXiv 2601.04890, §2).
    """
    at = load_shape(shape) if shape else None
    tuned = load_settings(settings, at)
    forward = forward_multipliers(at, tuned) if at else {}
    rows = []
    for multiplier in MULTIPLIERS.values():
        base = tuned.multipliers[multiplier.name]
        unused = at is not None and not at.d_ssm and multiplier.needs_ssm
        rows.append(
            {
                "name": multiplier.name,
                "kind": multiplier.kind,
                "base": base,
                "value": None if unused else forward.get(multiplier.name, base),
                "rule": scaling_rule(multiplier.name, tuned.depth_rule).formula,
                "source": multiplier.source,
            }
        )
    if json:
        print_json(rows)
        return
    where = shape or "its base Shape"
    title = f"12 forward + 16 learning-rate + 7 weight-decay multipliers: {tuned.name}, at {where}"
    print_rows(rows, f"{title}, depth rule: {tuned.depth_rule}", at.note if at else "")


def roles(
    shape: ShapeOption,
    settings: SettingsOption,
    json: JsonOption = False,
) -> None:
    """What every parameter gets: init std, forward multiplier, LR, WD, eps, and the rule behind it.

    The abc-parametrisation is Falcon-H1's: width factors sit in the forward multipliers, LR and WD are the
    same at every size, and hidden init grows as √fan_in. `ssm_in` and `attention_in` are fixed factors, not
    tuned ones.
    """
    at = load_shape(shape)
    table = role_table(at, load_settings(settings, at))
    keys = ("parameter", "slice", "shape", "init_std", "multiplier", "lr", "weight_decay", "eps", "rule")
    if json:
        print_json([{key: asdict(row)[key] for key in (*keys, "init", "source")} for row in table.rows])
        return
    rows = [{key: asdict(row)[key] for key in keys} for row in table.rows]
    print_rows(rows, f"{table.settings.name} at {at.name}", "init_std –: not a zero-mean draw, see the rule")


def register(app: typer.Typer) -> None:
    app.add_typer(proxy, name="proxy")
    app.command()(multipliers)
    app.command()(roles)

"""``multipliers`` and ``roles``: the 35, and what they resolve to at a Shape. Trains nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mup_tune.cli.options import SHAPES, JsonOption, SettingsOption, ShapeOption
from mup_tune.cli.output import number, print_json, print_rows

WideOption = Annotated[bool, typer.Option("--wide", help="Every column, a line a row: wider than most terminals.")]
LAYER = "model.layers.{layer}."


def multipliers(
    shape: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="Where `value` is taken; the base if left out.", autocompletion=SHAPES),
    ] = "",
    settings: SettingsOption = "falcon-h1-published",
    wide: WideOption = False,
    json: JsonOption = False,
) -> None:
    """The 35 µP multipliers: 12 forward, 16 learning-rate and 7 weight-decay ones.

    `base` is the stored value, `value` what the rule makes of it at --shape. Many texts say "35 forward
    multipliers"; only 12 of the 35 are (arXiv 2601.04890, §2).
    """
    from mup_tune.multipliers import MULTIPLIERS, scaling_rule
    from mup_tune.roles import forward_multipliers
    from mup_tune.settings import load_settings
    from mup_tune.shape import load_shape

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
    shown = rows if wide else [{key: each for key, each in row.items() if key != "source"} for row in rows]
    print_rows(shown, f"{title}, depth rule: {tuned.depth_rule}", at.note if at else "", wide)


def roles(shape: ShapeOption, settings: SettingsOption, wide: WideOption = False, json: JsonOption = False) -> None:
    """What every parameter gets: init std, forward multiplier, LR, WD, eps, and the rule behind it.

    The abc-parametrisation is Falcon-H1's: width factors sit in the forward multipliers, LR and WD are the
    same at every size, and hidden init grows as √fan_in. `ssm_in` and `attention_in` are fixed factors, not
    tuned ones.
    """
    from mup_tune.roles import role_table
    from mup_tune.settings import load_settings
    from mup_tune.shape import load_shape

    at = load_shape(shape)
    table = role_table(at, load_settings(settings, at))
    keys = ("parameter", "slice", "shape", "init_std", "multiplier", "lr", "weight_decay", "eps", "rule")
    if json:
        print_json([{key: asdict(row)[key] for key in (*keys, "init", "source")} for row in table.rows])
        return
    title, note = f"{table.settings.name} at {at.name}", "init_std –: not a zero-mean draw, see the rule"
    if wide:
        print_rows([{key: asdict(row)[key] for key in keys} for row in table.rows], title, note, wide)
        return
    eps = ", ".join(sorted({number(row.eps) for row in table.rows}))
    shown = [
        {
            "parameter": f"{row.parameter.removeprefix(LAYER).removesuffix('.weight')} {row.slice}".rstrip(),
            "shape": row.shape,
            "init_std": row.init_std,
            "multiplier": row.multiplier,
            "lr": row.lr,
            "wd": row.weight_decay,
        }
        for row in table.rows
    ]
    print_rows(shown, title, f"{note} (--wide, with full names). eps: {eps}")


def register(app: typer.Typer) -> None:
    app.command()(multipliers)
    app.command()(roles)

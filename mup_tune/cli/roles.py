"""``multipliers`` and ``roles``: the 35, and what they resolve to at a Shape. Trains nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mup_tune.cli.options import SHAPES, JsonOption, SettingsOption, ShapeOption
from mup_tune.cli.output import print_json, print_rows


def multipliers(
    shape: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="Where `value` is taken; the base if left out.", autocompletion=SHAPES),
    ] = "",
    settings: SettingsOption = "falcon-h1-published",
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
    print_rows(rows, f"{title}, depth rule: {tuned.depth_rule}", at.note if at else "")


def roles(shape: ShapeOption, settings: SettingsOption, json: JsonOption = False) -> None:
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
    rows = [{key: asdict(row)[key] for key in keys} for row in table.rows]
    print_rows(rows, f"{table.settings.name} at {at.name}", "init_std –: not a zero-mean draw, see the rule")


def register(app: typer.Typer) -> None:
    app.command()(multipliers)
    app.command()(roles)

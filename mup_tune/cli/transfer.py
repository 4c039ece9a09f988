"""``transfer`` and ``targets``: carry tuned settings to a full-size Shape, and what can be aimed at."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from mup_tune.choices import DepthRule, Horizon
from mup_tune.cli.options import SHAPES, JsonOption, one_of
from mup_tune.cli.output import led, print_json, print_rows, say

SourceArgument = Annotated[
    str, typer.Argument(metavar="RUN|SETTINGS", help="A run folder, falcon-h1-published, or a settings YAML.")
]
TargetOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="A Shape (`mup-tune targets`), its YAML file, or a FalconH1 config.json.",
        autocompletion=SHAPES,
    ),
]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write. It must not exist, or be empty.")]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="NAME[,NAME…]",
        help="hf, json, megatron-bridge, automodel, torchtitan. May be repeated; all lie in one folder. hf if absent.",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="incumbent|best|NAME",
        help="Which settings of the run: its incumbent, those with the lowest loss on the confirmation's fresh seeds, "
        "or a stage's or reference's by name.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens a step of the target: scales η by √(N/run's). Left out: η as tuned."),
]
TokensOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Total tokens of the target: fixes the schedule, and judges the horizon."),
]
HorizonOption = Annotated[
    Horizon,
    one_of(
        "--horizon",
        "horizon",
        get_args(Horizon),
        "How λ follows the training's length. falcon: not at all. timescale: so that η·λ·steps stays.",
    ),
]
DepthOption = Annotated[
    DepthRule | None,
    one_of(
        "--depth-rule",
        "depth rule",
        get_args(DepthRule),
        "How residual branches follow the depth; the settings' own rule if absent. completep: ∝ 1/layers, from the "
        "proxy's depth on.",
    ),
]
ChannelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="RATIO|from-run",
        help="Share the target's channels anew, SSM:attention:MLP in eighths such as 2:1:5, or the run's best.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Also write a step-0 checkpoint of this seed, 4 bytes a parameter. Trainers with an init of their own "
        "need it. Memory holds one tensor at a time.",
    ),
]


def transfer(
    source: SourceArgument,
    target: TargetOption,
    out: OutOption,
    format_: FormatOption = None,
    chosen: FromOption = None,
    batch_tokens: BatchOption = None,
    tokens: TokensOption = None,
    horizon: HorizonOption = "falcon",
    depth_rule: DepthOption = None,
    channels: ChannelsOption = None,
    init_seed: SeedOption = None,
    tie_gate_up: Annotated[
        bool,
        typer.Option(
            "--tie-gate-up",
            help="Give the MLP's gate and up one lr and one decay, the geometric means. Megatron holds them as one.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Transfer an incumbent that its run found worse or did not confirm.")
    ] = False,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Transfer from a run whose stages have not all concluded.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a full-size config with its init, parameter groups and schedule.

    The settings are carried to the target by named rules. The README lists each with its factor, and says
    what nobody has measured. A run that does not confirm its incumbent, or has not ended, is refused until an
    option says otherwise.

    The config alone trains from a wrong init: the folder's README.md shows what to do instead. With
    transformers installed (`mup-tune[verify]`) the target is built on the meta device and every parameter
    must match exactly one pattern, else nothing is written.
    """
    from mup_tune.transfer.aim import aim
    from mup_tune.transfer.channels import resplit
    from mup_tune.transfer.evidence import check
    from mup_tune.transfer.export import export
    from mup_tune.transfer.formats import formats
    from mup_tune.transfer.resolve import resolve
    from mup_tune.transfer.target import load_target

    wanted = formats(format_ or ["hf"])
    found = resolve(source, chosen)
    if found.evidence:
        check(found.evidence, chosen=chosen is not None, force=force, allow_unfinished=allow_unfinished)
    shape = load_target(target)
    aimed = aim(
        found,
        shape if channels is None else resplit(shape, channels, source),
        batch_tokens=batch_tokens,
        tokens=tokens,
        depth_rule=depth_rule,
        horizon=horizon,
        tie_gate_up=tie_gate_up,
    )
    done = export(aimed, out, wanted, init_seed)
    if json:
        rules = [rule.model_dump(mode="json") for rule in done.rules]
        evidence = done.evidence and done.evidence.model_dump(mode="json")
        print_json({**asdict(done), "out": str(done.out), "rules": rules, "evidence": evidence})
        return
    for warning in done.warnings:
        say(led("warning:", f" {warning}", "bold yellow"))
    say(f"{done.target}, {done.parameters:,} parameters, from {done.origin}")
    if done.evidence:
        say(f"the run's verdict on its incumbent: {done.evidence.said}")
    print_rows([{"rule": rule.name, "factor": rule.factor, "what": rule.what} for rule in done.rules], "Rules applied")
    say(
        *([f"note: {done.note}"] if done.note else []),
        *(f"{name}: {said}" for name, said in done.verification.items()),
        *(f"{name} does not carry: {each}" for name, lost in done.lost.items() for each in lost),
        f"{done.out}: {', '.join(done.files)}",
        f"Read {done.out / 'README.md'} before training: config.json alone starts from a wrong init.",
    )
    if init_seed is None and not all(each.draws_init for each in wanted):
        say("No step-0 checkpoint was written, and a trainer here draws another init: give --init-seed N.")


def targets(json: JsonOption = False) -> None:
    """What `mup-tune transfer --target` can aim at: the released Falcon-H1 Shapes and the shipped proxies.

    Any Shape's YAML file and the `config.json` of any FalconH1 model can be aimed at too.
    """
    from mup_tune.shape import RELEASED
    from mup_tune.transfer.target import aims

    rows = [
        {
            "target": shape.name,
            "released": shape.name in RELEASED,
            "d_model": shape.d_model,
            "layers": shape.n_layers,
            "parameters": shape.parameters(),
            "vocabulary": shape.vocab_size,
        }
        for shape in aims()
    ]
    if json:
        print_json(rows)
        return
    shown = [
        {**row, "released": "yes" if row["released"] else "", "parameters": f"{row['parameters']:,}"} for row in rows
    ]
    print_rows(shown, "Targets", "A Shape's YAML file and a FalconH1 config.json can be aimed at too")


def register(app: typer.Typer) -> None:
    app.command()(transfer)
    app.command()(targets)

"""``validate``: does what a run tuned at its proxy hold at larger Shapes? A run of one stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mup_tune.cli.options import (
    AddressOption,
    Executor,
    ExecutorOption,
    JsonOption,
    LanesOption,
    RunArgument,
    again,
    numbers,
)
from mup_tune.cli.output import console, print_json, say
from mup_tune.errors import UserError, located, unknown

if TYPE_CHECKING:
    from mup_tune.search.plan import Plan

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
USUAL = ("ELR-EWD-tuned untuned", "falcon-h1-published")  # what the shipped plans leave to compare with
SOURCE = "mup-tune validate"  # stands where a plan's file stands in messages


def validate(
    context: typer.Context,
    run: RunArgument,
    widths: Annotated[str, typer.Option(help="Widths to validate at, in multiples of the proxy's. '' for none.")] = "2",
    depths: Annotated[str, typer.Option(help="Depths to validate at, in multiples of the proxy's. '' for none.")] = "2",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REFERENCE",
            help="A reference that the run has stored; may be repeated. The first has its ELR re-tuned at every "
            f"Shape. Left out: {' and '.join(USUAL)}, as far as the run has them.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds that every comparison rests on.")] = 8,
    horizons: Annotated[
        str, typer.Option(help="Longer trainings of the first reference, in multiples of the run's tokens, ascending.")
    ] = "",
    retune: Annotated[
        str,
        typer.Option(
            metavar="N|AXES",
            help="Axes that are re-tuned at every Shape, beside ELR: so many of the most sensitive, or names.",
        ),
    ] = "0",
    out: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Folder of this validation; beside RUN if left out.")
    ] = None,
    executor: ExecutorOption = Executor.RAY,
    address: AddressOption = None,
    lanes: LanesOption = None,
    json: JsonOption = False,
) -> None:
    """Carry a run's tuned settings to larger Shapes, and measure what is left of the gain there.

    At every Shape the settings, carried unchanged by the µP rules, meet the run's references on fresh seeds.
    The first reference has its ELR re-tuned there, so that it is not handicapped. With
    `--horizons 1.25,1.5,2` the gain is told in tokens saved as well. With `--retune 4` you see what re-tuning
    at that Shape would have gained.

    Exit 0: the gain is shown at every Shape. Exit 1: at one of them the settings are worse. Exit 3: at one
    of them nothing is shown, and more `--seeds` may show it. The same command resumes.
    """
    plan = _plan(run, _fields(widths, depths, seeds, horizons, retune), against or [])
    from mup_tune.cli.driving import driven

    folder = out or run.absolute().with_name(f"{run.absolute().name}-validate-{plan.hash[:8]}")
    finding = driven(plan, folder, executor, address, lanes, quiet=json)[0]
    from mup_tune.findings.validation import Validation
    from mup_tune.report.folder import write_report
    from mup_tune.report.terminal import told
    from mup_tune.report.words import result_of, summary
    from mup_tune.run.view import load_run

    view = load_run(folder)
    page = write_report(view, folder / "report", "--run")
    result = result_of(finding, Validation)
    if json:
        result_data = finding.model_dump(mode="json", include={"result"})
        print_json({"verdict": result.verdict, "run": str(folder), "summary": summary(finding), **result_data})
    else:
        say(*told(view, console), "", f"Report: {page}")
        if result.verdict == "inconclusive":
            say(f"More seeds may show it: `{again(context, seeds=2 * seeds, out=None)}`")
    raise typer.Exit(EXIT[result.verdict])


def _fields(widths: str, depths: str, seeds: int, horizons: str, retune: str) -> dict[str, object]:
    return {
        "widths": numbers(widths, "--widths"),
        "depths": numbers(depths, "--depths"),
        "n_seeds": seeds,
        "horizons": numbers(horizons, "--horizons"),
        "retune": int(retune) if retune.isdigit() else tuple(retune.split(",")),
    }


def _plan(run: Path, fields: dict[str, object], against: list[str]) -> Plan:
    """A plan of one ``validate`` stage that starts where ``run`` ended, everything in it checked."""
    from mup_tune.files import validated
    from mup_tune.run.folder import RunFolder
    from mup_tune.run.journal import last_state
    from mup_tune.search.plan import Header, Plan
    from mup_tune.search.stage import Context
    from mup_tune.search.stages.validate import Validate

    folder = RunFolder.open(run)
    state, record = last_state(folder), folder.plan
    if state is None:
        raise UserError("no stage of this run has concluded, so there is nothing to validate", file=run)
    names = against or [name for name in USUAL if name in state.references]
    for name in names:
        if name not in state.references:
            raise UserError(unknown("reference", name, state.references), file=run, field="--against")
    if not names:
        raise UserError(
            f"has none of {', '.join(USUAL)} to compare with",
            file=run,
            field="--against",
            fix=f"Name one of its references: {', '.join(state.references) or 'it has none'}",
        )
    stage = validated(Validate, {**fields, "against": names}, SOURCE)
    context = Context(record.proxy, record.budget, record.seeds)
    axes = stage.axes(context, state, refuse=False)
    if stage.retune and not axes:
        raise UserError("no stage of this run measured what the loss is sensitive to", file=run, field="--retune")
    stage = stage.model_copy(update={"retune": list(axes) or 0})  # their names: the new run has measured nothing
    header = Header(
        name=f"{record.name}-validate",
        about=f"Do the tuned settings of {folder.path.name} hold at larger Shapes?",
        data=record.data,
        proxy=record.proxy.name,
        seeds=record.seeds,
        budget=record.budget,
        stages=[stage.model_dump(mode="json")],
    )
    references = {name: state.references[name] for name in names}
    plan = Plan(header, record.proxy, state.incumbent, (stage,), record.target, references=references)
    with located(file=SOURCE):
        plan.rehearsal  # noqa: B018  a stage may refuse what it is given
    return plan


def register(app: typer.Typer) -> None:
    app.command()(validate)

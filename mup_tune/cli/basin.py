"""``check basin``: does a hyperparameter's optimum stay where it is from size to size? A one-stage run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mup_tune.cli.check import EXIT, sizes, widths_of
from mup_tune.cli.options import (
    CorpusOption,
    Executor,
    ExecutorOption,
    FamilyOption,
    JsonOption,
    SettingsOption,
    again,
    numbers,
    one_of,
)
from mup_tune.cli.output import console, print_json, print_rows, say
from mup_tune.errors import UserError

if TYPE_CHECKING:
    from mup_tune.findings.basins import Basin
    from mup_tune.search.plan import Plan
    from mup_tune.stats import Interval

PARAMS = {"mup": ("mup",), "sp": ("sp",), "both": ("mup", "sp")}
SEQ_LEN, BATCH_TOKENS, VAL_TOKENS = 128, 1024, 32_768
WARMUP, DECAY = 0.1, 0.3  # of the steps, as in the shipped plans
SOURCE = "mup-tune check basin"  # stands where a plan's file stands in messages


def basin(
    context: typer.Context,
    hp: Annotated[str, typer.Option(help="elr, ewd, rope_base or one of the 35 multipliers.")] = "elr",
    widths: Annotated[
        str, typer.Option(help="d_model values, two or more; the family's smallest three, doubling, if left out.")
    ] = "",
    depths: Annotated[str, typer.Option(help="Layer counts; the shape's own where left out.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds a point; from 3 on the CIs rest on them.")] = 3,
    param: Annotated[
        str, one_of("--param", "parametrisation", PARAMS, "mup: the rules. sp: standard parametrisation.")
    ] = "both",
    shape: FamilyOption = "cpu-64",
    settings: SettingsOption = "untuned",
    tokens: Annotated[int, typer.Option(min=1, help="Training tokens of every model, whatever its size.")] = 262_144,
    offsets: Annotated[str, typer.Option(help="Grid in log2, relative to the settings' value.")] = "-2,-1,0,1,2",
    corpus: CorpusOption = "python-stdlib",
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Folder of this run; runs/basin-… if left out.")
    ] = None,
    executor: ExecutorOption = Executor.RAY,
    json: JsonOption = False,
) -> None:
    """Sweep one hyperparameter at several sizes: how far its optimum drifts from the smallest's, with CIs.

    Pass: the whole CI at the largest size lies inside ±0.5 log2. Fail: all of it outside. Else inconclusive,
    and the next command is named. The verdict is that of mup where mup is asked for; the tuned losses of mup
    and sp stand side by side. Exit 0 pass, 1 fail, 3 inconclusive. The same command resumes an interrupted
    check.
    """
    from mup_tune.shape import load_shape

    stage = {
        "hp": hp,
        "widths": widths_of(load_shape(shape), widths, 3),
        "depths": sizes(depths, "--depths") if depths else (),
        "params": PARAMS[param],
        "offsets": numbers(offsets, "--offsets"),
        "extend": 4,  # settings were not tuned to this horizon: their ELR may be far from any size's optimum
    }
    plan = _plan(stage, shape, settings, seeds, tokens, corpus)
    folder = run or Path("runs") / f"basin-{hp}-{plan.shape.name}-{plan.hash[:8]}"
    from mup_tune.cli.driving import driven

    finding = driven(plan, folder, executor, quiet=json)[0]
    from mup_tune.findings.basins import Basins
    from mup_tune.report.folder import write_report
    from mup_tune.report.parts.basins import leading
    from mup_tune.report.terminal import told
    from mup_tune.report.words import result_of, summary
    from mup_tune.run.view import load_run

    view = load_run(folder)
    page = write_report(view, folder / "report", "--run")
    result = result_of(finding, Basins)
    verdict = leading(result.basins).verdict
    if json:
        kept = result.model_dump(mode="json", include={"basins", "comparisons"})
        print_json({"verdict": verdict, "run": str(folder), **kept, "summary": summary(finding)})
    else:
        rows = [row for basin in result.basins for row in _rows(basin)]
        print_rows(rows, finding.title, "optimum, drift: log2; regret, loss: nats/token; 95 % CIs in brackets")
        say(*told(view, console), "", f"Report: {page}")
        if verdict == "inconclusive":
            say(_next(context, leading(result.basins), seeds, offsets))
    raise typer.Exit(EXIT[verdict])


def _next(context: typer.Context, basin: Basin, seeds: int, offsets: str) -> str:
    """What to try next, as another run: a wider grid where an optimum lies beyond this one, or more seeds."""
    if any(size.no_optimum == "edge" for size in basin.sizes):
        wider = ",".join(f"{2 * each:g}" for each in numbers(offsets, "--offsets"))
        return f"A wider grid may hold the optimum: `{again(context, offsets=wider, run=None)}`"
    return f"More seeds may decide it: `{again(context, seeds=2 * seeds, run=None)}`"


def _plan(stage: dict[str, Any], shape: str, settings: str, seeds: int, tokens: int, corpus: str) -> Plan:
    """A plan of one ``basin`` stage, everything in it checked before anything is written."""
    from mup_tune.files import validated
    from mup_tune.search.plan import plan_from
    from mup_tune.search.stages.basin import BasinCheck

    steps = tokens // BATCH_TOKENS
    if steps < 2:
        raise UserError(f"{tokens} is less than two batches of {BATCH_TOKENS} tokens", field="--tokens")
    budget = {
        "seq_len": SEQ_LEN,
        "batch_tokens": BATCH_TOKENS,
        "total_tokens": steps * BATCH_TOKENS,
        "warmup_tokens": int(WARMUP * steps) * BATCH_TOKENS,
        "decay_tokens": int(DECAY * steps) * BATCH_TOKENS,
        "val_tokens": VAL_TOKENS,
    }
    data: dict[str, Any] = {
        "name": f"basin-{stage['hp']}",
        "about": "Loss against one hyperparameter at several sizes, on the same tokens at each.",
        "data": {"corpus": corpus},
        "proxy": shape,
        "start": settings,
        "seeds": tuple(range(seeds)),
        "budget": budget,
        "stages": [{"kind": "basin", **stage}],
    }
    validated(BasinCheck, data["stages"][0], SOURCE)  # names the option, not a place in a plan
    return plan_from(data, SOURCE)


def _rows(basin: Basin) -> list[dict[str, Any]]:
    from mup_tune.report.figures.basins import best_loss, optimum
    from mup_tune.report.parts.basins import note

    return [
        {
            "param": basin.param,
            "size": size.label,
            f"log2 {basin.hp}": _spoken(optimum(size), 2),
            "drift": _spoken(size.drift, 2),
            "regret": _spoken(size.regret, 4),
            "best loss": best_loss(size),
            "note": note(size),
        }
        for size in basin.sizes
    ]


def _spoken(interval: Interval | None, decimals: int) -> str:
    if interval is None:
        return "–"
    value, low, high = (f"{each:.{decimals}f}" for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def register(check_app: typer.Typer) -> None:
    check_app.command()(basin)

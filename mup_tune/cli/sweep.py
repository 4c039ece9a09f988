"""``sweep`` and ``resume``: execute a plan, and come back to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mup_tune.cli.options import (
    PLANS,
    AddressOption,
    Executor,
    ExecutorOption,
    LanesOption,
    LogOption,
    RunArgument,
    ScaleOption,
    SetOption,
)
from mup_tune.cli.output import console, say

if TYPE_CHECKING:
    from mup_tune.search.plan import Plan


def sweep(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN", help="A shipped plan (`mup-tune plan` lists them) or a YAML file.", autocompletion=PLANS
        ),
    ],
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of this run; resumes one that exists.")],
    executor: ExecutorOption = Executor.RAY,
    address: AddressOption = None,
    lanes: LanesOption = None,
    assign: SetOption = None,
    scale: ScaleOption = None,
    log: LogOption = None,
) -> None:
    """Run a plan: train populations of proxies stage by stage and keep the best settings.

    `mup-tune plan PLAN` says beforehand what it will cost. The same command resumes a run that was stopped by
    Ctrl-C, `kill -9` or a crash, and so does `mup-tune resume DIR`. Packs that were committed are not trained
    again. Reports come from `mup-tune report DIR`, full-size configs from `mup-tune transfer DIR`.
    """
    from mup_tune.search.plan import load_plan

    _drive(load_plan(plan, scale, tuple(assign or ())), run, executor, address, lanes, log)


def resume(
    run: RunArgument,
    executor: ExecutorOption = Executor.RAY,
    address: AddressOption = None,
    lanes: LanesOption = None,
    log: LogOption = None,
) -> None:
    """Go on with a run that was stopped, by what its folder says.

    No plan, scale or --set has to be given again. The corpus is looked for where the run found it. A run that
    is complete prints its results again.
    """
    from mup_tune.run.folder import PLAN, RunFolder
    from mup_tune.search.plan import plan_of

    folder = RunFolder.open(run)
    corpora = [source.corpus for source in folder.record.corpus.sources]
    _drive(plan_of(folder.plan, corpora, folder.path / PLAN), run, executor, address, lanes, log)


def _drive(
    plan: Plan, run: Path, executor: Executor, address: str | None, lanes: int | None, log: list[str] | None
) -> None:
    """To the plan's end, and then what it found and what comes next."""
    from mup_tune.cli.driving import driven
    from mup_tune.report.terminal import told
    from mup_tune.run.view import load_run
    from mup_tune.transfer.evidence import next_transfer
    from mup_tune.transfer.resolve import resolve

    driven(plan, run, executor, address, lanes, log=log or ())
    say(*told(load_run(run), console))
    target = plan.header.target or "falcon-h1-0.5b"
    transfer = next_transfer(resolve(str(run)).evidence, f"mup-tune transfer {run} --target {target} --out DIR")
    say(
        "",
        f"Tuned settings: {run.absolute() / 'settings' / 'incumbent.yaml'}",
        f"Report: `mup-tune report {run}`",
        f"Next: {transfer}",
    )


def register(app: typer.Typer) -> None:
    app.command()(sweep)
    app.command()(resume)

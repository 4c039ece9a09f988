"""``sweep`` and ``status``: execute a plan, watch it, come back to it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mup_tune.cli.options import (
    PLANS,
    AddressOption,
    Executor,
    ExecutorOption,
    JsonOption,
    LanesOption,
    RunArgument,
    ScaleOption,
    SetOption,
)
from mup_tune.cli.output import console, led, print_json, print_rows


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
) -> None:
    """Run a plan: train populations of proxies stage by stage and keep the best settings.

    `mup-tune plan PLAN` says beforehand what it will cost. The same command resumes a run that was stopped by
    Ctrl-C, `kill -9` or a crash; packs that were committed are not trained again. Reports come from `mup-tune
    report DIR`, full-size configs from `mup-tune transfer DIR`.
    """
    from mup_tune.search.plan import load_plan

    loaded = load_plan(plan, scale, tuple(assign or ()))
    from mup_tune.cli.driving import driven
    from mup_tune.report.words import summary
    from mup_tune.transfer.evidence import next_transfer
    from mup_tune.transfer.resolve import resolve

    for finding in driven(loaded, run, executor, address, lanes):
        console.print(led(finding.stage, f" {finding.title}"))
        for sentence in summary(finding):
            console.print(f"  {sentence}")
    target = loaded.header.target or "falcon-h1-0.5b"
    transfer = next_transfer(resolve(str(run)).evidence, f"mup-tune transfer {run} --target {target} --out DIR")
    console.print(
        f"Tuned settings: {run.absolute() / 'settings' / 'incumbent.yaml'}. Next: `mup-tune report {run}`, {transfer}."
    )


def status(run: RunArgument, json: JsonOption = False) -> None:
    """Where a run stands: stages, trials, the best loss, and whether a driver is at work."""
    from mup_tune.report.words import summary
    from mup_tune.run.folder import RunFolder
    from mup_tune.run.journal import Journal

    folder = RunFolder.open(run)
    journal = Journal(folder, writable=False)
    stages = journal.stages()
    findings = {finding.stage: finding for finding in journal.findings()}
    data: dict[str, Any] = {
        "run": str(run),
        "live": folder.is_live(),
        "complete": bool(journal.get_note("complete")),
        **asdict(journal.tally()),
        "stages": [
            {
                "stage": stage,
                "state": "concluded" if stage in findings else "running",
                "trials": journal.trial_count(stage),
                "summary": " ".join(summary(findings[stage])) if stage in findings else "",
            }
            for stage in stages
        ],
    }
    journal.close()
    if json:
        print_json(data)
        return
    if data["stages"]:
        print_rows(data["stages"], str(run))
    state = "complete" if data["complete"] else "a driver is at work" if data["live"] else "stopped: `sweep` resumes it"
    best = f", best loss {data['best_loss']:.4f} nats/token" if data["best_loss"] is not None else ""
    console.print(f"{data['trials']} trials, {data['diverged']} diverged{best}; {state}")


def register(app: typer.Typer) -> None:
    app.command()(sweep)
    app.command()(status)

"""``status``: where a run stands, from its journal alone."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mup_tune.cli.options import JsonOption, RunArgument
from mup_tune.cli.output import console, print_json, print_rows, say

STATES = {
    "complete": "complete",
    "live": "a driver is at work",
    "stopped": "stopped: `mup-tune resume {run}` goes on",
}


def status(
    run: RunArgument,
    watch: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="Say it anew that often, until no driver is at work."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Where a run stands: what it has shown, its stages and trials, and whether a driver is at work.

    The verdict is the one that heads the page. It needs no lock and disturbs no sweep. The trials themselves
    are in `mup-tune dashboard RUN`, which also exports the journal (`--copy FILE`).
    """
    while True:
        data = _facts(run)
        if watch and not json and console.is_terminal:
            console.clear()
        print_json(data) if json else _print(data)
        if watch is None or data["state"] != "live":
            return
        time.sleep(watch)


def _facts(run: Any) -> dict[str, Any]:
    from mup_tune.report.claims import claims_of, headline
    from mup_tune.report.plain import names_of
    from mup_tune.report.words import summary
    from mup_tune.run.folder import RunFolder
    from mup_tune.run.journal import Journal
    from mup_tune.run.verdict import last_confirmation

    folder = RunFolder.open(run)
    live, journal = folder.is_live(), Journal(folder, writable=False)
    begun, findings = journal.stages(), {finding.stage: finding for finding in journal.findings()}
    confirmation = last_confirmation(list(findings.values()))
    claims = claims_of(confirmation) if confirmation else []
    wanted = len(folder.plan.stages)
    state = journal.state()
    names = names_of(list(findings.values()), state.references if state else {}, folder.plan.proxy)
    title, below = headline(list(findings.values()), claims, wanted, live, names.long)
    complete = bool(journal.get_note("complete"))
    return {
        "run": str(run),
        "state": "complete" if complete else "live" if live else "stopped",
        "live": live,
        "complete": complete,
        "verdict": title,
        "below": below,
        **asdict(journal.tally()),
        "stages_planned": wanted,
        "stages": [
            {
                "stage": stage,
                "state": "concluded" if stage in findings else "running" if live else "interrupted",
                "trials": journal.trial_count(stage),
                "title": findings[stage].title if stage in findings else "",
                "summary": " ".join(summary(findings[stage])) if stage in findings else "",
            }
            for stage in begun
        ],
    }


def _print(data: dict[str, Any]) -> None:
    from mup_tune.report.terminal import answer, width_of

    say(*answer(data["verdict"], data["below"], width_of(console)))
    rows = [{key: each[key] for key in ("stage", "state", "trials", "title")} for each in data["stages"]]
    if rows:
        print_rows(rows, data["run"], "What each stage found is in `mup-tune report`, and in --json")
    to_come = data["stages_planned"] - len(data["stages"])
    stages = f", {to_come} of {data['stages_planned']} stages to come" if to_come else ""
    state = STATES[data["state"]].format(run=data["run"])
    console.print(f"{data['trials']} trials, {data['diverged']} diverged{stages}; {state}")


def register(app: typer.Typer) -> None:
    app.command()(status)

"""Execute a plan: check it against the corpus, open the run folder, drive the sweep, write the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mup_tune.data.mixture import Mixture, open_mixture
from mup_tune.data.shares import check_epochs, row_counts
from mup_tune.engine import inline
from mup_tune.engine.events import OnEvent
from mup_tune.engine.runner import TrainingRunner
from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.interrupts import stops_deferred
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import write_tables
from mup_tune.search.loop import Sweep
from mup_tune.search.plan import Plan


def check_data(plan: Plan, data: Mixture) -> None:
    """Refuse, before anything trains, corpora that the proxy cannot read or that are too small."""
    shape = plan.shape
    for source in data.sources:
        if source.corpus.vocab_size > shape.vocab_size:
            raise UserError(
                f"{source.name!r} has a vocabulary of {source.corpus.vocab_size:,}, "
                f"the proxy {shape.name!r} one of {shape.vocab_size:,}",
                field=source.field,
                fix="Use a proxy whose vocab_size is at least the corpus'",
            )
    asked = (budget for each in plan.rehearsal for budget in each.budgets)
    for budget in dict.fromkeys((plan.header.budget, *asked)):
        check_epochs(data, budget.total_tokens)
        row_counts(data, budget)


@contextmanager
def open_sweep(plan: Plan, run: Path) -> Iterator[tuple[RunFolder, Sweep]]:
    """The run folder (created, or resumed under its lock) and the sweep on its journal."""
    data = open_mixture(plan.header.data)
    check_data(plan, data)
    with RunFolder.create_or_resume(run, plan.resolved(), plan.hash, data.record()) as folder:
        journal = Journal(folder, writable=True)
        try:
            yield folder, Sweep(plan, journal)
        finally:
            journal.close()


def execute(
    plan: Plan,
    folder: RunFolder,
    sweep: Sweep,
    executor: str,
    address: str | None,
    lanes: int | None,
    on_event: OnEvent,
) -> list[Finding]:
    """Drive ``sweep`` to its end and write the run's tables, also if cut short; returns the findings."""
    # The record's hash, not the corpus' as it is now: lanes refuse what changed since, here or on their host.
    make_runner = TrainingRunner(tuple(each.absolute() for each in plan.header.data), folder.record.corpus.hash)
    try:
        if executor == "inline":
            inline.drive(sweep, make_runner, on_event)
        else:
            from mup_tune.engine import ray

            ray.drive(sweep, make_runner, on_event, run_dir=folder.path, address=address, lanes=lanes)
        if not sweep.complete:
            raise KeyboardInterrupt  # the driver was stopped, whatever it made of that
        sweep.journal.set_note("complete", True)
    except BaseException:
        with suppress(UserError), stops_deferred():  # what went wrong first is what users have to know
            write_tables(folder, sweep.journal)
        raise
    write_tables(folder, sweep.journal)
    return sweep.journal.findings()

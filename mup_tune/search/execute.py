"""Execute a plan: check it against the corpus, open the run folder, drive the sweep, write the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mup_tune.data.batches import Batches, check_epochs
from mup_tune.data.corpus import Corpus, open_corpus
from mup_tune.engine import inline
from mup_tune.engine.events import Event
from mup_tune.engine.runner import TrainingRunner
from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import write_tables
from mup_tune.search.loop import Sweep
from mup_tune.search.plan import Plan

OnEvent = Callable[[Event], None]


def check_corpus(plan: Plan, corpus: Corpus) -> None:
    """Refuse, before anything trains, a corpus that the proxy cannot read or that is too small for the budget."""
    shape, budget, field = plan.shape, plan.header.budget, "data.corpus"
    if corpus.vocab_size > shape.vocab_size:
        raise UserError(
            f"{plan.header.data.corpus!r} has a vocabulary of {corpus.vocab_size}, "
            f"the proxy {shape.name!r} one of {shape.vocab_size}",
            field=field,
            fix="Use a proxy whose vocab_size is at least the corpus'",
        )
    check_epochs(corpus, budget.total_tokens, plan.header.data.max_epochs)
    held = Batches(corpus, "val", budget.seq_len, 1, 0).epoch_rows * budget.seq_len
    if budget.val_tokens > held:
        raise UserError(
            f"val_tokens = {budget.val_tokens:,} and the validation split holds {held:,} in whole rows",
            field="budget.val_tokens",
            fix="Lower it, or prepare the corpus with a larger --val-fraction",
        )


@contextmanager
def open_sweep(plan: Plan, run: Path) -> Iterator[tuple[RunFolder, Sweep]]:
    """The run folder (created, or resumed under its lock) and the sweep on its journal."""
    corpus = open_corpus(plan.header.data.corpus)
    check_corpus(plan, corpus)
    named = {"name": plan.header.data.corpus, "hash": corpus.hash}
    with RunFolder.create_or_resume(run, plan.resolved(), plan.hash, named) as folder:
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
    """Drive ``sweep`` to its end and write the run's tables, also when it is cut short; returns the findings."""
    corpus = plan.header.data.corpus
    try:
        if executor == "inline":
            inline.drive(sweep, TrainingRunner(corpus), on_event)
        else:
            from mup_tune.engine import ray

            make_runner = TrainingRunner(corpus)
            ray.drive(sweep, make_runner, on_event, run_dir=folder.path, address=address, lanes=lanes)
        sweep.journal.set_note("complete", True)
    finally:
        write_tables(folder, sweep.journal)
    return sweep.journal.findings()

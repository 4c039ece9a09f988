"""Driving a plan from a command: a live display while it trains, and a run that an interrupt leaves whole."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mup_tune.cli.options import Executor
from mup_tune.cli.output import console, err_console
from mup_tune.errors import InterruptedRunError, UserError

if TYPE_CHECKING:
    from mup_tune.findings import Finding
    from mup_tune.run.journal import Journal
    from mup_tune.search.plan import Plan


def driven(
    plan: Plan,
    run: Path,
    executor: Executor,
    address: str | None = None,
    lanes: int | None = None,
    quiet: bool = False,
    log: Iterable[str] = (),
) -> list[Finding]:
    """Drive ``plan`` in the folder ``run`` to its end; its findings.

    Args:
        quiet: the display is on stderr.
        log: loggers that are told as well, by name.

    Raises:
        UserError: wrong input, or options that the executor has no use for.
        InterruptedRunError: Ctrl-C or another signal; the same command resumes.
    """
    if executor is Executor.INLINE and (address or lanes):
        raise UserError("has no meaning with --executor inline", field="--address" if address else "--lanes")
    from mup_tune.cli.live import Display
    from mup_tune.engine.events import Event, Finished, Started
    from mup_tune.loggers import loggers
    from mup_tune.loggers.feed import logged
    from mup_tune.report.words import summary
    from mup_tune.search.execute import execute, open_sweep

    kinds, screen = loggers(log), err_console if quiet else console
    try:
        if address:
            from mup_tune.engine.ray import check_reachable

            check_reachable(address)
        with open_sweep(plan, run) as (folder, walk):
            for line in _resumed(walk.journal):
                screen.print(line, soft_wrap=True)
            with (
                Display(walk, screen) as show,
                logged(kinds, folder, walk.journal, summary, partial(screen.print, soft_wrap=True)) as tell,
            ):

                def on_event(event: Event) -> None:
                    show(event)
                    if isinstance(event, Started | Finished):  # after a conclusion, and after a commit
                        tell()

                return execute(plan, folder, walk, executor, address, lanes, on_event)
    except KeyboardInterrupt:
        kept = f"Committed packs are kept: the same command resumes {run}; `mup-tune status {run}` shows it."
        raise InterruptedRunError(kept) from None


def _resumed(journal: Journal) -> Iterator[str]:
    """What a run that is come back to was found like."""
    if before := journal.folder.killed:
        elsewhere = f". If it still works on {before.host}, stop it: its locks may not reach this machine"
        yield (
            f"note: the driver before, {before}, was killed or its machine went down"
            f"{'' if before.host == platform.node() else elsewhere}"
        )
    if journal.torn:
        yield f"note: {journal.torn} bytes of a record that it had not finished were dropped from the journal"
    if journal.packs() and not journal.get_note("complete"):
        yield f"resumed: {journal.tally().trials} trials in {len(journal.packs())} packs are kept"

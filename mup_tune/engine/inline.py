"""The driver without Ray: this process, one device, one pack after another."""

from __future__ import annotations

from mup_tune.engine.events import Finished, Lanes, Lost, OnEvent, Started, throttled
from mup_tune.engine.work import PackSource, Runner, RunnerFactory, Signal
from mup_tune.interrupts import check_stopped

LANE = "lane-0"


def drive(source: PackSource, make_runner: RunnerFactory, on_event: OnEvent) -> None:
    """Run everything ``source`` hands out, until it says DONE.

    An exception from the runner goes to ``source.lost``, which hands the work out again, splits it, or
    raises. ``KeyboardInterrupt`` passes at once; nothing of the broken pack is committed.

    Raises:
        RuntimeError: the source waits although nothing is out.
    """
    on_event(Lanes(1))
    report = throttled(on_event)
    runner: Runner | None = None
    while (work := source.next(1)) is not Signal.DONE:
        check_stopped()
        if isinstance(work, Signal):
            raise RuntimeError("the source waits for an outcome and nothing is running")
        runner = runner or make_runner(LANE)  # not before there is work: a finished run needs no device
        on_event(Started(LANE, work))
        try:
            outcome = runner(work, report)
        except Exception as error:
            source.lost(work, error)  # first: what ends the run is not told as handed out again
            on_event(Lost(LANE, work, str(error)))
        else:
            source.commit(work, outcome)
            on_event(Finished(LANE, work))

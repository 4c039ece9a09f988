"""Who holds which work: the bookkeeping between a source and lanes that come and go. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable

from mup_tune.engine.events import Finished, Lanes, Lost, OnEvent, Started
from mup_tune.engine.work import Outcome, PackSource, Signal, Work

Send = Callable[[str, int, Work], None]  # lane, attempt, work


class LaneLostError(Exception):
    """A lane vanished (its process, its actor or its node) together with the work it held."""


class Dispatcher:
    """Hands the source's work to idle lanes and takes back what comes of it.

    Every hand-out has its own attempt number: what a lane says about an older attempt is refused.
    ``capacity`` returns how many devices share the work, up or not: the first lane to start must not take it
    all.
    """

    def __init__(self, source: PackSource, capacity: Callable[[], int], send: Send, on_event: OnEvent) -> None:
        self.done = False
        self._source, self._capacity, self._send, self._on_event = source, capacity, send, on_event
        self._idle: dict[str, None] = {}  # in the order of becoming idle
        self._out: dict[str, tuple[int, Work]] = {}
        self._attempts = 0

    def joined(self, lane: str) -> None:
        """A lane is up and asks for work."""
        self._idle[lane] = None
        self._tell_lanes()
        self._feed()

    def left(self, lane: str, error: Exception) -> None:
        """A lane is gone; its work goes back to the source."""
        if lane in self._idle:
            del self._idle[lane]
            self._tell_lanes()
        elif lane in self._out:
            _, work = self._out.pop(lane)
            self._tell_lanes()
            self._lost(lane, work, error)
            self._feed()

    def finished(self, lane: str, attempt: int, outcome: Outcome | Exception) -> None:
        """A lane's answer: an outcome, or the exception its runner raised."""
        current, work = self._out.get(lane, (0, None))
        if work is None or attempt != current:
            return
        del self._out[lane]
        self._idle[lane] = None
        if isinstance(outcome, Exception):
            self._lost(lane, work, outcome)
        else:
            self._source.commit(work, outcome)
            self._on_event(Finished(lane, work))
        self._feed()

    def _lost(self, lane: str, work: Work, error: Exception) -> None:
        self._source.lost(work, error)  # first: what ends the run is not told as handed out again
        self._on_event(Lost(lane, work, str(error)))

    def _tell_lanes(self) -> None:
        self._on_event(Lanes(len(self._idle) + len(self._out)))

    def _feed(self) -> None:
        while self._idle and not self.done:
            work = self._source.next(self._capacity())
            if work is Signal.DONE:
                self.done = True
            elif isinstance(work, Signal):
                if not self._out:
                    raise RuntimeError("the source waits for an outcome and nothing is running")
                return
            else:
                lane = next(iter(self._idle))
                del self._idle[lane]
                self._attempts += 1
                self._out[lane] = (self._attempts, work)
                self._on_event(Started(lane, work))
                self._send(lane, self._attempts, work)

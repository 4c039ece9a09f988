"""What a driver tells the live display. Nothing here decides anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mup_tune.engine.work import Progress, Report, Work

PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True)
class Lanes:
    """``n`` lanes are up."""

    n: int


@dataclass(frozen=True)
class Started:
    lane: str
    work: Work


@dataclass(frozen=True)
class Finished:
    lane: str
    work: Work


@dataclass(frozen=True)
class Lost:
    lane: str
    work: Work
    why: str


Event = Lanes | Started | Progress | Finished | Lost
OnEvent = Callable[[Event], None]


def throttled(report: Report) -> Report:
    """``report``, called at most twice a second; what comes in between is dropped."""
    last = 0.0

    def rarely(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY_S:
            last = now
            report(progress)

    return rarely

"""The mailbox between the driver and its lanes on Ray. It imports no Ray Tune and no torch, to start fast."""

from __future__ import annotations

import asyncio

from mup_tune.engine.work import Progress, Work

Parcel = tuple[int, Work]  # attempt, work


class Mailbox:
    """A small actor beside the driver: work waits here for its lane, progress waits here for the driver."""

    def __init__(self, factory: bytes) -> None:
        self._factory = factory  # pickled: what it imports (torch) is for lanes only
        self._slots: dict[str, asyncio.Queue[Parcel | None]] = {}
        self._progress: dict[str, Progress] = {}
        self._closed = False

    async def factory(self) -> bytes:
        return self._factory

    async def put(self, lane: str, parcel: Parcel) -> None:
        self._slot(lane).put_nowait(parcel)

    async def take(self, lane: str) -> Parcel | None:
        """Wait for the lane's next work; None means there is no more."""
        return None if self._closed else await self._slot(lane).get()

    async def forget(self, lane: str) -> None:
        """A new lane takes the name: no old parcel and no dead lane's pending ``take`` may get in its way."""
        self._slots.pop(lane, None)

    async def close(self) -> None:
        self._closed = True
        for slot in self._slots.values():
            slot.put_nowait(None)

    async def post(self, progress: Progress) -> None:
        self._progress[progress.lane] = progress

    async def drain(self) -> list[Progress]:
        """The latest progress of each lane that posted any since the last call."""
        latest, self._progress = list(self._progress.values()), {}
        return latest

    def _slot(self, lane: str) -> asyncio.Queue[Parcel | None]:
        return self._slots.setdefault(lane, asyncio.Queue())

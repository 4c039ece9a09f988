from __future__ import annotations

from types import SimpleNamespace

import pytest

from mup_tune.engine import events
from mup_tune.engine.work import Progress


def test_progress_is_passed_on_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, heard = 100.0, list[float]()
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now))
    report = events.throttled(lambda progress: heard.append(progress.fraction))
    for eighth in range(17):
        now = 100 + eighth / 8
        report(Progress("lane-0", "pack", eighth / 16, 1.0))
    assert heard == [0.0, 0.25, 0.5, 0.75, 1.0]

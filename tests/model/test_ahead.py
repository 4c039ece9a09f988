"""Calls that are made in forked processes first: what they leave on disk, what comes back, what fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")

from mup_tune.model.kernels import ahead


def _slow_once(file: Path) -> str:
    """Like a compiler with a cache: who finds the file returns what it holds."""
    if not file.exists():
        time.sleep(0.05)
        file.write_text(str(os.getpid()))
    return file.read_text()


def test_calls_run_in_other_processes_and_their_files_are_read_here(tmp_path: Path) -> None:
    forks = ahead.Forks(most=2)
    futures = [forks.submit(_slow_once, tmp_path / str(index)) for index in range(5)]
    assert not any(future.done() for future in futures)
    forks.join()
    by = [future.result() for future in futures]
    assert str(os.getpid()) not in by
    assert len(set(by)) == 5
    for process in by:  # none is left behind
        with pytest.raises(ChildProcessError):
            os.waitpid(int(process), os.WNOHANG)


def test_a_call_that_is_not_worth_a_process_is_made_here(tmp_path: Path) -> None:
    forks = ahead.Forks(most=2)
    forks.worth = False
    future = forks.submit(_slow_once, tmp_path / "kept")
    forks.join()
    assert future.result() == str(os.getpid())


def test_a_failing_call_tells_its_error_and_does_not_stop_others(tmp_path: Path) -> None:
    forks = ahead.Forks(most=2)
    failing = forks.submit(lambda: 1 / 0)
    other = forks.submit(_slow_once, tmp_path / "fine")
    forks.join()
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert other.result()


def test_a_process_that_dies_or_hangs_leaves_the_call_to_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "PATIENCE_S", 0.2)
    here = os.getpid()

    def only_here(otherwise: str) -> str:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL) if otherwise == "dies" else time.sleep(60)
        return "made here"

    forks = ahead.Forks(most=2)
    futures = [forks.submit(only_here, how) for how in ("dies", "hangs")]
    forks.join()
    assert [future.result() for future in futures] == ["made here"] * 2

"""Drivers in processes of their own, for tests that stop them.

A warm server forks them, for imports take seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "pandas", "pyarrow.parquet", "scipy.stats", "pydantic", "typer", "rich.live"])
MARK = "MUP_TEST_MARK"


def nothing() -> None:
    pass


class Driver:
    """``mup-tune`` with its arguments, in a session of its own; ``before`` is called there first."""

    def __init__(self, output: Path, *arguments: object, before: Callable[[], object] = nothing) -> None:
        self.output, self.mark = output, f"{output}-{time.monotonic_ns()}"
        environment = {**os.environ, MARK: self.mark}
        told = (output, [str(each) for each in arguments], environment, before)
        self.process = FORKS.Process(target=_run, args=told)
        self.process.start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self) -> int:
        """Its exit code. What takes two minutes hangs."""
        self.process.join(120)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def left_behind(self) -> list[str]:
        """Command lines of what it started and still lives."""
        return list(marked(self.mark))


def marked(mark: str) -> Iterator[str]:
    """Command lines of the processes whose environment holds the mark."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                yield (entry / "cmdline").read_text().replace("\0", " ")


def _run(output: Path, arguments: list[str], environment: dict[str, str], before: Callable[[], object]) -> None:
    os.setsid()
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["mup-tune", *arguments]
    from mup_tune.cli import main

    before()
    main()

"""Folders that live as long as their process: what a killed one leaves is deleted by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mup_tune.interrupts import stops_deferred


@contextlib.contextmanager
def scratch_folder(folder: Path, siblings: str, mode: int = 0o777) -> Iterator[None]:
    """Make ``folder``, and delete whatever has its name afterwards.

    Folders beside it that match the pattern ``siblings`` are deleted first, if no process holds them. Where
    the file system knows no locks, they stay.

    Raises:
        OSError: the system refuses the folder.
    """
    with _locked(folder.parent):  # nobody takes a folder that was just made for one that its process has left
        for old in folder.parent.glob(siblings):
            remove_dead(old)
        folder.mkdir(mode=mode)
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with stops_deferred():
            _remove(folder)
            os.close(descriptor)


def remove_dead(folder: Path) -> None:
    """Delete a folder that no process holds; where locks are not to be had, nothing is deleted."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
        return True
    except OSError:
        return False


def _remove(folder: Path) -> None:
    """A dying process may still write a file: try again for a little while."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)

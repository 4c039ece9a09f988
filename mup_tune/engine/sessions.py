"""Where a Ray of our own keeps its sockets and logs: a folder that only its user can enter."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from mup_tune.errors import UserError
from mup_tune.interrupts import stops_deferred

LONGEST = 107  # bytes of a Unix socket's path: sun_path of unix(7), without its end
BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # what Ray appends


@contextlib.contextmanager
def session() -> Iterator[Path]:
    """A folder below one of mode 0700, since Ray opens its own to everybody; it is deleted afterwards.

    Folders of processes that were killed are deleted first.

    Raises:
        UserError: no temporary folder can be used.
    """
    folder = _place()
    with _locked(folder.parent):  # nobody takes a folder that was just made for one that its process has left
        for old in folder.parent.iterdir():
            _remove_dead(old)
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        with stops_deferred():
            _remove(folder)
            os.close(descriptor)


@functools.cache
def _place() -> Path:
    """The folder's name. One per process: a second ``ray.init`` creates the folder of the first one again."""
    refusals = []
    for top in dict.fromkeys((os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp", "/dev/shm")):
        home = Path(top).absolute() / f"mup-tune-{os.geteuid()}"
        folder = home / secrets.token_hex(4)
        if len(os.fsencode(folder)) + BELOW > LONGEST:
            refusals.append(f"{top}: too long for the path of a socket")
            continue
        try:
            _make_private(home)
            return folder
        except OSError as error:
            refusals.append(f"{top}: {str(error.strerror).lower()}")
    raise UserError(
        f"no folder for Ray's sockets ({'; '.join(refusals)})",
        field="TMPDIR",
        fix="Set it to a short path that you can write to, or take --executor inline",
    )


def _make_private(home: Path) -> None:
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(0, f"{home.name} is another user's")
    home.chmod(0o700)
    if not os.access(home, os.W_OK):
        raise PermissionError(0, f"{home.name} cannot be written")


def _remove_dead(folder: Path) -> None:
    """Delete a folder whose process holds it no more; where locks are not to be had, none."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
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

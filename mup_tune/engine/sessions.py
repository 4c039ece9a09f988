"""Where a Ray of our own keeps its sockets and logs: a folder that only its user can enter."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from mup_tune.errors import UserError
from mup_tune.scratch import scratch_folder

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
    with scratch_folder(folder, "*", mode=0o700):
        yield folder


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

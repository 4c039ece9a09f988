from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mup_tune.engine import sessions
from mup_tune.errors import UserError


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of a short name, as TMPDIR."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        sessions._place.cache_clear()
        yield Path(name)
    sessions._place.cache_clear()


def test_it_lies_in_a_private_folder_below_tmpdir_and_is_deleted(top: Path) -> None:
    with sessions.session() as folder:
        assert folder.parent.parent == top
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        (folder / "log").touch()
    assert not folder.exists()
    with sessions.session() as again:
        assert again == folder  # Ray creates it again


def test_what_dead_processes_left_is_deleted(top: Path) -> None:
    with sessions.session() as folder:
        (folder.parent / "dead" / "session").mkdir(parents=True)
    with sessions.session() as folder:
        assert list(folder.parent.iterdir()) == [folder]


def test_a_tmpdir_too_long_for_sockets_is_passed_over(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = top / ("scratch" * 5)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with sessions.session() as folder:
        assert folder.is_relative_to("/tmp")
        assert not folder.is_relative_to(long)
        assert len(str(folder)) + sessions.BELOW <= 107


def test_a_folder_that_is_not_ours_is_refused_by_name(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    for place in (top, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        (place / "mup-tune-54321").mkdir(exist_ok=True)
    try:
        with (
            pytest.raises(UserError, match=r"TMPDIR: no folder .*mup-tune-54321 is another user's.*short path"),
            sessions.session(),
        ):
            pass
    finally:
        for place in (top, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            (place / "mup-tune-54321").rmdir()

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mup_tune.scratch import remove_dead, scratch_folder


def test_what_dead_processes_left_is_deleted_and_what_is_held_or_named_otherwise_stays(tmp_path: Path) -> None:
    for name in (".corpus.dead", ".corpus.live", "corpus", ".other.dead"):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / ".corpus.file").touch()
    held = os.open(tmp_path / ".corpus.live", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with scratch_folder(tmp_path / ".corpus.mine", ".corpus.*", mode=0o700):
        assert (tmp_path / ".corpus.mine").stat().st_mode & 0o777 == 0o700
        remove_dead(tmp_path / ".corpus.mine")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".corpus.live", ".corpus.mine", ".corpus.file", "corpus", ".other.dead"}
    assert not (tmp_path / ".corpus.mine").exists()
    os.close(held)


def test_a_folder_that_was_given_its_name_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / ".corpus.mine", ".corpus.*"):
        (tmp_path / ".corpus.mine").rename(tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_without_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".corpus.other").mkdir()
    with scratch_folder(tmp_path / ".corpus.mine", ".corpus.*"):
        assert (tmp_path / ".corpus.other").exists()
    assert not (tmp_path / ".corpus.mine").exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = "import sys, os, pathlib; from mup_tune.scratch import scratch_folder\n"
    code += "with scratch_folder(pathlib.Path(sys.argv[1]), '*'): os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "first")], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "first").is_dir()
    with scratch_folder(tmp_path / "second", "*"):
        assert [path.name for path in tmp_path.iterdir()] == ["second"]

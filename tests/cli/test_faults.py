"""Disks, corpora and clocks that fail under a sweep: one line names it, and what was committed stays."""

from __future__ import annotations

import datetime
import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from drivers import Driver
from program import mup_tune

from mup_tune.data.prepare import prepare
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.search import loop

PLAN = """
proxy: cpu-32
data: {corpus: CORPUS}
seeds: [0, 1]
budget: {seq_len: 16, batch_tokens: 64, total_tokens: 640, warmup_tokens: 0, decay_tokens: 128, val_tokens: 160}
stages:
  - {kind: elr_ewd, elr_offsets: [-1, 0, 1], ewd_offsets: [-1, 0, 1], extend: 0}
"""
INLINE = ("--executor", "inline")


@pytest.fixture(autouse=True)
def _one_member_a_pack() -> Iterator[None]:
    with mock.patch.object(loop, "SIZES", (1,)):
        yield


def planned(folder: Path) -> Path:
    """The plan, beside a corpus of its own that a test may spoil."""
    (folder / "text").mkdir()
    for index in range(60):
        (folder / "text" / f"{index:02d}.txt").write_text(f"{index} is followed by {index + 1}. " * 200)
    prepare([folder / "text"], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    path = folder / "plan.yaml"
    path.write_text(PLAN.replace("CORPUS", str(folder / "corpus")))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return planned(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The losses of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("alone")
    with mock.patch.object(loop, "SIZES", (1,)):
        assert mup_tune("sweep", planned(folder), "--run", folder / "run", *INLINE).returncode == 0
    return losses(folder / "run")


def losses(run: Path) -> dict[str, float]:
    journal = Journal(RunFolder.open(run), writable=False)
    return {key: row.loss for key, row in journal.rows.items()}


def error_of(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    assert "handed out again" not in said
    return line


def during(pack: int, step: int, deed: Callable[[], object]) -> None:
    """In a driver's process: one member a pack, and ``deed`` at a step of the ``pack``-th one."""
    from mup_tune.train import fed
    from mup_tune.train.torch_step import TorchStep
    from mup_tune.train.trainer import PackTraining

    loop.SIZES = (1,)
    fed.FED_STEPS = 2  # a pack reads the corpus again and again
    train, train_step, begun, at = PackTraining.train, TorchStep.step, 0, 0

    def trained(self: PackTraining, *rest: Any) -> None:
        nonlocal begun, at
        begun, at = begun + 1, 0
        train(self, *rest)

    def stepped(self: TorchStep) -> None:
        nonlocal at
        train_step(self)
        if (begun, at) == (pack, step):
            deed()
        at += 1

    PackTraining.train, TorchStep.step = trained, stepped  # type: ignore[method-assign]


def cut(file: Path) -> None:
    os.truncate(file, 100)


def other_content(file: Path) -> None:
    """In place, of the same size, ids of the same vocabulary."""
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(content[2000:] + content[:2000])


def other_file(file: Path) -> None:
    """Another file of the same size and the same time takes its name; who has the old one open reads on."""
    content, found = file.read_bytes(), file.stat()
    beside = file.with_name("new")
    beside.write_bytes(content[2000:] + content[:2000])
    os.utime(beside, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(beside, file)


@pytest.mark.parametrize(
    ("name", "step", "deed", "said"),
    [
        ("tokens.bin", 4, cut, r"has 100 bytes, but had \d+ when it was opened\. Put it back as it was made"),
        ("tokens.bin", 9, cut, r"has 100 bytes, but .* Put it back as it was made"),
        ("train.idx", 4, cut, r"has 100 bytes, but had \d+ when it was opened\. Put it back as it was made"),
        ("tokens.bin", 4, os.unlink, r"cannot be read any more \(No such file or directory\)\. Put it back"),
        ("tokens.bin", 4, other_content, "has other content than when the corpus .* was prepared. Prepare the corpus"),
        ("tokens.bin", 4, other_file, "has other content than when the corpus .* was prepared. Prepare the corpus"),
    ],
    ids=["cut", "cut before validation", "index cut", "gone", "written to", "replaced"],
)
def test_a_corpus_that_changes_ends_the_run_by_name(
    name: str,
    step: int,
    deed: Callable[[Path], object],
    said: str,
    plan: Path,
    tmp_path: Path,
    undisturbed: dict[str, float],
) -> None:
    """In the third pack: two are kept, and the one that may have read something else is not."""
    run, file = tmp_path / "run", tmp_path / "corpus" / name
    found, content = file.stat(), file.read_bytes()
    driver = Driver(
        tmp_path / "out", "sweep", plan, "--run", run, *INLINE, before=partial(during, 3, step, partial(deed, file))
    )
    assert driver.wait() == 2
    assert re.match(rf"error: {file}: {said}", error_of(driver.said()))
    assert len(kept := losses(run)) == 2
    refused = mup_tune("resume", run, *INLINE)
    assert refused.returncode == 2
    assert str(file) in error_of(refused.stderr)
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    resumed = mup_tune("resume", run, *INLINE)
    assert resumed.returncode == 0
    assert "resumed: 2 trials in 2 packs are kept\n" in resumed.stdout
    assert losses(run) == undisturbed
    assert kept.items() <= losses(run).items()


def test_a_corpus_that_was_only_touched_changes_nothing(plan: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "corpus" / "tokens.bin"
    before = partial(during, 3, 4, partial(os.utime, file))
    driver = Driver(tmp_path / "out", "sweep", plan, "--run", run, *INLINE, before=before)
    assert driver.wait() == 0
    assert driver.said().count("tokens.bin was written or copied since") == 1


def limited(size: int) -> None:
    loop.SIZES = (1,)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_file_size_limit_ends_the_run_in_one_line(plan: Path, tmp_path: Path, undisturbed: dict[str, float]) -> None:
    run = tmp_path / "run"
    driver = Driver(tmp_path / "out", "sweep", plan, "--run", run, *INLINE, before=partial(limited, 50_000))
    assert driver.wait() == 2
    line = error_of(driver.said())
    assert line.startswith(f"error: {run / 'journal.log'}: file too large. Raise `ulimit -f`, then give the same")
    goes_on(run, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a test beside it may just have forked


def test_a_full_disk_ends_the_run_in_one_line(plan: Path, small_disk: Path, undisturbed: dict[str, float]) -> None:
    run = small_disk / "run"
    done = mup_tune("sweep", plan, "--run", run, *INLINE)
    assert done.returncode == 2
    assert re.match(rf"error: {run}/.*: no space left on device\. Free space on its disk", error_of(done.stderr))
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    goes_on(run, undisturbed)


def goes_on(run: Path, undisturbed: dict[str, float]) -> None:
    """With room again, all that was committed is kept, and half a record at the journal's end is dropped."""
    content, kept = (run / "journal.log").read_bytes(), losses(run)
    torn = len(content) - content.rfind(b"\n") - 1
    resumed = mup_tune("resume", run, *INLINE)
    assert resumed.returncode == 0
    assert (f"note: {torn} bytes of a record" in resumed.stdout) == (torn > 0)
    assert f"resumed: {len(kept)} trials in {len(kept)} packs are kept" in resumed.stdout
    assert 0 < len(kept) < len(undisturbed)
    assert kept.items() <= losses(run).items()
    assert losses(run) == undisturbed
    assert not list(run.rglob(".*"))


def test_a_stale_lock_is_taken_and_told(plan: Path, tmp_path: Path) -> None:
    """Of a dead process, of one whose number another process has now, and of a driver on another host."""
    run, here = tmp_path / "run", os.uname().nodename
    run.mkdir()
    elsewhere = ". If it still works on node-7, stop it: its locks may not reach this machine"
    for pid, host, more in ((2**22 + 1, here, ""), (os.getppid(), here, ""), (7, "node-7", elsewhere)):
        (run / "lock").write_text(json.dumps({"pid": pid, "host": host}))
        done = mup_tune("sweep", plan, "--run", run, *INLINE)
        assert done.returncode == 0
        said = f"note: the driver before, process {pid} on {host}, was killed or its machine went down{more}\n"
        assert said in done.stdout
        assert (run / "lock").read_bytes() == b""
    assert "note: " not in mup_tune("resume", run, *INLINE).stdout


def test_a_torn_tail_is_dropped_and_told(plan: Path, tmp_path: Path) -> None:
    """Inside the last record, at its newline, and at a record's end, where nothing is torn."""
    run = tmp_path / "run"
    assert mup_tune("sweep", plan, "--run", run, *INLINE).returncode == 0
    whole, journal = losses(run), run / "journal.log"
    content = journal.read_bytes()
    ends = [end.end() for end in re.finditer(rb"\n", content)]
    commit = next(end for end in reversed(ends) if b'"commit ' in content[:end].splitlines()[-1])
    for end in (commit - 30, commit - 1, commit):
        journal.write_bytes(content[:end])
        torn = end - max(each for each in (0, *ends) if each <= end)
        resumed = mup_tune("resume", run, *INLINE)
        assert resumed.returncode == 0
        assert (f"note: {torn} bytes of a record that it had not finished were dropped" in resumed.stdout) == (torn > 0)
        assert journal.read_bytes().startswith(content[: end - torn])
        assert losses(run) == whole


class Jumping(datetime.datetime):
    """A clock that is set a day back, a day ahead and right again, look by look."""

    days = cycle([0, -1, 1])

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return datetime.datetime.now(tz) + datetime.timedelta(days=next(cls.days))


def test_a_clock_that_jumps_by_a_day_changes_nothing(
    plan: Path, tmp_path: Path, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("mup_tune.engine.runner.calibrate", lambda *_: pytest.fail("it was measured a minute ago"))
    days, now = cycle([1, -1]), time.time
    for module in ("run.folder", "run.optuna_log"):
        monkeypatch.setattr(f"mup_tune.{module}.datetime", Jumping)
    monkeypatch.setattr("time.time", lambda: now() + 86400 * next(days))
    done = mup_tune("sweep", plan, "--run", run, *INLINE)
    assert done.returncode == 0
    assert losses(run) == undisturbed
    for said in re.findall(r"(\S+), stage ends in (\S+)", done.stdout):
        assert all(re.fullmatch(r"0:0\d:\d\d", each) for each in said)
    assert mup_tune("resume", run, *INLINE).returncode == 0
    record = json.loads((run / "run.json").read_text())
    for created, known in (("2000-01-01T00:00:00+00:00", True), ("2999-01-01T00:00:00+00:00", False)):
        (run / "run.json").write_text(json.dumps({**record, "created": created}))
        assert mup_tune("report", run).returncode == 0
        assert ("by the clock" in (run / "report" / "index.html").read_text()) == known, "no run ends before it began"

"""Drivers that are killed at any moment: the next one goes on, and the end is the one of a run left alone."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from drivers import MARK, Driver, marked

PLAN = """
proxy: cpu-32
start: falcon-h1-published
data: {corpus: CORPUS}
seeds: [0, 1]
budget: {seq_len: 16, batch_tokens: 64, total_tokens: 640, warmup_tokens: 0, decay_tokens: 128, val_tokens: 160}
stages:
  - {kind: elr_ewd, elr_offsets: [-1, 0, 1], ewd_offsets: [-1, 0, 1], extend: 0}
  - {kind: micro, group: [lm_head, embedding_weight.elr]}
"""
PROGRAM = "from mup_tune.search import loop; loop.SIZES = (1,); from mup_tune.cli import main; main()"
TIMES = ["tokens_per_s"]  # what differs between two runs of the same packs


def populations_of(*sizes: int) -> None:
    """Calibrations of many are not worth it here. With one size alone, lanes do not change the packs."""
    from mup_tune.search import loop

    loop.SIZES = sizes


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("text")
    for index in range(60):
        (folder / f"{index:02d}.txt").write_text(f"{index} is followed by {index + 1}. " * 20)
    prepare([folder], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    path = folder / "plan.yaml"
    path.write_text(PLAN.replace("CORPUS", str(folder / "corpus")))
    return path


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def commits(content: bytes) -> list[str]:
    """Ids of the packs whose commit the journal holds."""
    records = map(json.loads, whole_lines(content).splitlines())
    keys = [key for record in records for key in record.get("user_attr", {})]
    return [key.removeprefix("commit ") for key in keys if key.startswith("commit ")]


def content_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def same_end(one: Path, other: Path) -> None:
    """All that is no time is equal, to the last bit."""
    tables = [pd.read_parquet(run / "tables" / "trials.parquet").drop(columns=TIMES) for run in (one, other)]
    ordered = [table.sort_values("hash", ignore_index=True) for table in tables]
    pd.testing.assert_frame_equal(*ordered, check_exact=True)
    for settings in (one / "settings").iterdir():
        assert settings.read_bytes() == (other / "settings" / settings.name).read_bytes()


def kill_again_and_again(start: Callable[[Path], Driver], run: Path, kills: int, beyond: float) -> Driver:
    """Kill the driver at ``kills`` random moments, and return the one that was left to end.

    Half of the moments lie anywhere after its start, half lie up to ``beyond`` seconds after it journalled
    something. Each time, what was committed before must be where it was.
    """
    moments, journal = random.Random(kills), run / "journal.log"
    kept, places = b"", dict[str, tuple[int, int]]()
    for kill in range(kills + 1):
        driver = start(run.with_name(f"{kill}.out"))
        if kill < kills:
            if kill % 2:
                while driver.alive and len(content_of(journal)) <= len(kept):
                    time.sleep(0.005)
            time.sleep(moments.random() * (beyond if kill % 2 else 3 * beyond))
            assert driver.alive, f"the plan is too short for {kills} kills: {driver.said()}"
            driver.kill()
        else:
            assert driver.wait() == 0, driver.said()
        found = content_of(journal)
        assert found.startswith(kept), "the journal only grows"
        resumed = re.search(r"resumed: \d+ trials in (\d+) packs are kept", driver.said())
        assert resumed is None or int(resumed[1]) == len(commits(kept))
        kept = whole_lines(found)
        for pack in commits(kept):
            file = (run / "curves" / f"{pack}.parquet").stat()
            assert places.setdefault(pack, (file.st_ino, file.st_mtime_ns)) == (file.st_ino, file.st_mtime_ns)
    assert set(Counter(commits(kept)).values()) == {1}
    return driver


def vanished(driver: Driver) -> None:
    """Ray's lanes die with their driver. Its agents see that by themselves, after a minute."""
    end = time.monotonic() + 180
    while (left := driver.left_behind()) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []


@pytest.mark.parametrize(
    ("kills", "seeds"), [(5, 2), pytest.param(30, 8, marks=pytest.mark.slow)], ids=["five", "thirty"]
)
def test_kill_9_at_random_moments_loses_nothing(kills: int, seeds: int, plan: Path, tmp_path: Path) -> None:
    small = partial(populations_of, 1, 2)
    options = ("--executor", "inline", "--set", f"seeds={list(range(seeds))}")
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert Driver(tmp_path / "alone.out", "sweep", plan, "--run", alone, *options, before=small).wait() == 0
    drivers: list[Driver] = []

    def start(output: Path) -> Driver:
        drivers.append(Driver(output, "sweep", plan, "--run", run, *options, before=small))
        return drivers[-1]

    last = kill_again_and_again(start, run, kills, 0.3)
    same_end(alone, run)
    assert sorted(commits(content_of(run / "journal.log"))) == sorted(commits(content_of(alone / "journal.log")))
    pids = "|".join(str(driver.process.pid) for driver in drivers)
    killed = rf"note: the driver before, process ({pids}) on {platform.node()}, was killed or its machine went down\n"
    assert re.search(killed, last.said())
    assert re.search(r"resumed: \d+ trials in \d+ packs are kept\n", last.said())
    assert not list(run.rglob(".*"))
    assert (run / "lock").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.ray
def test_kill_9_of_a_driver_of_ray_leaves_nothing_behind(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    one = partial(populations_of, 1)
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert Driver(tmp_path / "a.out", "sweep", plan, "--run", alone, "--executor", "inline", before=one).wait() == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # sockets lie in it
        monkeypatch.setenv("TMPDIR", short)
        drivers: list[Driver] = []

        def start(output: Path) -> Driver:
            drivers.append(Driver(output, "sweep", plan, "--run", run, "--lanes", 2, before=one))
            return drivers[-1]

        kill_again_and_again(start, run, 6, 2.0)
        assert drivers[-1].left_behind() == []
        for driver in drivers:
            vanished(driver)
        assert [name for place in Path(short).iterdir() for name in place.iterdir()] == []
    same_end(alone, run)


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_ctrl_c_pressed_again_changes_nothing(
    executor: str, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second press comes when the first has been answered, while Python and its libraries tidy up."""
    monkeypatch.setenv(MARK, str(tmp_path))
    run = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "sweep", str(plan), "--run", str(run), "--executor", executor]
    command += ["--set", f"seeds={list(range(8))}", "--set", "budget.total_tokens=6400"]  # of some length
    process: Any = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(run.glob("curves/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    said += process.stderr.read()
    assert process.wait(60) == 130
    kept = f"Interrupted. Committed packs are kept: the same command resumes {run}; `mup-tune status {run}` shows it.\n"
    assert said == kept
    assert list(marked(str(tmp_path))) == []
    assert not [path for path in run.rglob(".*") if "ray" not in path.relative_to(run).parts]
    assert (run / "lock").read_bytes() == b""
    assert (run / "tables" / "trials.csv").is_file()

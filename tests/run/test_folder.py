from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up import CORPUS, PLAN, folder

from mup_tune.errors import UserError
from mup_tune.run.description import CorpusRecord, PlanRecord
from mup_tune.run.folder import RunFolder

HERE = Path(__file__).parent
HOLD = """
import sys, time
from made_up import folder
run = folder(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_create_writes_plan_and_record_and_resumes(tmp_path: Path) -> None:
    with folder(tmp_path / "deep" / "run") as run:
        assert run.locked
    assert not run.locked
    with folder(tmp_path / "deep" / "run") as again:
        assert again.plan == PlanRecord.model_validate(PLAN)
        assert again.record.corpus == CorpusRecord.model_validate(CORPUS)
        assert {"version", "plan_hash", "created", "host", "python", "platform", "cpus"} <= set(
            json.loads((again.path / "run.json").read_text())
        )
    assert sorted(os.listdir(run.path)) == ["lock", "plan.yaml", "run.json"]


def test_a_crash_between_the_two_files_is_made_good(tmp_path: Path) -> None:
    folder(tmp_path / "run").close()
    (tmp_path / "run" / "plan.yaml").unlink()
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path / "run")
    folder(tmp_path / "run").close()
    assert RunFolder.open(tmp_path / "run").plan == PlanRecord.model_validate(PLAN)


def test_second_driver_is_refused_and_a_killed_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run"
    driver = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        before = {entry: (path / entry).read_bytes() for entry in os.listdir(path)}
        with pytest.raises(UserError) as refusal:
            folder(path)
        assert f"process {driver.pid} on {os.uname().nodename}" in str(refusal.value)
        assert {entry: (path / entry).read_bytes() for entry in os.listdir(path)} == before
        assert RunFolder.open(path).is_live()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not RunFolder.open(path).is_live()
    with folder(path) as run:
        assert RunFolder.open(path).is_live()
        assert run.is_live()
    assert not run.is_live()


def test_two_drivers_in_one_process(tmp_path: Path) -> None:
    with folder(tmp_path / "run"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        folder(tmp_path / "run")


def test_another_plan_is_refused_by_field(tmp_path: Path) -> None:
    folder(tmp_path / "run").close()
    other = copy.deepcopy(PLAN)
    other["name"] = "a label"
    other["budget"]["total_tokens"] = 1280
    other["stages"][0]["grid"] = [-1.0, 1.0]
    other["stages"][1]["seeds"] = 4
    other["extra"] = True
    del other["seeds"]
    with pytest.raises(UserError) as refusal:
        RunFolder.create_or_resume(tmp_path / "run", other, "other", CORPUS)
    text = str(refusal.value)
    assert "budget.total_tokens was 640, now 1280" in text
    assert "stages[0].grid was [-1.0, 0.0, 1.0], now [-1.0, 1.0]" in text
    assert "stages[1].seeds was 3, now 4" in text
    assert "extra was absent, now true" in text
    assert "seeds was [0, 1], now absent" in text
    assert "label" not in text
    folder(tmp_path / "run").close()  # the refusal gave the lock back


def test_at_most_five_differences_are_listed(tmp_path: Path) -> None:
    many = {"values": {f"field{i}": i for i in range(9)}}
    RunFolder.create_or_resume(tmp_path / "run", many, "one", CORPUS).close()
    changed = {"values": {f"field{i}": i + 0.5 for i in range(9)}}
    with pytest.raises(UserError, match=r"field4 was 4, now 4.5 and 4 more\)") as refusal:
        RunFolder.create_or_resume(tmp_path / "run", changed, "two", CORPUS)
    assert "field5" not in str(refusal.value)


def test_yaml_round_trip_is_no_difference(tmp_path: Path) -> None:
    plan = {"tiny": 1e-9, "large": 1e16, "text": "yes", "nothing": None, "pair": (1, 2), "µ": "é"}
    RunFolder.create_or_resume(tmp_path / "run", plan, "one", CORPUS).close()
    with pytest.raises(UserError, match="only its hash differs"):
        RunFolder.create_or_resume(tmp_path / "run", plan, "two", CORPUS)


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "run").close()
    with pytest.raises(UserError, match=r"corpus corpus \[c0ffee\], not on tea \[7ea\]"):
        RunFolder.create_or_resume(tmp_path / "run", PLAN, "plan-hash", {"name": "tea", "hash": "7ea"})
    # The name is a label: the same data under another name resumes.
    RunFolder.create_or_resume(tmp_path / "run", PLAN, "plan-hash", {"name": "tea", "hash": "c0ffee"}).close()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it holds 'plan.yaml'\) and is not a run"):
        folder(tmp_path)
    assert os.listdir(tmp_path) == ["plan.yaml"]
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot be used as a run folder"):
            folder(impossible)


def test_open_hints_at_the_nearest_run(tmp_path: Path) -> None:
    folder(tmp_path / "quickstart").close()
    folder(tmp_path / "other").close()
    with pytest.raises(UserError, match=r"quickstrat: no such run. Did you mean .*/quickstart\?"):
        RunFolder.open(tmp_path / "quickstrat")
    with pytest.raises(UserError, match=r"is not a run folder\. It holds runs: other, quickstart"):
        RunFolder.open(tmp_path)


def test_stored_files_are_plain(tmp_path: Path) -> None:
    with folder(tmp_path / "run") as run:
        assert yaml.safe_load((run.path / "plan.yaml").read_text()) == PLAN
        assert json.loads((run.path / "run.json").read_text())["plan_hash"] == "plan-hash"

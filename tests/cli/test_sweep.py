from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from program import mup_tune

from mup_tune.run.tables import slug
from mup_tune.search import loop
from mup_tune.settings import ELR_0

# A name that is markup to a terminal, mathematics to a figure, and tags or code to a page.
TUNED = r'tuned [/x] $5% or $10 <b>&lt; \[/y] "`*|'
PLAN = """
proxy: cpu-32
start: falcon-h1-published
data: {corpus: CORPUS}
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 5120, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 640}
stages:
  - {kind: elr_ewd, name: elr, reference: TUNED}
  - {kind: micro, group: [lm_head, embedding_weight.elr]}
  - {kind: confirm, against: [TUNED], n_seeds: 2}
"""


# A process of its own that is killed. Populations of 16 to 128 are not worth their calibration here.
PROGRAM = "from mup_tune.search import loop; loop.SIZES = (1, 2, 4, 8); from mup_tune.cli import main; main()"


@pytest.fixture(scope="module", autouse=True)
def _small_populations() -> Iterator[None]:
    with mock.patch.object(loop, "SIZES", (1, 2, 4, 8)):
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("text")
    for index in range(60):
        (folder / f"{index:02d}.txt").write_text(f"{index} is followed by {index + 1}. " * 20)
    prepare([folder], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    path = folder / "plan.yaml"
    path.write_text(PLAN.replace("CORPUS", str(folder / "corpus")).replace("TUNED", json.dumps(TUNED)))
    return path


def losses(run: Path, calm: bool = False) -> dict[str, float]:
    """Loss by trial hash. ``calm``: those at the starting ELR or below; above it training is chaotic, so that
    rounding in another pack composition grows from 1e-7 to 1e-2 within 40 steps."""
    import pandas as pd

    table = pd.read_csv(run / "tables" / "trials.csv")
    if calm:
        table = table[(table["elr"] < 1.01 * ELR_0) & (table["lm_head"] < 0.1) & (table["embedding_weight.elr"] < 1.1)]
    return dict(zip(table["hash"], table["loss"], strict=True))


@pytest.fixture(scope="module")
def finished(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "whole"
    done = mup_tune("sweep", plan, "--run", run, "--executor", "inline")
    assert done.returncode == 0, done.stderr
    return run


def test_a_sweep_ends_with_settings_tables_and_status(finished: Path) -> None:
    status = json.loads(mup_tune("status", finished, "--json").stdout)
    assert status["complete"]
    assert [stage["state"] for stage in status["stages"]] == ["concluded"] * 3
    assert status["trials"] == len(losses(finished)) >= 30
    assert (finished / "settings" / "incumbent.yaml").is_file()
    assert mup_tune("report", finished).returncode == 0
    page = (finished / "report" / "index.html").read_text()
    assert "<svg" in page
    assert (status["state"], status["stages_planned"]) == ("complete", 3)
    assert status["verdict"] in html.unescape(page)
    watched = mup_tune("status", finished, "--watch", "1")  # ends at once: nobody is at work
    assert watched.stdout == mup_tune("status", finished).stdout
    assert "to come" not in watched.stdout


def test_a_name_stands_everywhere_as_it_is(finished: Path, plan: Path, tmp_path: Path) -> None:
    again = mup_tune("sweep", plan, "--run", finished, "--executor", "inline")
    planned, status = mup_tune("plan", plan, "--json"), mup_tune("status", finished, "--json")
    assert json.loads(planned.stdout)["stages"][2]["title"].endswith(TUNED)
    assert f"Against {TUNED}: " in json.loads(status.stdout)["stages"][2]["summary"]
    for said in (again, mup_tune("status", finished)):
        assert said.returncode == 0
        assert "".join(TUNED.split()) in "".join(said.stdout.split())  # a table folds it
    page = tmp_path / "page.html"
    assert mup_tune("report", finished, "--out", page).returncode == 0
    assert TUNED not in page.read_text()
    texts = html.unescape(re.sub(r"<[^>]*>", " ", page.read_text()))
    assert texts.count(TUNED) >= 5
    out = tmp_path / "out"
    done = mup_tune("transfer", finished, "--from", TUNED, "--target", "cpu-64", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r"\\(.)", r"\1", (out / "README.md").read_text().splitlines()[2])  # as Markdown shows it
    assert f"from '{slug(TUNED)}' of the run" in shown


def test_a_finished_run_is_validated_at_larger_shapes(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "wide"
    asked = ("validate", finished, "--widths", "2", "--depths", "", "--against", TUNED, "--seeds", "2")
    asked = (*asked, "--retune", "lm_head")
    done = mup_tune(*asked, "--run", run, "--executor", "inline", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == {"pass": 0, "fail": 1, "inconclusive": 3}[found["verdict"]], done.stderr
    assert [(at["shape"]["d_model"], at["width"]) for at in found["result"]["shapes"]] == [(32, 1), (64, 2)]
    incumbent = (finished / "settings" / "incumbent.yaml").read_text()
    assert (run / "settings" / "incumbent.yaml").read_text() == incumbent
    assert "Where the best ELR lies" in (run / "report" / "index.html").read_text()
    again = mup_tune(*asked, "--run", run, "--executor", "inline", "--json")
    assert json.loads(again.stdout) == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (),
            "has none of ELR-EWD-tuned untuned, falcon-h1-published to compare with. Name one of its references: "
            f"{TUNED}",
        ),
        (("--against", TUNED[1:]), f"did you mean {TUNED!r}?"),
        (("--against", TUNED, "--widths", "2,x"), "--widths: '2,x' is not a list of numbers"),
        (("--against", TUNED, "--widths", "1.1"), "widths[0]: makes d_model 35.2, which is no whole number"),
        (("--against", TUNED, "--retune", "lm_hat"), "did you mean 'lm_head'?"),
        (("--against", TUNED, "--horizons", "2"), "give at least two factors above 1"),
    ],
)
def test_what_cannot_be_validated_is_told(finished: Path, options: tuple[str, ...], said: str) -> None:
    before = sorted(finished.parent.iterdir())
    done = mup_tune("validate", finished, *options, "--executor", "inline")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert sorted(finished.parent.iterdir()) == before


def test_kill_9_leaves_a_run_that_resumes_to_the_same_losses(finished: Path, plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    command = [sys.executable, "-c", PROGRAM, "sweep", str(plan), "--run", str(run), "--executor", "inline"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(run.glob("curves/*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = json.loads(mup_tune("status", run, "--json").stdout)
    assert 0 < before["trials"] < len(losses(finished))
    assert (before["state"], before["stages"][-1]["state"]) == ("stopped", "interrupted")
    assert before["verdict"].startswith("No findings") or "Interrupted after" in before["verdict"]
    committed = {path.name: path.stat().st_mtime_ns for path in run.glob("curves/*.parquet")}
    command = [sys.executable, "-c", PROGRAM, "resume", str(run), "--executor", "inline"]  # without its plan
    resumed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    after = {path.name: path.stat().st_mtime_ns for path in run.glob("curves/*.parquet")}
    # The last curve file may stand there without its pack's commit; every other pack must not be trained
    # again.
    assert sum(after[name] != at for name, at in committed.items()) <= 1
    # Pack sizes follow the calibration, so compositions differ between the runs and losses agree to rounding.
    whole, again = losses(finished, calm=True), losses(run, calm=True)
    shared = whole.keys() & again.keys()
    assert len(shared) >= 6
    assert [again[key] for key in shared] == pytest.approx([whole[key] for key in shared], rel=1e-5)


def test_ctrl_c_says_how_to_resume_and_exits_130(plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    command = [sys.executable, "-c", PROGRAM, "sweep", str(plan), "--run", str(run), "--executor", "inline"]
    command += ["--set", f"seeds={list(range(40))}"]  # too much to be done before the signal comes
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(run.glob("curves/*.parquet")):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resumes {run}" in " ".join(message.split())
    assert "Traceback" not in message


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_interrupt_a_sweep_as_ctrl_c_does(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("mup_tune.train.trainer.train_pack", lambda *_: signal.raise_signal(number))
    run = tmp_path / "stopped"
    done = mup_tune("sweep", plan, "--run", run, "--executor", "inline")
    assert done.returncode == 128 + number
    said = " ".join(done.stderr.split())
    assert said.startswith(f"Interrupted by {number.name}. Committed packs are kept: the same command resumes {run}")
    assert not json.loads(mup_tune("status", run, "--json").stdout)["complete"]
    assert not list(run.rglob(".*"))


def test_a_signal_leaves_nothing_of_a_corpus(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mup_tune.data.prepare.write_split", lambda *_: signal.raise_signal(signal.SIGTERM))
    done = mup_tune("data", "prepare", *plan.parent.glob("*.txt"), "--out", tmp_path / "corpus", "--tokenizer", "bytes")
    assert (done.returncode, done.stderr.strip()) == (
        143,
        "Interrupted by SIGTERM. Nothing half-made is left; give the same command again.",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_ends_before_the_plan_does_is_an_interrupt(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mup_tune.engine.inline.drive", lambda *_: None)
    run = tmp_path / "run"
    assert mup_tune("sweep", plan, "--run", run, "--executor", "inline").returncode == 130
    assert not json.loads(mup_tune("status", run, "--json").stdout)["complete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sedes=[1]"], "did you mean 'seeds'"),
        (["--set", "proxy=falcon-h1-0.5"], "did you mean 'falcon-h1-0.5b'"),
        (["--set", "budget.total_tokens=5120.5"], "budget.total_tokens: 5120.5 is not allowed"),
        (["--set", "budget.total_tokens=1e8"], "100,000,000 training tokens are"),
        (["--set", "budget.val_tokens=64000000"], "validation split holds"),
        (["--set", "data.corpus=/nowhere"], "/nowhere"),
        (["--scale", "cpu"], "no scales"),
        (["--executor", "rya"], "did you mean 'ray'"),
        (["--executor", "inline", "--lanes", "2"], "--lanes"),
        (["--address", "127.0.0.1:9"], "no Ray cluster answers at '127.0.0.1:9'"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    plan: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    run = tmp_path / "run"
    done = mup_tune("sweep", plan, "--run", run, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()


def test_a_run_of_another_plan_and_a_folder_that_is_no_run_are_refused(
    finished: Path, plan: Path, tmp_path: Path
) -> None:
    other = mup_tune("sweep", plan, "--run", finished, "--set", "seeds=[5, 6]", "--executor", "inline")
    assert other.returncode == 2
    assert "seeds" in other.stderr
    (tmp_path / "letter.txt").write_text("dear")
    assert mup_tune("sweep", plan, "--run", tmp_path, "--executor", "inline").returncode == 2
    assert mup_tune("status", tmp_path).returncode == 2
    assert mup_tune("report", tmp_path).returncode == 2


@pytest.mark.ray
def test_on_ray_a_sweep_ends_the_same_and_leaves_nothing_in_the_home(
    finished: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    run = tmp_path / "run"
    done = mup_tune("sweep", plan, "--run", run, "--lanes", 2)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in home.rglob("*") if path.is_file()} <= {"auth_token"}
    whole, on_ray = losses(finished, calm=True), losses(run, calm=True)
    shared = whole.keys() & on_ray.keys()
    assert len(shared) >= 6
    assert [on_ray[key] for key in shared] == pytest.approx([whole[key] for key in shared], rel=1e-5)

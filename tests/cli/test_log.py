"""``--log`` on real sweeps: what they say, and that nothing of a logger stops them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from program import mup_tune

from mup_tune.data.prepare import prepare
from mup_tune.loggers.logger import Logger
from mup_tune.loggers.tensorboard import TensorBoard
from mup_tune.search import loop

PLAN = """
proxy: cpu-32
data: {corpus: CORPUS}
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 64, total_tokens: 640, warmup_tokens: 0, decay_tokens: 64, val_tokens: 64}
stages:
  - {kind: elr_ewd, elr_offsets: [-1, 0, 1], extend: 0}
  - {kind: micro, group: [lm_head], offsets: [-1, 0, 1], extend: 0}
"""


@pytest.fixture(scope="module", autouse=True)
def _one_size() -> Iterator[None]:
    with mock.patch.object(loop, "SIZES", (8,)):
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(f"{i} is followed by {i + 1}. " for i in range(900)))
    prepare([folder / "text.txt"], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    (folder / "plan.yaml").write_text(PLAN.replace("CORPUS", str(folder / "corpus")))
    return folder / "plan.yaml"


def shown(run: Path) -> dict[str, list[int]]:
    """Steps by tag of what belongs to the sweep as a whole."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_multiplexer")
    board = module.EventMultiplexer().AddRunsFromDirectory(str(run / "log" / "tensorboard"))
    board.Reload()
    return {tag: [e.step for e in board.Tensors("sweep", tag)] for tag in board.Runs()["sweep"]["tensors"]}


def test_a_sweep_logs_as_it_goes_and_a_finished_one_can_be_logged_later(plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run, during = tmp_path / "run", []
    concluded = TensorBoard.concluded

    def looked(self: TensorBoard, stage: object) -> None:
        concluded(self, stage)  # type: ignore[arg-type]
        during.append(shown(run))

    with mock.patch.object(TensorBoard, "concluded", looked):
        done = mup_tune("sweep", plan, "--run", run, "--executor", "inline", "--log", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert f"--log tensorboard: `tensorboard --logdir {run / 'log' / 'tensorboard'}` shows it" in done.stdout
    assert "stage/02-micro" not in during[0]  # it was told while the second stage was yet to come
    assert "stage/01-elr_ewd" in during[0]
    found = shown(run)
    assert found["run/diverged"] == sorted(set(found["run/diverged"]))
    assert found["stage/02-micro"] == found["run/diverged"][-1:]
    for file in (run / "log").rglob("events*"):
        file.unlink()
    again = mup_tune("resume", run, "--executor", "inline", "--log", "tensorboard")
    assert again.returncode == 0, again.stderr
    assert shown(run) == found


def test_what_is_missing_is_said_before_anything_is_made(plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with mock.patch.dict(sys.modules, {"wandb": None}):  # as if it were not installed
        done = mup_tune("sweep", plan, "--run", run, "--executor", "inline", "--log", "wandb")
    assert done.returncode == 2
    assert "--log: wandb cannot be imported" in done.stderr
    assert '`pip install "mup-tune[log]"`' in done.stderr
    unknown = mup_tune("sweep", plan, "--run", run, "--log", "wand")
    assert (unknown.returncode, "did you mean 'wandb'" in unknown.stderr) == (2, True)
    assert not run.exists()


def test_help_names_every_logger() -> None:
    for command in ("sweep", "resume"):
        assert "|".join(sorted(Logger.known)) in mup_tune(command, "--help").stdout


def test_a_logger_that_breaks_stops_no_sweep(plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run, short = tmp_path / "run", tmp_path / "short.yaml"
    short.write_text(plan.read_text().partition("  - {kind: micro")[0])
    with mock.patch.object(TensorBoard, "committed", side_effect=OSError(28, "No space left on device")):
        done = mup_tune("sweep", short, "--run", run, "--executor", "inline", "--log", "tensorboard")
    assert done.returncode == 0, done.stderr
    warned = "warning: --log tensorboard ends here, and the run goes on (OSError: [Errno 28] No space left on device)"
    assert done.stdout.count(warned) == 1
    assert (run / "tables" / "stages.parquet").is_file()

"""What TensorBoard itself reads in the event files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from told_run import CONFIRMING, GAIN, REFERENCE, TUNING, opened, steps, words

from mup_tune.loggers.feed import logged
from mup_tune.loggers.tensorboard import SWEEP, TensorBoard
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import slug

multiplexer = pytest.importorskip("tensorboard.backend.event_processing.event_multiplexer")


def driven(path: Path, until: int = 10) -> None:
    """A driver that ends after some steps of the run, in the middle or not."""
    folder, journal = opened(path)
    with folder, logged([TensorBoard], folder, journal, words, lambda line: None) as tell:
        for _, _ in zip(range(until), steps(journal), strict=False):
            tell()


def shown(path: Path) -> Any:
    found = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(path / "log" / "tensorboard"))
    found.Reload()
    return found


def points(board: Any, line: str, tag: str) -> list[tuple[int, float]]:
    return [(each.step, float(each.tensor_proto.float_val[0])) for each in board.Tensors(line, tag)]


@pytest.fixture
def near() -> Callable[[list[tuple[int, float]]], list[tuple[int, Any]]]:
    return lambda pairs: [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]


def test_progress_runs_over_trials_and_curves_over_tokens(tmp_path: Path, near: Any) -> None:
    driven(tmp_path)
    board = shown(tmp_path)
    assert set(board.Runs()) == {SWEEP, "best", "incumbent", slug(REFERENCE)}
    assert points(board, SWEEP, "run/diverged") == [(2, 1.0), (4, 1.0), (5, 1.0), (7, 1.0)]
    assert points(board, SWEEP, f"best_loss/{TUNING}") == near([(2, 3.0), (4, 2.5)])
    assert points(board, SWEEP, f"gain_low/{CONFIRMING}") == near([(7, GAIN.low)])
    assert f"gain/{TUNING}" not in board.Runs()[SWEEP]["tensors"]  # it measured none
    # Equal tags in several folders: TensorBoard draws them into one chart.
    curve = [(64, 3.5), (128, 3.0), (192, 2.5 + 1 / 3)]
    assert points(board, "best", f"curve/{TUNING}") == near(curve)
    assert [step for step, _ in points(board, slug(REFERENCE), f"curve/{TUNING}")] == [64, 128, 192]
    (text,) = board.Tensors(SWEEP, f"stage/{TUNING}")
    assert f"**Title of {TUNING}**\n\n{TUNING} is over." in text.tensor_proto.string_val[0].decode()
    metadata = board.SummaryMetadata(SWEEP, "run/flops")
    assert metadata.plugin_data.plugin_name == "scalars"


def test_points_bear_the_time_of_their_commit(tmp_path: Path) -> None:
    driven(tmp_path)
    times = [each.wall_time for each in shown(tmp_path).Tensors(SWEEP, "run/flops")]
    commits = [pack["committed_utc"] for pack in Journal(RunFolder.open(tmp_path), writable=False).packs()]
    assert times == [datetime.fromisoformat(each).timestamp() for each in commits]


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_shows_every_point_once(tmp_path: Path, stopped: int) -> None:
    driven(tmp_path / "whole")
    driven(tmp_path / "halves", until=stopped)
    driven(tmp_path / "halves")
    whole, halves = (shown(tmp_path / name) for name in ("whole", "halves"))
    tags = [{line: set(found["tensors"]) for line, found in each.Runs().items()} for each in (whole, halves)]
    assert tags[0] == tags[1]
    for line, names in tags[0].items():
        for tag in names:
            first, second = ([(e.step, e.tensor_proto) for e in each.Tensors(line, tag)] for each in (whole, halves))
            assert first == second


def test_other_files_beside_the_events_stay(tmp_path: Path) -> None:
    driven(tmp_path)
    mine = tmp_path / "log" / "tensorboard" / "notes.txt"
    mine.write_text("mine")
    driven(tmp_path)
    assert mine.read_text() == "mine"


def test_a_driver_that_logs_needs_no_torch() -> None:
    code = (
        "import sys; from mup_tune.loggers import loggers; import mup_tune.loggers.feed; loggers(['tensorboard']);"
        "print([m for m in ('torch', 'tensorflow', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

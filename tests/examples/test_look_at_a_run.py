"""The example looks at a real run, and every column of that run is described."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from typer.testing import CliRunner

import mup_tune
from mup_tune.cli import app
from mup_tune.data.prepare import prepare
from mup_tune.run.columns import TABLES
from mup_tune.search import loop

SCRIPT = Path(__file__).parents[2] / "examples" / "look_at_a_run.py"
PLAN = """
proxy: cpu-32
data: [{corpus: ONE, weight: 0.5}, {corpus: TWO, weight: 0.5}]
seeds: [0, 1]
budget:
  {seq_len: 32, batch_tokens: 128, total_tokens: 2560, warmup_tokens: 0, decay_tokens: 640, val_tokens: 256,
   val_lengths: [1, 2]}
stages:
  - {kind: micro, group: [lm_head, embedding_weight.elr]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    text = PLAN
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text("".join(f"{name} {i} is followed by {i + 1}. " for i in range(900)))
        prepare([folder / f"{name}.txt"], folder / name, tokenizer="bytes", val_fraction=0.2)
        text = text.replace(name.upper(), str(folder / name))
    (folder / "plan.yaml").write_text(text)
    arguments = ["sweep", str(folder / "plan.yaml"), "--run", str(folder / "run"), "--executor", "inline"]
    with mock.patch.object(loop, "SIZES", (8,)):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_the_example_shows_what_the_run_holds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = tmp_path / "curve.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run), "--plot", str(plot)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    view = mup_tune.load_run(run)
    best = view.trials.loc[view.trials["loss"].idxmin()]
    assert f"The best trial, {best['hash']}, ends at {best['loss']:.4f}" in said
    means = view.trials.groupby("settings_hash")["loss"].mean()
    ranked = re.findall(r"^([0-9a-f]{16}) +([0-9.]+) +\d+$", said, re.MULTILINE)
    assert [hash_ for hash_, _ in ranked] == list(means.nsmallest(5).index)
    assert float(ranked[0][1]) == pytest.approx(means.min(), abs=1e-6)
    for stage in view.stage_keys:
        assert stage in said
    assert {"lm_head", "embedding_weight.elr"} == set(re.findall(r"^  (\S+): [0-9.]+, now ", said, re.MULTILINE))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_every_column_of_a_real_run_is_described(run: Path) -> None:
    view = mup_tune.load_run(run)
    assert {"loss.one", "loss.two", "loss_x1", "loss_x2"} <= set(view.trials.columns)
    for table in TABLES:
        frame = getattr(view, table.name)
        assert len(frame)
        undescribed = [name for name in frame.columns if table.column(name) is None]
        assert not undescribed
        missing = [column.name for column in table.columns if not any(map(column.covers, frame.columns))]
        assert not missing
        for name in frame.columns:
            column = table.column(name)
            assert column is not None
            kind = {"text": "Of", "integer": "i", "number": "if"}[column.type]
            assert table.name == "packs" or frame[name].dtype.kind in kind, name


def test_curves_belong_to_their_trials(run: Path) -> None:
    view = mup_tune.load_run(run)
    ends = view.curves.groupby("hash")["tokens"].max()
    assert set(ends.index) == set(view.trials["hash"])
    totals = view.trials.set_index("hash")["total_tokens"]
    alive = view.trials.set_index("hash")["status"] == "ok"
    pd.testing.assert_series_equal(ends[alive[ends.index]], totals[ends.index][alive], check_names=False)
    # The last twentieth of 20 steps is the last step, which is the curve's last point.
    trained = view.trials.set_index("hash")["train_loss"]
    last = view.curves.groupby("hash")["loss"].last()
    pd.testing.assert_series_equal(last, trained[last.index], check_names=False, check_exact=True)
    assert int(view.stages["trials"].sum()) == len(view.trials)
    assert view.settings is not None
    assert view.stages["settings_hash"].iloc[-1] == view.settings.content_hash()
    assert not view.live

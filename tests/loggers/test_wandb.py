"""What wandb stores offline, read back record by record: one wandb run a mup-tune run."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from told_run import CONFIRMING, GAIN, REFERENCE, TUNED, TUNING, opened, steps, words

from mup_tune.loggers.feed import Feed, logged
from mup_tune.loggers.wandb import WeightsAndBiases
from mup_tune.run.tables import slug

pytest.importorskip("wandb", reason="wandb is not installed")

TRIALS = "tables/trials.path"  # where the table of trials lies
HEADER, BLOCK, FRAME = 7, 32768, struct.Struct("<IHB")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def driven(path: Path, until: int = 10) -> list[str]:
    """A driver that ends after some steps of the run, in the middle or not; what it says."""
    folder, journal = opened(path)
    said: list[str] = []
    with folder, logged([WeightsAndBiases], folder, journal, words, said.append) as tell:
        for _, _ in zip(range(until), steps(journal), strict=False):
            tell()
    return said


def stored(path: Path) -> list[Path]:
    return sorted(path.glob("log/wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def records(file: Path) -> list[Any]:
    """Of a run that has ended. wandb's own process may still be writing when the run is told to be over."""
    for _ in range(300):
        found = list(_records(file))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise TimeoutError(file)


def _records(file: Path) -> Iterator[Any]:
    """wandb's files are LevelDB logs: frames in blocks of 32 KiB, a record in one frame or several."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), HEADER, b""
    while at + FRAME.size <= len(data):
        if BLOCK - at % BLOCK < FRAME.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = FRAME.unpack_from(data, at)
        record += data[at + FRAME.size : at + FRAME.size + length]
        at += FRAME.size + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def history(file: Path) -> list[dict[str, Any]]:
    rows = [record.history for record in records(file) if record.WhichOneof("record_type") == "history"]
    found = [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item} for row in rows]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in found]


def test_one_run_with_progress_curves_tables_and_summary(tmp_path: Path) -> None:
    (said,) = driven(tmp_path / "first")
    (file,) = stored(tmp_path / "first")
    assert said == f"--log wandb: `wandb sync {file.parent}` uploads it"
    rows = history(file)
    progress = [row for row in rows if "run/diverged" in row]
    assert [(row["trials"], row["run/diverged"]) for row in progress] == [(2, 1.0), (4, 1.0), (5, 1.0), (7, 1.0)]
    assert [row[f"best_loss/{TUNING}"] for row in progress[:2]] == [3.0, 2.5]
    (gain,) = [row for row in rows if f"gain/{CONFIRMING}" in row]
    assert (gain["trials"], gain[f"gain/{CONFIRMING}"], gain[f"gain_high/{CONFIRMING}"]) == (7, GAIN.value, GAIN.high)
    curves = [row for row in rows if f"curve/{TUNING}/best" in row]
    assert [row["tokens"] for row in curves] == [64, 128, 192]
    assert [row[f"curve/{TUNING}/{slug(REFERENCE)}"] for row in curves] == pytest.approx([4.0, 3.5, 3 + 1 / 3])
    path = [row[TRIALS] for row in rows if TRIALS in row][-1]
    table = json.loads((file.parent / "files" / path).read_text())
    assert len(table["data"]) == 7
    seeds = [row[table["columns"].index("seed")] for row in table["data"]]
    assert seeds == [0, 1, 0, 1, 7, 8, 9]
    told = [record for record in records(file) if record.WhichOneof("record_type") == "summary"]
    summary = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for one in told for i in one.summary.update}
    assert summary["incumbent/elr"] == TUNED.elr
    assert summary[f"stages/{TUNING}"] == f"{TUNING} is over."
    (run,) = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"][:1]
    assert (run.display_name, run.project) == ("first", "mup-tune")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["plan"]["name"] == "told"


def test_axes_of_the_charts_are_trials_and_tokens(tmp_path: Path) -> None:
    driven(tmp_path)
    (file,) = stored(tmp_path)
    metrics = [record.metric for record in records(file) if record.WhichOneof("record_type") == "metric"]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in metrics}
    assert axes["best_loss/*"] == axes["run/*"] == axes["gain*"] == "trials"
    assert axes["curve/*"] == "tokens"


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_has_the_same_id_and_is_told_only_what_is_new(tmp_path: Path, stopped: int) -> None:
    driven(tmp_path / "halves", until=stopped)
    kept = json.loads((tmp_path / "halves" / "log" / "wandb.json").read_text())
    driven(tmp_path / "halves")
    first, second = stored(tmp_path / "halves")
    ids = {record.run.run_id for file in (first, second) for record in records(file) if record.HasField("run")}
    assert ids == {kept["id"]}
    parts = [row for file in (first, second) for row in history(file)]
    driven(tmp_path / "whole")
    (whole,) = stored(tmp_path / "whole")
    charts = [[row for row in rows if TRIALS not in row] for rows in (parts, history(whole))]
    assert charts[0] == charts[1]


def test_what_a_killed_driver_told_is_told_again(tmp_path: Path) -> None:
    import wandb

    driven(tmp_path, until=1)
    folder, journal = opened(tmp_path)
    feed = Feed(folder, journal, words, lambda line: None)
    feed.open([WeightsAndBiases])
    for _, _ in zip(range(4), steps(journal), strict=False):
        feed.update()
    wandb.finish()  # nobody closes the logger
    folder.close()
    driven(tmp_path)
    seen = [[row["trials"] for row in history(file) if "run/diverged" in row] for file in stored(tmp_path)]
    assert seen == [[2], [4, 5], [4, 5, 7]]


def test_what_wandb_refuses_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a/project:of?no#kind")
    (said,) = driven(tmp_path)
    assert said.startswith("warning: --log wandb ends here, and the run goes on (")
    assert len(said.splitlines()) == 1

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from mup_tune.cli import basin as basin_module
from mup_tune.cli.basin import register
from mup_tune.errors import UserError

# A coarse grid that holds the optimum of so short a run, so that nothing is extended.
SMALL = ["--shape", "cpu-32", "--widths", "32,64", "--tokens", "12288", "--seeds", "1", "--offsets", "-4,0,4,8"]
# A process of its own: training flushes subnormals, and hypothesis must not be made to. Populations of 8 to
# 128 are not worth their calibration here.
PROGRAM = """
import typer
from mup_tune.cli import basin
from mup_tune.search import loop
loop.SIZES, basin.VAL_TOKENS = (1, 2, 4), 2048
app = typer.Typer()
basin.register(app)
app()
"""


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    check = typer.Typer()
    check.callback()(lambda: None)
    register(check)
    return check


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("text")
    for index in range(80):
        lines = (f"{n} and {n + index} are {2 * n + index}. " for n in range(150))
        (folder / f"{index:02d}.txt").write_text("".join(lines))
    prepare([folder], folder / "corpus", tokenizer="bytes", val_fraction=0.3)
    return folder / "corpus"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def basin(app: typer.Typer, corpus: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["basin", "--corpus", str(corpus), "--executor", "inline", *arguments])


def test_a_check_trains_once_prints_its_numbers_and_exits_by_its_verdict(
    app: typer.Typer, corpus: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basin_module, "VAL_TOKENS", 2048)
    command = [sys.executable, "-c", PROGRAM, "--corpus", str(corpus), "--executor", "inline", *SMALL]
    calm = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that spin stall one another on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=calm)
    assert done.returncode in (0, 1, 3), done.stderr
    (run,) = (here / "runs").iterdir()
    assert run.name.startswith("basin-elr-cpu-32-")
    curves = sorted((run / "curves").iterdir())
    assert "same 12,288 tokens (12 steps)" in " ".join(done.stdout.split())

    # The same command finds everything trained; only the way of printing differs.
    again = basin(app, corpus, *SMALL, "--json")
    assert sorted((run / "curves").iterdir()) == curves
    assert again.exit_code == done.returncode
    data = json.loads(again.stdout)
    assert {"pass": 0, "fail": 1, "inconclusive": 3}[data["verdict"]] == done.returncode
    assert data["verdict"] == data["basins"][0]["verdict"]
    assert [each["param"] for each in data["basins"]] == ["mup", "sp"]
    sizes = data["basins"][0]["sizes"]
    assert [(size["label"], size["d_model"]) for size in sizes] == [("d32", 32), ("d64", 64)]
    assert {point["offset"] for point in sizes[0]["points"]} >= {-4, 0, 4, 8}
    # Untuned mup at its base Shape is sp: one set of trials, one set of losses.
    assert sizes[0]["points"] == data["basins"][1]["sizes"][0]["points"]
    assert sizes[1]["points"] != data["basins"][1]["sizes"][1]["points"]
    page = (run / "report" / "index.html").read_text()
    for size in sizes:
        best = next(point for point in size["points"] if point["offset"] == size["best_offset"])
        loss = f"{best['losses']['0']:.4f}"
        assert loss in page
        assert loss in done.stdout  # in the sentence on tuned best losses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hp", "erl"], "did you mean 'elr'"),
        (
            ["--widths", "32,40"],
            "n_heads of 'cpu-64' 2.5, which has to be rounded. Its family has the widths 32, 64, 96 …",
        ),
        (["--widths", "32"], "are one size"),
        (["--widths", "32,big"], "--widths: '32,big' is not a list of sizes"),
        (["--widths", "32,32"], "names a value twice"),
        (["--param", "mpu"], "did you mean 'mup'"),
        (["--executor", "rya"], "did you mean 'ray'"),
        (["--offsets", "0,1"], "offsets below 0"),
        (["--offsets", "a,b"], "--offsets: 'a,b' is not a list of numbers"),
        (["--tokens", "1500"], "--tokens: 1500 is less than two batches"),
        (["--tokens", "100000000"], "training tokens are"),
        (["--settings", "untund"], "did you mean 'untuned'"),
        (["--shape", "cpu-46"], "did you mean"),
    ],
)
def test_wrong_input_is_named_before_anything_is_written(
    app: typer.Typer, corpus: Path, here: Path, arguments: list[str], message: str
) -> None:
    done = basin(app, corpus, *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (here / "runs").exists()

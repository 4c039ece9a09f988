from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import mup_tune


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("text")
    for index in range(60):
        (folder / f"{index:02d}.txt").write_text(f"{index} is followed by {index + 1}. " * 30)
    prepare([folder], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    return folder / "corpus"


@pytest.mark.parametrize(("param", "code"), [("mup", (0, 3)), ("sp", (1,))])
def test_the_exit_code_is_the_verdict(corpus: Path, tmp_path: Path, param: str, code: tuple[int, ...]) -> None:
    sizes = ("--widths", "32,64,128", "--steps", 2, "--seeds", 2, "--corpus", corpus)
    figures = ("--out", tmp_path / "out") if param == "mup" else ()
    done = mup_tune("check", "coordinate", *sizes, "--param", param, *figures, "--json")
    assert done.returncode in code, done.stderr
    data = json.loads(done.stdout)
    assert {"pass": 0, "fail": 1, "inconclusive": 3}[data["verdict"]] == done.returncode
    assert {"site", "of", "predicted", "excess", "verdict", "why"} == set(data["rows"][0])
    if figures:
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "coordinate-width.yaml",
            *(f"coordinate-width-{of}.{suffix}" for of in ("value", "change") for suffix in ("svg", "png")),
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "32,64"], "--widths: 32, 64: at least three different sizes"),
        (["--widths", "32,40,64"], "has to be rounded"),
        (["--widths", "32,x"], "is not a list of sizes"),
        (["--depths", "2,2,4"], "--depths"),
        (["--param", "mu"], "--param: unknown parametrisation 'mu'; did you mean 'mup'"),
        (["--depth-rule", "complete"], "--depth-rule"),
        (["--shape", "cpu-46"], "did you mean 'cpu-64'"),
        (["--corpus", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    done = mup_tune("check", "coordinate", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_inconclusive_check_names_the_command_that_may_decide(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mup_tune.checks import coordinate

    monkeypatch.setattr(coordinate, "overall", lambda rows: "inconclusive")
    sizes = ("--widths", "32,64,128", "--steps", 2, "--seeds", 2, "--corpus", corpus)
    done = mup_tune("check", "coordinate", *sizes)
    assert done.returncode == 3
    said = f"`mup-tune check coordinate --widths 32,64,128 --steps 2 --seeds 4 --corpus {corpus}`"
    assert done.stdout.splitlines()[-1] == f"More seeds may decide it: {said}"


def test_widths_that_are_left_out_are_the_familys_smallest(corpus: Path) -> None:
    given = ("--shape", "cpu-64", "--steps", 2, "--seeds", 1, "--corpus", corpus, "--json")
    assert json.loads(mup_tune("check", "coordinate", *given).stdout)["sizes"] == [32, 64, 128, 256]

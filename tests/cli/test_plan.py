from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import mup_tune

from mup_tune.data.prepare import prepare

PLAN = """
about: A plan of two stages.
proxy: cpu-32
target: cpu-64
data: {corpus: CORPUS}
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 5120, warmup_tokens: 512, decay_tokens: 1280, val_tokens: 640}
stages:
  - {kind: elr_ewd, name: elr, reference: tuned}
  - {kind: confirm, name: claim, against: [tuned], n_seeds: 2}
scales:
  long: {budget: {total_tokens: 2560000}, stages: {claim: {n_seeds: 5}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(PLAN.replace("CORPUS", str(tmp_path / "corpus")))
    return path


def test_json_says_what_a_plan_takes_and_what_follows_from_it(file: Path) -> None:
    data = json.loads(mup_tune("plan", file, "--json").stdout)
    priced = {"gpus", "over", "speeds_of", "speeds_unknown"}
    assert set(data) == {"plan", "scale", "stages", "total", "derived", *priced}
    assert (data["plan"], data["scale"]) == ("two", None)
    elr, claim = data["stages"]
    counted = {"trials", "tokens", "flops", "max_trials", "max_tokens", "max_flops"}
    timed = {"packs", "hours", "gpu_hours", "utilisation"}
    assert set(elr) == {"stage", "kind", "title", *counted, *timed}
    assert data["speeds_unknown"] == ["cpu-32"]
    assert {data["total"][key] for key in timed} == {elr[key] for key in timed} == {None}
    assert [each["stage"] for each in data["stages"]] == ["01-elr", "02-claim"]
    assert (elr["trials"], elr["tokens"]) == (5 * 2, 10 * 5120)
    assert (claim["trials"], claim["max_trials"]) == (2 * 2, 2 * 2)
    assert {key: data["total"][key] for key in counted} == {key: elr[key] + claim[key] for key in counted}
    derived = data["derived"]
    assert (derived["steps"], derived["rows"], derived["warmup_steps"], derived["warmup_share"]) == (40, 4, 4, 0.1)
    assert derived["eta_lambda_T"] == pytest.approx(1.28e-3 * 0.1 * 40)
    assert derived["elr_for_ewd"] ** 2 * 40 == pytest.approx(1)
    assert derived["tokens_per_parameter"] == pytest.approx(5120 / derived["parameters"])
    assert (derived["target"], derived["same_vocabulary"], derived["scales"]) == ("cpu-64", True, ["long"])
    assert derived["seeds"] == [0, 1]
    assert derived["base"]["d_model"] == 32
    assert any("an EWD found there says little" in note for note in derived["notes"])


def test_a_corpus_that_is_not_there_is_said_and_one_that_is_has_its_epochs(file: Path, tmp_path: Path) -> None:
    absent = mup_tune("plan", file)
    assert absent.returncode == 0, absent.stderr
    assert "not prepared yet: make it with `mup-tune data prepare" in " ".join(absent.stdout.split())
    (tmp_path / "text").mkdir()
    for index in range(60):
        (tmp_path / "text" / f"{index:02d}.txt").write_text(f"{index} is followed by {index + 1}. " * 20)
    corpus = prepare([tmp_path / "text"], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    there = json.loads(mup_tune("plan", file, "--scale", "long", "--json").stdout)["derived"]
    assert there["corpora"][0]["prepared"]
    assert there["corpora"][0]["epochs"] == pytest.approx(2_560_000 / corpus.tokens("train"))
    assert any("`sweep` refuses more than 1" in note for note in there["notes"])


def test_a_scale_and_assignments_change_the_forecast(file: Path) -> None:
    long = json.loads(mup_tune("plan", file, "--scale", "long", "--set", "seeds=[3]", "--json").stdout)
    assert [each["trials"] for each in long["stages"]] == [5, 10]
    assert long["stages"][0]["tokens"] == 5 * 2_560_000
    assert long["scale"] == "long"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["falcon-h1"], "did you mean 'falcon_h1'"),
        (["FILE", "--scale", "lon"], "two.yaml: --scale: unknown scale 'lon'; did you mean 'long'?"),
        (["FILE", "--set", "target=falcon"], "two.yaml: target: unknown shape 'falcon'"),
        (["FILE", "--set", "stages.0.kind=elr"], "two.yaml: stages[0].kind: unknown stage kind 'elr'"),
    ],
)
def test_bad_input_exits_2(file: Path, arguments: list[str], message: str) -> None:
    done = mup_tune("plan", *(str(file) if each == "FILE" else each for each in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stated_speed_prices_it_on_any_number_of_devices(file: Path) -> None:
    arguments = ("plan", file, "--speed", 1000, "--gpus", 4, "--price", 2)
    data = json.loads(mup_tune(*arguments, "--json").stdout)
    elr, claim = data["stages"]
    tokens = 5120 + 640 / 3  # of a trial, a third of a token's cost for what only validates
    assert elr["hours"] == pytest.approx(3 * tokens / 1000 / 3600)  # ten trials on four devices
    assert claim["hours"] == pytest.approx(tokens / 1000 / 3600)
    assert data["total"]["hours"] == pytest.approx(elr["hours"] + claim["hours"])
    assert data["total"]["gpu_hours"] == pytest.approx(4 * data["total"]["hours"])
    assert data["total"]["utilisation"] == pytest.approx(14 / 16)
    assert data["total"]["price"] == pytest.approx(2 * data["total"]["gpu_hours"])
    assert [each["gpus"] for each in data["over"]] == [1, 4, 8, 64, 512]
    said = " ".join(mup_tune(*arguments).stdout.split())
    assert "Beyond 8 of them more devices would mostly wait: 2 waves" in said
    assert "no speed is known of cpu-32" in " ".join(mup_tune("plan", file).stdout.split())


def test_strict_refuses_what_a_sweep_would(file: Path, tmp_path: Path) -> None:
    unprepared = mup_tune("plan", file, "--strict")
    assert unprepared.returncode == 2
    assert "no such corpus" in unprepared.stderr
    texts = tmp_path / "texts"
    texts.mkdir()
    for index in range(20):
        (texts / f"{index}.txt").write_text(f"{index} " * 400)
    prepare([texts], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    assert mup_tune("plan", file, "--strict").returncode == 0
    long = mup_tune("plan", file, "--strict", "--scale", "long")
    assert long.returncode == 2
    assert "epochs" in long.stderr


def test_without_a_name_and_in_its_help_the_shipped_plans_are_listed() -> None:
    listed = {each["plan"]: each["about"] for each in json.loads(mup_tune("plan", "--json").stdout)}
    assert {"falcon_h1", "channels", "rope_base", "width_depth", "sensitivity", "quickstart"} <= set(listed)
    assert all(listed.values())
    for arguments in (["plan"], ["plan", "--help"]):
        said = " ".join(mup_tune(*arguments).stdout.split())
        assert all(name in said and about.split(",")[0] in said for name, about in listed.items())


def test_a_forecast_prepares_no_corpus_and_imports_nothing_that_trains(tmp_path: Path) -> None:
    script = """
import sys
from typer.testing import CliRunner
from mup_tune.cli import app
for name in ("falcon_h1", "channels"):
    result = CliRunner().invoke(app, ["plan", name, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert '"prepared": false' in result.output
loaded = [name for name in ("torch", "ray", "pandas", "matplotlib") if name in sys.modules]
assert not loaded, loaded
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()

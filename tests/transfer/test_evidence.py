from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exporting import BETTER, UNCLEAR, WORSE, make_run
from typer import Typer
from typer.testing import CliRunner

from mup_tune.cli import transfer as command
from mup_tune.errors import UserError
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape
from mup_tune.transfer.evidence import check, next_transfer
from mup_tune.transfer.resolve import resolve
from mup_tune.trial import Budget

Facts = tuple[Settings, Budget, Shape]


@pytest.fixture
def facts(tuned: Settings, budget: Budget, proxy: Shape) -> Facts:
    return tuned, budget, proxy


def allowed(run: Path, chosen: str | None = None, force: bool = False, allow_unfinished: bool = False) -> bool:
    evidence = resolve(str(run), chosen).evidence
    assert evidence is not None
    try:
        check(evidence, chosen=chosen is not None, force=force, allow_unfinished=allow_unfinished)
    except UserError:
        return False
    return True


def test_the_verdict_is_the_runs_with_its_interval(tmp_path: Path, facts: Facts) -> None:
    run = make_run(tmp_path / "run", *facts, WORSE)
    evidence = resolve(str(run)).evidence
    assert evidence is not None
    assert (evidence.verdict, evidence.reference, evidence.gain, evidence.seeds) == (
        "worse",
        "ELR-tuned untuned",
        WORSE,
        2,
    )
    assert "−" not in evidence.said
    assert "-20.0 mnat/token, 95 % CI -30.0 … -10.0, 2 fresh seeds (02-confirm)" in evidence.said


@pytest.mark.parametrize("gain", [WORSE, UNCLEAR, None])
def test_what_is_not_confirmed_needs_a_word(gain: Any, tmp_path: Path, facts: Facts) -> None:
    run = make_run(tmp_path / "run", *facts, gain)
    assert not allowed(run)
    assert allowed(run, force=True)
    assert allowed(run, chosen="incumbent")


def test_a_confirmed_run_needs_none_and_an_unfinished_one_does(tmp_path: Path, facts: Facts) -> None:
    assert allowed(make_run(tmp_path / "whole", *facts, BETTER))
    cut = make_run(tmp_path / "cut", *facts, None, complete=False)
    assert not allowed(cut, force=True)
    assert allowed(cut, allow_unfinished=True)  # that it is unconfirmed follows
    worse = make_run(tmp_path / "worse", *facts, WORSE, complete=False)
    assert not allowed(worse, allow_unfinished=True)  # what was disproved stays so


def test_a_confirmation_of_other_settings_confirms_nothing(tmp_path: Path, facts: Facts) -> None:
    later = facts[0].scaled({"elr": 2.0})
    run = make_run(tmp_path / "run", *facts, BETTER, later=later)
    found = resolve(str(run))
    assert found.settings == later
    assert found.evidence is not None
    assert found.evidence.verdict == "unconfirmed"
    assert "other settings" in found.evidence.said


def test_from_takes_the_incumbent_a_stage_a_reference_or_the_best(tmp_path: Path, facts: Facts) -> None:
    tuned, _, proxy = facts
    start = untuned(proxy)
    worse = str(make_run(tmp_path / "worse", *facts, WORSE))
    assert resolve(worse, "incumbent").settings == resolve(worse, "01-micro").settings == tuned
    assert resolve(worse, "ELR-tuned untuned").settings == resolve(worse, "best").settings == start
    assert resolve(str(make_run(tmp_path / "better", *facts, BETTER)), "best").settings == tuned
    with pytest.raises(UserError, match=r"--from: unknown settings '01-micrp'; did you mean '01-micro'"):
        resolve(worse, "01-micrp")
    with pytest.raises(UserError, match="'best' compares losses on fresh seeds"):
        resolve(str(make_run(tmp_path / "none", *facts, None)), "best")
    with pytest.raises(UserError, match=r"--from.*is no run folder"):
        resolve("falcon-h1-published", "best")


def test_a_sweep_recommends_what_its_evidence_allows(tmp_path: Path, facts: Facts) -> None:
    said = {}
    for name, gain in (("better", BETTER), ("worse", WORSE), ("none", None)):
        evidence = resolve(str(make_run(tmp_path / name, *facts, gain))).evidence
        assert evidence is not None
        said[name] = next_transfer(evidence, "mup-tune transfer RUN")
    assert said["better"] == "`mup-tune transfer RUN`"
    assert said["worse"].startswith("`mup-tune transfer RUN --from best`")
    assert "worse: the 95 % CI lies below 0" in said["worse"]
    assert said["none"].startswith("`mup-tune transfer RUN --force`")


def test_the_command_refuses_and_then_says_what_it_was_made_to_do(tmp_path: Path, facts: Facts) -> None:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    run = make_run(tmp_path / "run", *facts, WORSE)
    line = ["transfer", str(run), "--target", "cpu-64", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, line)
    assert isinstance(refused.exception, UserError)
    assert "--from best" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*line, "--force", "--format", "json"])
    assert done.exit_code == 0, done.output
    assert "warning: the run does not confirm its incumbent: worse" in done.output
    readme, data = (tmp_path / "out" / name for name in ("README.md", "transfer.json"))
    assert "The run's verdict on its incumbent: worse: the 95 % CI lies below 0" in readme.read_text()
    assert '"verdict": "worse"' in data.read_text()

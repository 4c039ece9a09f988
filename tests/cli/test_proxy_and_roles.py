from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import mup_tune as run

from mup_tune.settings import falcon_h1_published
from mup_tune.version import VERSION

HEAVY = ("torch", "ray", "transformers", "optuna", "pandas", "matplotlib", "numpy", "scipy")


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from mup_tune.cli import app
runner = CliRunner()
commands = [command.callback.__name__ for command in app.registered_commands]
groups = [["proxy"], ["proxy", "show"], ["proxy", "make"], ["data"], ["data", "prepare"]]
lines = [[*line, "--help"] for line in [[], *groups, *([c] for c in commands)]]
for line in [["--help"], ["--version"], *lines]:
    result = runner.invoke(app, line)
    assert result.exit_code == 0, (line, result.output)
    if line == ["--help"]:  # a command's options are parsed with pydantic, and that of `plan` reads the shipped ones
        assert not {"pydantic", "yaml"} & sys.modules.keys()
assert len(commands) >= 6, commands
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"mup-tune {VERSION}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mup-tune st", "status"),
        ("mup-tune plan falc", "falcon_h1"),
        ("mup-tune roles --shape cpu-6", "cpu-64"),
        ("mup-tune sweep quickstart --executor in", "inline"),
    ],
)
def test_a_shell_is_offered_commands_and_shipped_names(
    typed: str, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MUP_TUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    done = run()
    assert (done.returncode, done.stdout.split()) == (0, [offered])


def test_multipliers_json_has_exactly_35_rows_with_the_promised_keys() -> None:
    rows = json.loads(run("multipliers", "--shape", "falcon-h1-34b", "--json").stdout)
    assert len(rows) == 35
    assert set(rows[0]) == {"name", "kind", "base", "value", "rule", "source"}
    lm_head = next(row for row in rows if row["name"] == "lm_head")
    assert (lm_head["base"], lm_head["value"]) == (2**-5, 40 / 5120)


def test_predictions_are_marked_where_a_user_reads_multipliers() -> None:
    for arguments in (["multipliers", "--shape", "falcon-h1-1.5b"], ["proxy", "show", "falcon-h1-1.5b"]):
        assert "predictions of the rules" in " ".join(run(*arguments).stdout.split())
    assert "predictions" not in run("multipliers", "--shape", "falcon-h1-7b").stdout


def test_the_depth_rule_shows_in_the_rules(tmp_path: Path) -> None:
    settings = tmp_path / "deep.yaml"
    settings.write_text(falcon_h1_published().model_copy(update={"depth_rule": "completep"}).to_yaml())
    rows = json.loads(run("multipliers", "--shape", "falcon-h1-7b", "--settings", str(settings), "--json").stdout)
    (out,) = (row for row in rows if row["name"] == "ssm_out")
    assert out["rule"] == "d_ssm₀/d_ssm · L₀/L"
    assert out["value"] == pytest.approx(2**8.5 / 3072 * 66 / 44)
    assert sum("L₀" in row["rule"] for row in rows) == 3


def test_roles_json_has_the_promised_keys_and_the_fixed_factors() -> None:
    rows = json.loads(run("roles", "--shape", "falcon-h1-0.5b", "--settings", "falcon-h1-published", "--json").stdout)
    keys = {"parameter", "slice", "shape", "init_std", "multiplier", "lr", "weight_decay", "eps", "rule"}
    assert keys <= set(rows[0])
    assert any("ssm_in ∝ d₀/d" in row["rule"] for row in rows)
    assert any("attention_in" in row["rule"] for row in rows)


@pytest.mark.parametrize("shape", ["cpu-64", "falcon-h1-34b"])
@pytest.mark.parametrize("command", ["roles", "multipliers"])
def test_tables_fit_80_columns_and_split_no_number(command: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = (command, "--shape", shape, "--settings", "falcon-h1-published")
    lines, rows = run(*asked).stdout.splitlines(), json.loads(run(*asked, "--json").stdout)
    assert max(map(len, lines)) <= 80
    key = "init_std" if command == "roles" else "value"
    words = {word for line in lines for word in line.split()}
    assert {f"{row[key]:.5g}" for row in rows if row[key] is not None} <= words
    assert "arXiv" not in " ".join(lines)


@pytest.mark.parametrize(("command", "last"), [("roles", "rule"), ("multipliers", "source")])
def test_wide_shows_every_column_a_line_a_row(command: str, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = (command, "--shape", "falcon-h1-34b", "--settings", "falcon-h1-published")
    lines = [line.rstrip() for line in run(*asked, "--wide").stdout.splitlines()]
    for row in json.loads(run(*asked, "--json").stdout):
        assert any(line.endswith(row[last]) and row.get("parameter", row.get("name")) in line for line in lines)


def test_proxy_make_writes_a_shape_that_show_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "small.yaml"
    made = run("proxy", "make", "--target", "falcon-h1-0.5b", "--width", "64", "--depth", "2", "--out", str(out))
    assert made.returncode == 0
    assert "halved" in made.stdout
    shown = json.loads(run("proxy", "show", str(out), "--json").stdout)
    assert (shown["d_model"], shown["n_layers"]) == (64, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["proxy", "show", "cpu-46"], "did you mean 'cpu-64'"),
        (["roles", "--shape", "cpu-64", "--settings", "untund"], "did you mean 'untuned'"),
        (["multipliers", "--settings", "untuned"], "--shape"),
        (["proxy", "make", "--target", "cpu-64", "--width", "12", "--depth", "1", "--out", "x.yaml"], "--width"),
        (["proxy", "make", "--target", "cpu-64", "--width", "32", "--depth", "1", "--out", "/nowhere/x.yaml"], "--out"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr

"""A run in the terminal: no line is wider than it, and no sentence breaks inside a number or an interval."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from synthetic_run import COMPARISONS, SHAPE, full_run, synthetic_findings, write_run
from test_validation_report import SHOWN, WORSE, at, found
from typer.testing import CliRunner

from mup_tune.cli import app
from mup_tune.cli.output import Terminal
from mup_tune.report.gains import headline_of
from mup_tune.report.terminal import ASCII, BLOCKS, Ink, chart, fitted, told
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval

LONG = "a reference with 配置 and a name that no narrow terminal has room for in a line of its own"


def lines(path: Path, width: int = 80, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return [line.plain for line in told(load_run(path), Terminal(file=file, width=width))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal_or_80_columns(run: Path, width: int, encoding: str) -> None:
    shown = lines(run, width, encoding)
    assert len(shown) > 20
    assert max(map(cell_len, shown)) <= min(width, 80)


def test_no_line_is_wider_with_names_that_are_and_with_wide_characters(tmp_path: Path) -> None:
    named = tuple(each.model_copy(update={"reference": LONG + each.reference * 20}) for each in COMPARISONS)
    path = write_run(tmp_path / "run", synthetic_findings((0, 1, 2), named), {})
    shown = lines(path)
    assert max(map(cell_len, shown)) <= 80
    assert any("配置" in line for line in shown)


def test_the_answer_stands_last_with_its_numbers(run: Path) -> None:
    shown = lines(run)
    place = next(at for at, line in enumerate(shown) if line.startswith("Confirmed: "))
    assert place > shown.index("03-confirm Confirmation on fresh seeds")
    rest = shown[place:]
    assert (
        " ".join(" ".join(rest[:2]).split())
        == "Confirmed: 45.2 mnat/token lower loss than the best that learning rate alone can do"
    )
    assert rest[2] == "Gain +45.2, 95 % CI +38.1 to +52.3 mnat/token, over 3 seeds."
    assert "Gain over elr-tuned in mnat/token, with its 95 % CI" in rest
    bars = [line for line in rest if line.startswith("  the proxy")]
    assert [line.split()[2] for line in bars] == ["+45.2", "+112.3"]
    assert bars[1].count(BLOCKS.sure) > 2 * bars[0].count(BLOCKS.sure) > 10


def test_no_line_breaks_inside_an_interval_or_before_a_unit(run: Path) -> None:
    shown = lines(run)
    whole = " ".join(line.strip() for line in shown)
    assert whole.count("(95 % CI") == sum(len(re.findall(r"\(95 % CI [^()]*\)", line)) for line in shown) > 3
    assert not any(re.match(r"\s*(×|%|mnat|nats)", line) for line in shown)


def test_larger_shapes_have_bars_below_the_proxys(tmp_path: Path) -> None:
    wide = at(2, WORSE)
    path = write_run(tmp_path / "run", (found(at(1, SHOWN), wide),), {}, stages=("validate",))
    shown = lines(path)
    titled = shown.index("Gain over elr-tuned in mnat/token, with its 95 % CI")
    proxy, larger = shown[titled + 1 : titled + 3]
    assert proxy.startswith("  the proxy  +41.2  +30.0 to +50.0  ")
    assert larger.startswith(f"  {wide.shape.size:9}  −30.0  −40.0 to −20.0  ")
    assert proxy.index(BLOCKS.zero) == larger.index(BLOCKS.zero)


@pytest.mark.parametrize("ink", [BLOCKS, ASCII], ids=["blocks", "ascii"])
def test_bars_tell_what_is_gained_at_least_from_the_interval(ink: Ink) -> None:
    gains = [Interval(0.06, 0.04, 0.08), Interval(0.0, -0.02, 0.02), Interval(-0.02, -0.02, -0.01)]
    drawn = chart([(name, gain, "") for name, gain in zip("abc", gains, strict=True)], 80, ink)
    start = drawn[1].index(ink.ci)  # the second row's interval and the third's value lie at the scale's low end
    first, second, third = (line[start:] for line in drawn)
    zero = first.index(ink.zero)
    assert third.index(ink.zero) == zero
    # The scale reaches from −20 to +80: of its columns a fifth lies below zero, two fifths are sure.
    assert len(first) == pytest.approx(5 * zero, abs=3)
    assert first.count(ink.sure) == pytest.approx(2 * zero, abs=1)
    assert first.count(ink.ci) + 1 == pytest.approx(2 * zero, abs=1)
    assert ink.sure not in second  # nothing is sure where the CI includes 0
    assert third.startswith(ink.value)
    assert third.index(ink.sure) == pytest.approx(zero / 2, abs=1)


def test_one_gain_of_nothing_is_drawn_too() -> None:
    (drawn,) = chart([("a", Interval(0.0, 0.0, 0.0), "")], 60, BLOCKS)
    assert drawn.endswith(BLOCKS.value)


def test_fitted_counts_columns_and_not_characters() -> None:
    assert [cell_len(fitted(text, 7)) for text in ("a", "配置配置配置", "exactly", "more than")] == [7] * 4


def test_the_command_prints_it_and_writes_nothing(run: Path) -> None:
    before = sorted(run.rglob("*"))
    result = CliRunner().invoke(app, ["report", str(run), "--terminal"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "Confirmed: 45.2 mnat/token lower loss than the best that learning rate alone" in result.output
    assert max(map(cell_len, result.output.splitlines())) <= 80
    assert sorted(run.rglob("*")) == before


def test_a_run_without_findings_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", (), {"untuned": untuned(SHAPE)})
    assert lines(path) == ["No findings: no stage of this run has concluded", "There is nothing to claim from it."]


def test_status_says_what_heads_the_page(run: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["verdict"], told["below"]) == tuple(headline_of(load_run(run)))
    assert "the best that learning rate alone can do" in told["verdict"]

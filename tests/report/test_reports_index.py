"""The index of a folder of reports: what it lists, when it is written, and that it needs no script."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic_run import SHAPE, full_run, synthetic_findings, write_run
from test_report_page import Page
from typer.testing import CliRunner

from mup_tune.cli import app
from mup_tune.errors import UserError
from mup_tune.report.formats import si
from mup_tune.report.index import entries, has_index, index_page, write_index
from mup_tune.report.summary import summary_of
from mup_tune.run.view import load_run

NAMED = '"><script>alert(1) & %2e?#'


def report(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    full_run(folder / "one")
    write_run(folder / "two", synthetic_findings((0, 1, 2), ()), {}, "falcon_h1", trained=False)
    return folder


def test_reports_in_a_folder_called_reports_are_listed_as_they_come(runs: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"  # made with the first of them
    assert report(runs / "one", "--out", reports / "one").strip() == str(reports / "one" / "index.html")
    assert Page((reports / "index.html").read_text()).text("h1") == ["1 report"]
    report(runs / "two", "--out", reports / NAMED)
    report(runs / "one", runs / "two", "--out", reports / "both")
    text = (reports / "index.html").read_text()
    parsed = Page(text)
    assert parsed.text("h1") == ["3 reports"]
    assert text.count("<script") == 1  # ours
    (table,) = parsed.tables
    found = [[" ".join(cell.split()) for cell in row] for row in table[1:]]
    (one,) = (row for row in found if row[0].startswith("oneConfirmed: 45.2 mnat/token lower loss than the best that"))
    assert one[1:3] == ["+45.2+38.1 to +52.3", "–"]
    assert one[4:7] == ["quickstart", f"cpu-64{si(SHAPE.parameters())} parameters", "python-stdlib"]
    (two,) = (row for row in found if row[0].startswith(NAMED))
    assert "not finished" in two[0]
    assert "Interrupted after 2 of 3 stages" in two[0]
    links = {unquote(attrs["href"]) for tag, attrs in parsed.tags if tag == "a"}
    assert links == {f"{name}/index.html" for name in ("one", NAMED, "both")}
    assert all((reports / link).is_file() for link in links)
    assert not any(key.startswith("on") or key == "src" for _, attrs in parsed.tags for key in attrs)


def test_a_folder_with_an_index_keeps_it_up_to_date_and_others_get_none(runs: Path, tmp_path: Path) -> None:
    plain, listed = tmp_path / "plain", tmp_path / "listed"
    plain.mkdir()
    listed.mkdir()
    report(runs / "one", "--out", plain / "one")
    assert not (plain / "index.html").exists()
    (listed / "index.html").write_text(index_page("listed", []))
    report(runs / "one", "--out", listed / "one")
    assert "1 report" in (listed / "index.html").read_text()


def test_somebody_elses_index_stays(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    home = tmp_path / "reports" / "index.html"
    home.write_text("my home page")
    assert not has_index(home.parent)
    assert write_index(home.parent) is None
    assert home.read_text() == "my home page"


def test_what_is_no_report_or_broken_is_not_listed(runs: Path, tmp_path: Path) -> None:
    report(runs / "one", "--out", tmp_path / "good")
    whole = json.loads((tmp_path / "good" / "summary.json").read_text())
    for name, content in {
        "text": "not json",
        "foreign": "{}",
        "wrong": json.dumps(whole | {"trials": "many"}),
        "deep": "[" * 100_000,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(content)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "summary.json").write_text(json.dumps(whole))
    assert [each.name for each in entries(tmp_path)] == ["good"]


def test_the_newest_report_comes_first_and_a_live_one_says_so(runs: Path, tmp_path: Path) -> None:
    summary = summary_of(load_run(runs / "one"))
    for name, date, state in (("old", "2020-01-02", "complete"), ("new", "2031-01-02", "live")):
        (tmp_path / name).mkdir()
        dated = summary.model_copy(update={"date": f"{date}T00:00:00+00:00", "state": state})
        (tmp_path / name / "summary.json").write_text(dated.text())
    parsed = Page(index_page("reports", entries(tmp_path)))
    assert [row[0][:3] for row in parsed.tables[0][1:]] == ["new", "old"]
    assert parsed.text("span") == ["in progress"]
    assert [row[3] for row in parsed.tables[0][1:]] == ["2031-01-02", "2020-01-02"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one", "two"], "several runs need a folder"),
        (["one", "two", "--terminal"], "--terminal: shows one run"),
        (["one", "--terminal", "--out", "x"], "--terminal: shows one run"),
        (["one", "one", "--out", "both"], "is given twice"),
        (["one", "--out", "missing/there/report"], "does not exist"),
    ],
)
def test_what_cannot_be_written_is_told(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [runs / each if each in ("one", "two") else each for each in arguments]
    with pytest.raises(UserError, match=said):
        report(*named)
    assert list(tmp_path.iterdir()) == []


def test_a_page_alone_goes_where_it_is_told(runs: Path, tmp_path: Path) -> None:
    report(runs / "one", runs / "two", "--out", tmp_path / "both.html")
    assert [path.name for path in tmp_path.iterdir()] == ["both.html"]
    assert "2 runs side by side" in (tmp_path / "both.html").read_text()

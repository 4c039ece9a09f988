"""Runs side by side: a known difference is found, losses of two texts are not set against one another."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import CORPUS, SHAPE, Landscape, comparison, confirmation, finding, token_gain, write_run
from test_report_page import Page

from mup_tune.errors import UserError
from mup_tune.report.comparison import compared
from mup_tune.report.comparison_page import comparison_files
from mup_tune.report.comparison_words import headline
from mup_tune.report.summary import Summary
from mup_tune.run.view import RunView, load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval

PROSE = {"name": "prose", "hash": "0123456789abcdef"}
NARROW, WIDE = Interval(0.030, 0.020, 0.040), Interval(0.070, 0.040, 0.100)


def run(
    path: Path,
    gain: Interval | None = NARROW,
    elr: float = 0.5,
    curvature: float = 0.08,
    reference: str = "elr-tuned",
    corpus: dict[str, str] = CORPUS,
    tokens: float | None = None,
    name: str = "quickstart",
) -> RunView:
    first = finding("01-elr", "elr_ewd", "ELR", untuned(SHAPE), (Landscape("elr", elr, curvature, "moved"),), (0, 1, 2))
    found = (first,)
    if gain is not None:
        saved = token_gain(reference, gain=tokens) if tokens else None
        found += (confirmation((comparison(reference, gain, (10, 11, 12)),), first.after, tokens=saved),)
    return load_run(write_run(path, found, {}, name, stages=("elr_ewd", "confirm"), corpus=corpus))


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_a_known_difference_of_gains_has_its_interval(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a"), run(tmp_path / "b", WIDE)])
    ((row, *others), half) = of.gains, (0.01**2 + 0.03**2) ** 0.5
    assert others == []
    assert (row.place, row.reference, row.seeds) == ("the proxy", "elr-tuned", (3, 3))
    assert row.cells[0].difference is None
    apart = row.cells[1].difference
    assert apart is not None
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.04, 0.04 - half, 0.04 + half))
    assert headline(of).title == "b is ahead in gain over elr-tuned: +70.0 mnat/token against +30.0 mnat/token (a)"
    assert headline(of).below == "Gain in mnat/token less that of a: b +40.0 (95 % CI +8.4 to +71.6)."
    table = rows(comparison_files(of)["tables/gains.csv"])
    assert [(each["run"], each["gain"], each["difference"]) for each in table] == [
        ("a", "0.03", ""),
        ("b", "0.07", str(0.07 - 0.03)),
    ]


def test_a_difference_within_the_noise_is_none(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a"), run(tmp_path / "b", Interval(0.045, 0.030, 0.060))])
    assert headline(of).title == (
        "No difference shown in gain over elr-tuned: +45.0 mnat/token (b), +30.0 mnat/token (a)"
    )


def test_tokens_lead_where_both_runs_have_them(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a", tokens=0.02), run(tmp_path / "b", WIDE, tokens=0.06)])
    (row,) = of.gains
    one, other = row.saved
    ratio = row.ratios[1]
    assert one is not None
    assert other is not None
    assert ratio is not None
    assert ratio.value == pytest.approx(other.factor.value / one.factor.value)
    assert ratio.low < ratio.value < ratio.high
    assert headline(of).title.startswith("b is ahead in tokens saved over elr-tuned: ")
    cells = [" ".join(cell.split()) for each in Page(page(of)).tables[0] for cell in each]
    assert f"{ratio.value:.2f} × {ratio.low:.2f} × to {ratio.high:.2f} ×" in cells


def test_a_factor_without_an_upper_end_has_no_ratio(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a", tokens=0.02), run(tmp_path / "b", WIDE, tokens=0.2)])
    assert of.gains[0].saved[1] is not None
    assert of.gains[0].saved[1].beyond
    assert of.gains[0].ratios == (None, None)
    ends = [each["tokens_factor_high"] for each in rows(comparison_files(of)["tables/gains.csv"])]
    assert ends[0] != ""
    assert ends[1] == ""


def page(of: object) -> str:
    return comparison_files(of)["index.html"].decode()  # type: ignore[arg-type]


def test_settings_that_differ_come_first_with_log2_differences(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a", elr=0.5), run(tmp_path / "b", elr=1.25), run(tmp_path / "c", elr=-0.25)])
    first, *others = of.settings
    assert first.name == "elr"
    assert first.log2[1:] == pytest.approx((0.75, -0.75))
    assert not any(row.differs for row in others)
    tables = Page(page(of)).tables
    differing = next(table for table in tables if table[0][0] == "setting")
    assert [row[0] for row in differing[1:]] == ["elr"]
    assert differing[1][-2:] == ["+0.75", "−0.75"]
    assert differing[0][-2:] == ["log2 b / a", "log2 c / a"]
    alike = [table for table in tables if table[0][0] == "setting"][1]
    assert len(alike) == 1 + 37


def test_sensitivities_stand_side_by_side(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a", curvature=0.08), run(tmp_path / "b", curvature=0.02)])
    ((axis, cells),) = of.sensitivities
    assert axis == "elr"
    apart = cells[1].difference
    assert apart is not None
    assert apart.value == pytest.approx(-0.06)
    assert apart.high - apart.value == pytest.approx((0.008**2 + 0.002**2) ** 0.5)


def test_losses_are_left_out_where_texts_differ_and_it_says_why(tmp_path: Path) -> None:
    same, other = run(tmp_path / "a"), run(tmp_path / "b", corpus=PROSE)
    assert compared([same, run(tmp_path / "c")]).losses_compare
    of = compared([same, other])
    assert not of.losses_compare
    made = comparison_files(of)
    for name in ("index.html", "report.md"):
        assert "a lower loss may only say that a text is easier" in made[name].decode()
    assert "1.8427" not in made["index.html"].decode()  # the mean loss of either
    corpora = {tuple(each.values())[2:] for each in rows(made["tables/facts.csv"]) if each["term"] == "corpus"}
    assert corpora == {("python-stdlib", "prose")}


def test_runs_without_a_gain_or_a_shared_reference_still_compare(tmp_path: Path) -> None:
    of = compared([run(tmp_path / "a", None), run(tmp_path / "b", reference="published"), run(tmp_path / "c")])
    assert headline(of).title == "3 runs: no two of them measured a gain over one reference"
    assert {row.reference for row in of.gains} == {"published", "elr-tuned"}
    nothing = compared([run(tmp_path / "d", None), run(tmp_path / "e", None)])
    assert "None of these runs has measured a gain" in page(nothing)


def test_names_are_folders_names_as_far_as_they_tell_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    runs = [run(tmp_path / "x" / "run"), run(tmp_path / "y" / "run")]
    assert compared(runs).names == ("x/run", "y/run")
    with pytest.raises(UserError, match="is given twice"):
        compared([runs[0], runs[0]])


def test_the_same_runs_give_the_same_bytes_and_a_page_that_fetches_nothing(tmp_path: Path) -> None:
    paths = [run(tmp_path / "a").path, run(tmp_path / "b", WIDE, corpus=PROSE).path]
    made, again = (comparison_files(compared([load_run(path) for path in paths])) for _ in range(2))
    assert made == again
    parsed = Page(made["index.html"].decode())
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
    assert all(target[1:] in ids if target[0] == "#" else target in made for target in targets)
    assert not any({"src", "srcset", "onclick"} & set(attrs) for _, attrs in parsed.tags)
    assert "url(http" not in made["index.html"].decode()
    summary = Summary.model_validate_json(made["summary.json"])
    assert (summary.kind, summary.corpus, summary.runs) == ("comparison", "python-stdlib, prose", ("a", "b"))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = '"><img src=x onerror=1>'
    one = run(tmp_path / "a", reference=name, name=name)
    other = run(tmp_path / "b", WIDE, reference=name, name="kind", corpus={"name": name, "hash": "1" * 16})
    made = comparison_files(compared([replace(one, path=tmp_path / name), replace(other, path=tmp_path / "setting")]))
    parsed = Page(made["index.html"].decode())
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"img", "script"})
    assert not any(key.startswith("on") for _, attrs in parsed.tags for key in attrs)
    assert "<img" not in made["report.md"].decode().replace("\\<img", "")
    # A run that is called like a column takes none of its place.
    assert {each["setting"] for each in rows(made["tables/settings.csv"])} >= {"elr", "ewd"}

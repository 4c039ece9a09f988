"""The basin section of the page: the numbers of the finding, the verdicts, and what the figures draw."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_run import SHAPE, write_run
from test_report_page import Page

from mup_tune.findings import Finding, Point
from mup_tune.findings.basins import Basin, Basins, BasinSize
from mup_tune.report.figures.basins import best_losses, panels
from mup_tune.report.page import render
from mup_tune.report.parts.basins import leading
from mup_tune.run.view import load_run
from mup_tune.settings import ELR_0, untuned
from mup_tune.shape import scaled
from mup_tune.stats import Interval, Parabola

WIDTHS = (32, 64, 128)
NO_FIT = "no parabola fits: too flat, too noisy or too close to divergence"


def size(width: int, optimum: float, floor: float, lost: bool = False, known: bool = True) -> BasinSize:
    shape = scaled(SHAPE, width)
    points = tuple(
        Point(
            offset=x,
            value=ELR_0 * 2**x,
            losses={
                seed: None if lost and x == 2 and seed == 1 else floor + 0.03 * (x - optimum) ** 2 + 0.004 * seed
                for seed in (0, 1, 2)
            },
        )
        for x in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
    )
    around = Interval(optimum, optimum - 0.11, optimum + 0.12)
    curvature = Interval(0.06, 0.05, 0.07)
    return BasinSize(
        label=f"d{width}",
        d_model=width,
        n_layers=2,
        parameters=shape.parameters(),
        points=points,
        fit=Parabola(around, floor + 0.004, curvature, points_used=6, edge=False) if known else None,
        optimum=around if known else None,
        drift=Interval(optimum, optimum - 0.2, optimum + 0.3) if width > 32 and known else None,
        regret=Interval(0.0123, 0.0101, 0.0145) if width > 32 and known else None,
        best_offset=round(optimum),
        no_optimum=None if known else "no fit",
    )


def basin(param: str, drift: float, verdict: str, **fields: bool) -> Basin:
    sizes = tuple(size(width, 0.0 - drift * step, 2.5 - 0.1 * step, **fields) for step, width in enumerate(WIDTHS))
    return Basin(param=param, hp="elr", sizes=sizes, verdict=verdict)


BOTH = (basin("mup", 0.0, "pass"), basin("sp", 1.0, "fail", lost=True))


def written(path: Path, basins: tuple[Basin, ...]) -> Page:
    start = untuned(SHAPE)
    finding = Finding(
        stage="01-basin",
        kind="basin",
        title="Basin of elr at widths 32, 64, 128",
        before=start,
        after=start,
        on_path=False,
        result=Basins(basins=basins, comparisons=(), total_tokens=409_600, steps=200),
    )
    return Page(render(load_run(write_run(path, (finding,), {}, name="basin-elr", stages=("basin",)))))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(tmp_path_factory.mktemp("runs") / "basin", BOTH)


def test_the_table_holds_every_number(page: Page) -> None:
    rows = {(row[0], row[1]): row[2:] for row in page.row("mup") + page.row("sp")}
    assert len(rows) == 6
    parameters = f"{scaled(SHAPE, 128).parameters():,}"
    # log2 of ELR_0 is -6.47; the sizes' optima lie one step apart under SP.
    drift, regret = "−2.00 −2.20 to −1.70", "+12.3 +10.1 to +14.5"
    assert rows["sp", "d128"] == [parameters, "−8.47 −8.58 to −8.35", drift, regret, "2.3040", ""]
    assert rows["mup", "d32"][1:] == ["−6.47 −6.58 to −6.35", "–", "–", "2.5040", ""]


def test_headline_and_verdicts_are_those_of_mup(page: Page) -> None:
    assert page.text("h1") == ["Transfers: elr under mup"]
    text = " ".join(page.text("li"))
    assert "✓ pass" in text
    assert "✕ fail" in text
    told = "he optimum of elr moves by {0} log2 (95 % CI {1} … {2}) from d32 to d128, {3} ±0.5."
    mup, sp = told.format("0.00", "−0.20", "+0.30", "inside"), told.format("−2.00", "−2.20", "−1.70", "wholly outside")
    assert f"T{mup} sp: fail: t{sp}" in page.text("p")
    assert any("same 409,600 tokens" in each for each in page.text("p"))


def test_what_is_missing_reads_as_a_dash_with_its_reason(tmp_path: Path) -> None:
    parsed = written(tmp_path / "run", (basin("sp", 0.0, "inconclusive", known=False),))
    assert parsed.text("h1") == ["Transfer not shown: elr under sp"]
    assert parsed.row("sp")[2][3:] == ["–", "–", "–", "2.3040", NO_FIT]


def test_figures_draw_a_labelled_line_a_size_and_the_optimum_with_its_interval() -> None:
    text = panels(BOTH, "p")
    labels = re.findall(r">(d\d+)</text>", text)
    assert sorted(labels) == sorted([f"d{width}" for width in WIDTHS] * 2)
    assert "sp: loss against log2 elr at 3 sizes, optima d32 −6.47, d64 −7.47, d128 −8.47" in text
    assert "stroke-opacity" in text  # sizes are shades of one ink
    assert panels(BOTH, "p") == text
    assert not re.search("#0[1-7]0b0c", text)  # every stand-in ink was painted
    unknown = panels((basin("mup", 0.0, "inconclusive", known=False),), "p")
    assert unknown.count("<use") < panels(BOTH[:1], "p").count("<use")
    assert ">mup</text>" in best_losses(BOTH, "b")
    assert ">sp</text>" in best_losses(BOTH, "b")


def test_a_family_that_diverges_everywhere_still_has_a_page(tmp_path: Path) -> None:
    gone = tuple(
        each.model_copy(
            update={
                "points": tuple(p.model_copy(update={"losses": {0: None, 1: None}}) for p in each.points),
                "fit": None,
                "optimum": None,
                "drift": None,
                "regret": None,
                "best_offset": None,
                "no_optimum": "every point diverged",
            }
        )
        for each in BOTH[0].sizes
    )
    dead = BOTH[0].model_copy(update={"sizes": gone, "verdict": "inconclusive"})
    parsed = written(tmp_path / "run", (dead,))
    assert parsed.row("mup")[0][3:] == ["–", "–", "–", "–", "every point diverged"]
    assert "At d32 every point diverged." in parsed.text("p")


def test_mup_leads() -> None:
    assert leading(BOTH[::-1]).param == "mup"
    assert leading(BOTH[1:]).param == "sp"

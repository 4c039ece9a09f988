"""The figure of the plane of ELR and EWD: what it draws follows the pairs and the fit."""

from __future__ import annotations

import re
from math import log2

import pytest
from synthetic_run import SHAPE, write_run
from test_report_page import Page

from mup_tune.findings import AxisFinding, Finding, Point
from mup_tune.findings.baselines import BaselineSet, TunedBaseline
from mup_tune.findings.global_axes import GlobalAxes, Place, Plane
from mup_tune.report import words
from mup_tune.report.figures.planes import Chart, number, plane_figure
from mup_tune.report.page import render
from mup_tune.run.view import load_run
from mup_tune.settings import Settings, untuned
from mup_tune.stats import Losses
from mup_tune.stats.bowl import fit_bowl

START = untuned(SHAPE)
OPTIMUM = (0.7, -0.4)
PAIRS = [(x, y) for x in (-1.0, 0.0, 1.0, 2.0) for y in (-2.0, -1.0, 0.0, 1.0)]
EWD_FLAT = (0.0, 0.0)  # curvature along EWD, and with ELR


def plane(pairs=PAIRS, bends=(0.1, -0.06), lost: dict[tuple[float, float], int] | None = None) -> Plane:
    """A ridge along ELR = EWD about OPTIMUM over a floor of 2; ``lost``: how many of two seeds diverged."""
    losses: list[Losses] = []
    for index, (x, y) in enumerate(pairs):
        u, v = x - OPTIMUM[0], y - OPTIMUM[1]
        loss = 2 + (0.12 * u**2 + bends[0] * v**2 + 2 * bends[1] * u * v) / 2
        gone = (lost or {}).get((x, y), 0)
        noise = 0.002 * (-1) ** index * (index % 3 - 0.5)
        losses.append({seed: None if seed < gone else loss + noise * (-1) ** seed for seed in range(2)})
    places = tuple(Place(elr=x, ewd=y, losses=each) for (x, y), each in zip(pairs, losses, strict=True))
    return Plane(places=places, fit=fit_bowl(pairs, losses))


def result(found: Plane | None, moved: tuple[float, float] = (0.5, -0.5), before: Settings = START) -> GlobalAxes:
    axes = tuple(
        AxisFinding(
            axis=axis,
            before=before.value(axis),
            after=before.value(axis) * 2.0**by,
            points=tuple(
                Point(offset=x, value=before.value(axis) * 2.0**x, losses={0: 2.0 + x * x}) for x in (-1.0, 0.0, 1.0)
            ),
            decision="moved" if by else "kept",
        )
        for axis, by in zip(("elr", "ewd"), moved, strict=True)
    )
    return GlobalAxes(axes=axes, eta_lambda_T=2.0, steps=100, bowl=found)


def chart(found: Plane, moved: tuple[float, float] = (0.5, -0.5)) -> Chart:
    made = Chart.of(result(found, moved))
    assert made is not None
    return made


def marks(svg: str) -> dict[str, tuple[float, float]]:
    """Where each named mark stands in the figure, (x, y) with y downwards."""
    found = re.findall(
        r'<g id="a-plane-(pair\d+|optimum|start|end)">.*?<use [^>]*?x="([\d.-]+)" y="([\d.-]+)"', svg, re.DOTALL
    )
    return {name: (float(x), float(y)) for name, x, y in found}


def place_of(svg: str, name: str) -> tuple[float, float]:
    """(ELR, EWD) of a mark in log2, read off the figure by the first and the last pair."""
    at = marks(svg)
    first, last = at["pair0"], at[f"pair{len(PAIRS) - 1}"]
    shares = [(at[name][side] - first[side]) / (last[side] - first[side]) for side in (0, 1)]
    x, y = (PAIRS[0][side] + shares[side] * (PAIRS[-1][side] - PAIRS[0][side]) for side in (0, 1))
    return x, y


@pytest.fixture(scope="module")
def drawn() -> tuple[Chart, str]:
    """A plane with a bowl and one pair of which all seeds diverged, as it is drawn."""
    made = chart(plane(lost={(2.0, 1.0): 2}))
    assert made.bowl is not None
    return made, plane_figure(made, "a-plane")


def test_every_pair_is_a_mark_with_its_loss_above_the_floor(drawn) -> None:
    made, svg = drawn
    assert sum(name.startswith("pair") for name in marks(svg)) == len(PAIRS)
    labels = re.findall(r">([−\d.]+)</text>", svg)
    for excess, (x, y) in zip(made.excesses[:-1], PAIRS[:-1], strict=True):
        u, v = x - OPTIMUM[0], y - OPTIMUM[1]
        assert excess == pytest.approx(500 * (0.12 * u**2 + 0.1 * v**2 - 0.12 * u * v), abs=2)
        assert number(excess) in labels


def test_the_marks_stand_where_the_fit_and_the_stage_put_them(drawn) -> None:
    made, svg = drawn
    assert place_of(svg, "optimum") == pytest.approx((made.bowl.x.value, made.bowl.y.value), abs=0.01)
    assert place_of(svg, "optimum") == pytest.approx(OPTIMUM, abs=0.1)
    assert place_of(svg, "start") == pytest.approx((0, 0), abs=0.01)
    assert place_of(svg, "end") == pytest.approx((0.5, -0.5), abs=0.01)


def test_contours_are_labelled_and_reach_no_higher_than_the_bowl_at_a_pair(drawn) -> None:
    made, svg = drawn
    assert made.levels == [10, 20, 50, 100, 200]
    assert 200 < max(1e3 * made.bowl.above_floor(x, y) for x, y in PAIRS[:-1]) < 500
    assert 'id="a-plane-contours"' in svg
    labels = re.findall(r">([−\d.]+)</text>", svg)
    assert all(number(level) in labels for level in made.levels)


def test_no_contour_lies_below_the_lowest_point_of_a_bowl_whose_vertex_is_outside() -> None:
    made = chart(plane([(x, y + 4.5) for x, y in PAIRS]))
    assert made.bowl is not None
    assert made.bowl.vertex[1] < 2.5 == made.bowl.y.value
    lowest = 1e3 * made.bowl.above_floor(made.bowl.x.value, 2.5)
    assert lowest > 100
    assert lowest < made.levels[0] < 2.5 * lowest


@pytest.mark.parametrize(
    "found",
    [plane(PAIRS[:6]), plane(bends=EWD_FLAT), plane(lost=dict.fromkeys(PAIRS, 2))],
    ids=["too few pairs", "flat along EWD", "all diverged"],
)
def test_without_a_shown_bowl_the_points_stand_alone(found: Plane) -> None:
    made = chart(found)
    section = words.section(finding(result(found)), "a")
    svg = section.split("<figcaption")[0]
    assert made.bowl is None
    assert made.levels == []
    assert "contours" not in svg
    assert set(marks(svg)) == {"start", "end", *(f"pair{index}" for index in range(len(found.places)))}
    assert min((excess for excess, _ in made.ended), default=0) == 0  # above the lowest pair
    assert "No contours: no bowl is shown along both axes." in section
    assert "fitted bowl" not in section


def test_diverged_pairs_are_crosses_with_their_share() -> None:
    section = words.section(finding(result(plane(lost={(2.0, 1.0): 2, (2.0, 0.0): 1}))), "a")
    figure, key = section.split("</figure>")
    assert ">2/2<" in figure
    assert ">1/2<" in figure
    assert "var(--c2" in figure
    assert "diverged (of how many seeds)" in key
    figure, key = words.section(finding(result(plane())), "a").split("</figure>")
    assert "var(--c2" not in figure
    assert "diverged" not in key


def test_the_description_says_the_numbers(drawn) -> None:
    made, svg = drawn
    elr, ewd = START.elr * 2**made.bowl.x.value, START.ewd * 2**made.bowl.y.value
    told = re.findall('aria-label="([^"]*)"', svg)[0]
    assert "16 pairs, 1 diverged; lowest at" in told
    assert f"the bowl&#x27;s lowest point at ELR {elr:.3g} (" in told
    assert f"EWD {ewd:.3g} (" in told
    assert told.endswith(
        f"from ELR {START.elr:.3g}, EWD {START.ewd:.3g} to ELR {START.elr * 2**0.5:.3g}, EWD {START.ewd * 2**-0.5:.3g}"
    )


def test_lines_of_equal_eta_carry_the_value_of_the_start(drawn) -> None:
    _, svg = drawn
    values = [float(each) for each in re.findall(r">η ([\d.e-]+)</text>", svg)]
    assert any(each == pytest.approx(START.eta, rel=0.05) for each in values)
    assert all(abs(log2(each / START.eta) / 2 - round(log2(each / START.eta) / 2)) < 0.05 for each in values)
    assert len(values) >= 2


@pytest.mark.parametrize(
    ("mnat", "text"), [(0.02, "0"), (3.46, "3.5"), (-3.46, "−3.5"), (9.97, "10"), (187.4, "187"), (5230.0, "5.23 k")]
)
def test_numbers_beside_marks(mnat: float, text: str) -> None:
    assert number(mnat) == text


def finding(found: GlobalAxes | BaselineSet, stage: str = "01-elr-ewd") -> Finding:
    kind = "elr_ewd" if isinstance(found, GlobalAxes) else "baselines"
    return Finding(stage=stage, kind=kind, title=stage, before=START, after=START, result=found)


def test_the_page_draws_the_same_points_once(tmp_path) -> None:
    """A plane takes the place of the panels of its lines; a line alone keeps its panel."""
    tuned = [
        TunedBaseline(name=f"ELR-EWD-tuned {name}", settings=START, result=result(found))
        for name, found in (("first", plane()), ("line", None), ("second", plane()))
    ]
    findings = (
        finding(result(plane())),
        finding(result(None), "02-line"),
        finding(BaselineSet(tuned=tuple(tuned), random=None), "03-baselines"),
    )
    text = render(load_run(write_run(tmp_path / "run", findings, {}, name="run", stages=("elr_ewd",) * 3)))
    sections = {
        each: text[text.index(f'id="stage-{each}"') :].split("</section>")[0]
        for each in ("01-elr-ewd", "02-line", "03-baselines")
    }
    assert 'class="panels"' not in sections["01-elr-ewd"]
    assert sections["01-elr-ewd"].count('-plane-optimum">') == 1
    assert 'class="panels"' in sections["02-line"]
    assert "-plane-" not in sections["02-line"]
    assert re.findall("<h3>(.*?)</h3>", sections["03-baselines"]) == [
        "ELR and EWD of ELR-EWD-tuned first",
        "ELR and EWD of ELR-EWD-tuned second",
    ]
    assert not re.search("#0[1-7]0b0c", text)
    assert Page(text).text("h1")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))

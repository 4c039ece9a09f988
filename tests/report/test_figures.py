"""Figures: the numbers they draw, and that marks land where they should."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import AXES, Landscape, axis_finding

from mup_tune.findings import AxisFinding, Point
from mup_tune.report import formats
from mup_tune.report.figures import axes as figures
from mup_tune.report.figures.curves import learning_curves
from mup_tune.report.figures.forest import WRAP, Row, forest
from mup_tune.report.figures.waterfall import Step, waterfall
from mup_tune.stats import Interval


def bare(points: dict[float, dict[int, float | None]]) -> AxisFinding:
    return AxisFinding(
        axis="key",
        before=1.0,
        after=1.0,
        points=tuple(Point(offset=x, value=2.0**x, losses=losses) for x, losses in points.items()),
        decision="kept",
    )


def test_differences_are_paired_by_seed() -> None:
    """Seed 1 is worse everywhere by 0.5: unpaired means would show a gain where seed 1 diverged."""
    axis = bare({0.0: {0: 2.0, 1: 2.5}, 1.0: {0: 2.1, 1: None}, -1.0: {0: 2.2, 1: 2.6}})
    offsets, rows, centre = figures.paired(axis)
    assert offsets == [-1.0, 0.0, 1.0]
    assert rows[2] == {0: pytest.approx(0.1)}
    assert rows[0] == {0: pytest.approx(0.2), 1: pytest.approx(0.1)}
    assert centre == 2.25


def test_a_seed_whose_centre_diverged_is_left_out() -> None:
    _, rows, centre = figures.paired(bare({0.0: {0: 2.0, 1: None}, 1.0: {0: 2.1, 1: 1.0}}))
    assert rows == [{0: 0.0}, {0: pytest.approx(0.1)}]
    assert centre == 2.0


def test_without_a_centre_losses_are_relative_to_the_lowest() -> None:
    axis = bare({0.0: {0: None}, -1.0: {0: 2.0}, 1.0: {0: 2.4}})
    _, rows, centre = figures.paired(axis)
    assert (rows, centre) == ([{0: 0.0}, {}, {0: pytest.approx(0.4)}], None)
    assert "loss − lowest (mnat/token)" in figures.axis_panel(axis, "x")


def test_a_cliff_does_not_flatten_the_bowl() -> None:
    """One ok point 5 nats up is pinned to the top edge with its value; the axis stays at the bowl's scale."""
    axis = bare({x: {0: 2.0 + 0.01 * x * x} for x in (-2.0, -1.0, 0.0, 1.0)} | {2.0: {0: 7.0}})
    svg = figures.axis_panel(axis, "x")
    assert ">+5 k<" in svg
    ticks = [float(each.replace("−", "-")) for each in re.findall(r">(−?\d+(?:\.\d+)?)</text>", svg)]
    assert max(ticks) <= 60


@pytest.mark.parametrize("land", [land for land in AXES if land.grid], ids=lambda land: land.axis)
def test_a_smooth_bowl_pins_nothing(land: Landscape) -> None:
    assert not re.search(r">\+[\d.]+(?: k)?<", figures.axis_panel(axis_finding(land, 1.0, (0, 1, 2)), "x"))


def test_diverged_points_carry_their_count() -> None:
    svg = figures.axis_panel(axis_finding(next(each for each in AXES if each.axis == "mlp_down"), 1.0, (0, 1, 2)), "x")
    assert ">1/3<" in svg
    assert ">3/3<" in svg


def test_labels_of_close_marks_do_not_share_a_line() -> None:
    losses: dict[float, dict[int, float | None]] = {x: {0: 2.0 + 0.01 * x * x, 1: 2.0} for x in (-2.0, -1.0, 0.0, 1.0)}
    svg = figures.axis_panel(bare(losses | {2.0: {0: 7.0, 1: 6.0}, 2.5: {0: 7.0, 1: None}}), "x")
    places = {text: y for y, text in re.findall(r'<text[^>]*y="([\d.]+)"[^>]*>((?:\+[\d.]+ k|1/2))</text>', svg)}
    places |= {text: y for y, text in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>((?:\+[\d.]+ k|1/2))<", svg)}
    assert len(places) == 3
    assert len({round(float(y)) for y in places.values()}) == 3


def test_colours_are_the_pages() -> None:
    svg = figures.axis_panel(axis_finding(AXES[0], 1.0, (0, 1, 2)), "x")
    assert "var(--c1" in svg
    assert "currentColor" in svg
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svg)


def test_interval_rows_differ_in_shape_where_the_ci_holds_zero() -> None:
    rows = [Row("a", Interval(0.02, 0.01, 0.03)), Row("b", Interval(0.0, -0.01, 0.01)), Row("c", None)]
    assert [row.strong for row in rows] == [True, False, False]
    svg = forest(rows, "x", "two gains")
    assert ">not measured<" in svg
    assert ">+20.0<" in svg
    assert ">0.0<" in svg
    assert "var(--paper" in svg


def test_long_names_are_wrapped_not_clipped() -> None:
    name = "a reference with quite a long name of many words"
    svg = forest([Row(name, Interval(0.02, 0.01, 0.03))], "x", "one gain")
    parts = re.findall(r">([^<>]*(?:reference|words)[^<>]*)</t", svg)
    assert len(parts) > 1
    assert all(len(part) <= WRAP for part in parts)


def test_an_interval_far_wider_than_its_gain_ends_in_an_arrow_and_leaves_the_others_readable() -> None:
    wide, narrow = Row("wide", Interval(0.01, -9.0, 9.0)), Row("narrow", Interval(0.02, 0.01, 0.03))
    svg = forest([wide, narrow], "x", "two gains")
    ticks = [float(each.replace("−", "-")) for each in re.findall(r">(−?\d+)</text>", svg)]
    assert ticks
    assert max(ticks) <= 100


def test_rows_of_a_group_stand_below_its_name_once() -> None:
    rows = [Row(str(place), Interval(0.02, 0.01, 0.03), "early" if place < 2 else "late") for place in range(4)]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", forest(rows, "x", "four gains"))
    assert (texts.count("early"), texts.count("late")) == (1, 1)


def test_a_waterfall_goes_on_where_the_last_stage_ended() -> None:
    steps = [
        Step("first", Interval(0.02, 0.01, 0.03), fresh=False),
        Step("second", Interval(0.05, 0.04, 0.06), fresh=True),
    ]
    svg = waterfall([*steps, Step("whole", Interval(0.06, 0.05, 0.07), fresh=True, whole=True)], "x")
    ticks = [float(each.replace("−", "-")) for each in re.findall(r">(−?\d+)</text>", svg)]
    assert max(ticks) >= 60  # the second ends at 70 mnat, though no bar is longer than 60
    assert all(f">{text}</text>" in svg for text in ("+20.0", "+50.0", "+60.0"))


@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]),
        st.dictionaries(st.integers(0, 3), st.none() | st.floats(0.1, 12.0), min_size=1, max_size=3),
        min_size=1,
    )
)
def test_any_grid_gives_a_figure(points: dict[float, dict[int, float | None]]) -> None:
    svg = figures.axis_panel(bare(points), "any")
    assert svg.startswith("<svg viewBox=")
    assert svg.endswith("</svg>")
    assert "nan" not in svg.lower().replace("mnat", "")


def test_optimum_outside_the_grid_is_not_drawn_inside() -> None:
    land = Landscape("attention_out", 9.0, 0.004, "edge")
    inside = figures.axis_panel(axis_finding(Landscape("attention_out", 1.0, 0.004, "moved"), 1.0, (0, 1)), "x")
    assert "var(--c3" in inside
    assert "var(--c3" not in figures.axis_panel(axis_finding(land, 1.0, (0, 1)), "x")


@pytest.mark.parametrize(("optimum", "drawn"), [(1.9, True), (2.0, False)])
def test_a_clamped_optimum_draws_no_parabola(optimum: float, drawn: bool) -> None:
    """The fit's vertex then lies beyond the grid; a parabola around the clamped one would miss the points."""
    svg = figures.axis_panel(axis_finding(Landscape("key", optimum, 0.01, "edge"), 1.0, (0, 1, 2)), "x")
    assert ("stroke-opacity: 0.75" in svg) == drawn
    assert "var(--c3" in svg


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.mnat(0.04521), "+45.2"),
        (formats.mnat(-0.00004), "0.0"),
        (formats.mnat(-1.5), "−1,500.0"),
        (formats.mnat(float("nan")), "–"),
        (formats.loss(1.23456), "1.2346"),
        (formats.value(1e11), "1e11"),
        (formats.value(0.00128), "0.00128"),
        (formats.p_value(0.0004), "< 0.001"),
        (formats.si(999_900), "1 M"),
        (formats.si(262_144), "262 k"),
        (formats.duration(59), "59 s"),
        (formats.duration(3599), "1 h 00 min"),
        (formats.instant("2026-01-02T03:04:05+02:00"), "2026-01-02 01:04 UTC"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    "name",
    ["$5% or $10", r"$\frac$ \[/x]", "_private", 'id="x" url(#y) #010b0c', "<b>&lt;", "ends with $", "x" * 30],
)
def test_names_in_figures_are_drawn_as_they_are(name: str) -> None:
    bars = forest([Row(name, Interval(0.1, 0.0, 0.2), "group")], "bars", name)
    lines = learning_curves({name: ([1.0, 10.0], [2.0, 1.0])}, "lines", "loss", 0, zero=False)
    for svg in (bars, lines):
        texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
        assert "".join(name.split()) in "".join("".join(texts).split())
        assert html.escape(name, quote=True) in svg.split(">", 1)[0]


def test_a_name_too_long_for_a_legend_is_cut_and_not_dropped() -> None:
    svg = learning_curves({"n" * 100: ([1.0, 10.0], [2.0, 1.0])}, "lines", "loss", 0, zero=False)
    assert f">{'n' * 51}…</text>" in svg

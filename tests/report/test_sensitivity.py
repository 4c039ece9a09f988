"""The sensitivity section and the marks of the axis table: order, numbers, what is not shown, scales."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_run import AXES, SHAPE, axis_finding, passes, write_run

from mup_tune.findings import AxisFinding, Finding
from mup_tune.report.figures.sensitivity import ranked, section, sensitivity_figure
from mup_tune.report.page import render
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval, Parabola

START = untuned(SHAPE)


def axis(name: str, value: float | None, low: float = 0.0, robust: bool = False, pass_: int = 1) -> AxisFinding:
    """An axis with this curvature in nats/token per (log2)²; swept without a fit if None."""
    fit = value if value is None else Parabola(
        optimum=Interval(0.1, -0.2, 0.4),
        floor=1.9,
        curvature=Interval(value, low, 2 * value - low),
        points_used=5,
        edge=False,
        lack_of_fit=0.02 if robust else 0.6,
        robust=robust,
    )  # fmt: skip
    return axis_finding(AXES[2], 1.0, (0, 1)).model_copy(update={"axis": name, "fit": fit, "pass_": pass_})


SPREAD = (
    axis("key", 0.002, 0.001),
    axis("lm_head", 0.08, 0.07, robust=True),
    axis("ssm_B", 0.09, -0.1),
    axis("ssm_C", None),
    axis("embedding", 0.3, 0.25),
)


def test_shown_curvatures_come_first_largest_first() -> None:
    assert [row.axis for row in ranked(SPREAD)] == ["embedding", "lm_head", "key", "ssm_B"]
    assert [row.shown for row in ranked(SPREAD)] == [True, True, True, False]


def test_the_last_pass_with_a_fit_counts() -> None:
    found = ranked([axis("key", 0.1, 0.05), axis("key", 0.2, 0.1, pass_=2), axis("key", None, pass_=3)])
    assert [(row.axis, row.fit.curvature.value) for row in found] == [("key", 0.2)]


def test_it_says_what_a_factor_of_two_costs_and_what_is_not_shown() -> None:
    text = re.sub(r"<svg.*?</svg>", "", section(SPREAD, "s"), flags=re.DOTALL)
    assert "½ · curvature: 150 mnat/token for <code>embedding</code>" in text
    assert "No curvature shown, no fit: <code>ssm_C</code>" in text
    assert "Hollow" in text
    assert "Diamond" in text
    plain = section([axis("key", 0.01, 0.005), axis("lm_head", 0.02, 0.01)], "s")
    assert not any(word in plain for word in ("Hollow", "Diamond", "No curvature"))


def test_one_fitted_axis_is_no_ranking() -> None:
    assert section([axis("key", 0.1, 0.05), axis("lm_head", None)], "s") == ""
    assert section([], "s") == ""


@pytest.mark.parametrize("values", [(0.3, 0.002), (0.03, 0.02), (5.0, 4e-6), (-0.01, 0.02), (-0.01, -0.02)])
def test_the_figure_names_every_axis_with_its_value(values: tuple[float, float]) -> None:
    rows = ranked([axis(name, v, v / 2) for name, v in zip(("embedding", "lm_head"), values, strict=True)])
    drawn = sensitivity_figure(rows, "f")
    for row in rows:
        assert row.axis in drawn
    assert ("nan" in drawn.lower()) is False
    assert drawn == sensitivity_figure(rows, "f")


def test_it_stands_on_the_page_and_the_table_marks_local_fits_and_passes(tmp_path: Path) -> None:
    first = (axis("key", 0.1, 0.05), axis("lm_head", 0.2, 0.1, robust=True))
    result = passes(first, (axis("key", 0.1, 0.05, pass_=2),))
    told = {"stage": "01-micro", "kind": "micro", "title": "Multipliers", "before": START, "after": START}
    write_run(tmp_path / "run", (Finding(**told, result=result),), {})
    page = render(load_run(tmp_path / "run"))
    assert page.count("<h3>Sensitivity</h3>") == 1
    table = page[page.index('<table class="axes">') :]
    assert table.count("<small>pass 1</small>") == 2
    assert table.count("<small>pass 2</small>") == 1
    assert table.count("◇") == 1
    assert "p 0.020" in table

"""The part of the page that compares Shapes: the numbers of its table, and what its figures draw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from synthetic_run import write_run
from test_report_page import Page

from mup_tune import stats
from mup_tune.channels import Ratio, at_depth, split
from mup_tune.findings import Finding
from mup_tune.findings.shapes import Ranking, ShapePoint, ShapeSet
from mup_tune.report.figures.shapes import by_loss, tradeoff
from mup_tune.report.figures.simplex import is_plane, simplex, spot
from mup_tune.report.page import render
from mup_tune.report.words import section
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.shape import BlockOrder, Shape, load_shape
from mup_tune.stats import Interval

PROXY = load_shape("cpu-channels")  # 2:1:5
RATIOS = ("2:1:5", "1:1:6", "3:1:4", "2:2:4", "1:2:5", "1:3:4", "3:2:3", "4:1:3")
SEEDS = (-0.03, 0.0, 0.03)


def point(label: str, shape: Shape, loss: float | None, speed: float, **fields) -> ShapePoint:
    return ShapePoint(
        **{
            "label": label,
            "shape": shape,
            "channels": "",
            "parameters": shape.parameters(),
            "flops_per_token": shape.flops_per_token(128),
            "losses": {seed: None if loss is None else loss + each for seed, each in enumerate(SEEDS)},
            "elr_offset": 0.0,
            "at_edge": False,
            "gain": None,
            "tokens_per_s": speed,
            "members": 8,
            "on_front": False,
            **fields,
        }
    )


def ratio_points(orders: Sequence[BlockOrder] = ("SA_M",)) -> tuple[ShapePoint, ...]:
    """Less attention is better; SAM is the fastest; the proxy comes first."""
    found = []
    for place, order in enumerate(orders):
        for text in RATIOS:
            ratio = Ratio.parse(text)
            gain = -0.012 * (ratio.attention - 1) - 0.002 * abs(ratio.ssm - 1.6) + 0.0008 - 0.003 * place
            first = text == RATIOS[0] and order == "SA_M"
            found.append(
                point(
                    f"{text} ({order})",
                    split(PROXY, ratio, order),
                    2.1 - gain,
                    61_000 - 4000 * ratio.ssm + 1500 * ratio.attention + 2200 * place,
                    channels=text,
                    gain=None if first else Interval(gain, gain - 0.0021, gain + 0.0021),
                    on_front=text == "1:1:6",
                    at_edge=text == "1:3:4",
                    elr_offset=-0.5 if text == "1:3:4" else 0.5,
                )
            )
    return tuple(found)


def finding(points: Sequence[ShapePoint], kind: str = "channels") -> Finding:
    start, means = untuned(PROXY), stats.means([point.losses for point in points])
    order = sorted((mean, index) for index, mean in enumerate(means) if mean is not None)
    result = ShapeSet(
        points=tuple(points),
        ranking=Ranking(order=tuple(index for _, index in order), p_values={index: 0.01 for _, index in order[1:]}),
        noun="width and depth",
        prefix="Width and depth ",
        elr_tuned=True,
        total_tokens=409_600,
    )
    told = {"stage": f"01-{kind}", "kind": kind, "title": "Channels", "before": start, "after": start}
    return Finding(**told, on_path=False, result=result)


def page(path: Path, points: Sequence[ShapePoint], kind: str = "channels") -> Page:
    return Page(render(load_run(write_run(path, (finding(points, kind),), {}, name=kind, stages=(kind,)))))


def test_the_table_holds_every_number_lowest_loss_first(tmp_path: Path) -> None:
    points = ratio_points()
    parsed = page(tmp_path / "run", points)
    rows = next(table for table in parsed.tables if "tokens/s" in table[0])[1:]
    labels = [" ".join(row[0].split()) for row in rows]
    assert labels[0] == "2:1:5 the proxy"
    assert sorted(labels[1:]) == sorted(RATIOS[1:])
    losses = [float(row[5]) for row in rows]
    assert losses == sorted(losses)
    row = parsed.row("1:3:4")[0]
    shape = split(PROXY, Ratio(1, 3, 4))
    assert row[1:4] == ["SA_M", "64 × 2", f"{shape.parameters():,}"]
    assert row[5:] == ["2.1244", "−24.4 −26.5 to −22.3", "61.5 k 8 members", "−0.50 ⇥", ""]
    assert parsed.row("1:1:6")[0][8:] == ["+0.50", "✓"]
    assert parsed.row("2:1:5 the proxy")[0][6] == "–"


@pytest.mark.parametrize("orders", [("SA_M",), ("SA_M", "SAM", "S_A_M")])
def test_figures_label_points_and_tell_orders_apart(orders) -> None:
    points = ratio_points(orders)
    text = tradeoff(points, "t")
    assert f"{len(points)} Shapes" in text
    labels = re.findall(r">(\d:\d:\d)</text>", text)
    assert {"2:1:5", "1:1:6", "1:3:4"} <= set(labels)
    assert len(labels) <= len(points)
    assert all((f">{order}</text>" in text) == (len(orders) > 1) for order in orders)
    cells = simplex(points, "g")
    assert cells.count(">more SSM ↑</text>") == len(orders)
    assert cells.count(">lowest</text>") == 1
    assert len(re.findall(r">\+\d+\.\d</text>", cells)) == len(points) - 1
    assert all(cells.count(f">{ratio}</text>") == len(orders) for ratio in RATIOS)
    for each in (text, cells):
        assert not re.search("#0[1-7]0b0c", each)  # every stand-in ink was painted
    assert tradeoff(points, "t") == text


def test_neighbours_on_the_simplex_share_all_but_an_eighth() -> None:
    """All six ratios that trade one eighth lie equally far from a ratio."""
    x, y = spot((2, 2, 4))
    away = [spot(at) for at in ((3, 1, 4), (1, 3, 4), (3, 2, 3), (1, 2, 5), (2, 3, 3), (2, 1, 5))]
    assert [(a - x) ** 2 + (b - y) ** 2 for a, b in away] == pytest.approx([1.0] * 6)


def test_diverged_points_are_crossed_and_come_last(tmp_path: Path) -> None:
    points = list(ratio_points(("SA_M", "SAM")))
    gone = dict.fromkeys(range(3))
    points[3] = points[3].model_copy(update={"losses": gone, "gain": None})
    points[5] = points[5].model_copy(update={"losses": {0: 9.0, 1: 9.0, 2: 9.0}})
    parsed = page(tmp_path / "run", points)
    table = next(table for table in parsed.tables if "tokens/s" in table[0])
    last = [" ".join(cell.split()) for cell in table[-1][5:]]
    assert last == ["diverged", "–", "56 k 8 members", "–", ""]
    assert table[-1][0].strip() == "2:2:4"
    assert ">✕</text>" in simplex(points, "g")
    # A Shape far above the others does not flatten them: the scale ends far below it.
    ticks = [float(tick) for tick in re.findall(r">(\d\.\d+)</text>", tradeoff(points, "t"))]
    assert ticks
    assert max(ticks) < 3


def test_a_field_that_diverges_everywhere_still_has_a_page(tmp_path: Path) -> None:
    gone = dict.fromkeys(range(3))
    points = [each.model_copy(update={"losses": gone, "gain": None, "on_front": False}) for each in ratio_points()]
    parsed = page(tmp_path / "run", points)
    assert len(parsed.row("1:1:6")) == 1


def test_depths_have_no_grid_and_the_headline_is_the_stages(tmp_path: Path) -> None:
    deep = at_depth(PROXY, 8)
    gain = Interval(0.01, 0.008, 0.012)
    points = [
        point("d64 L2", PROXY, 2.1, 60_000, on_front=True),
        point("d32 L8", deep, 2.09, 31_000, gain=gain, on_front=True, members=4),
    ]
    assert not is_plane(points)
    text = section(finding(points), "stage")
    assert "Loss over the ratios" not in text
    assert text.count("<svg") == 1
    assert by_loss(points)[0].label == "d32 L8"
    parsed = page(tmp_path / "run", points, "width_depth")
    told = "Width and depth d32 L8 trains best at equal parameters: 10.0 mnat/token below d64 L2, the next"
    assert parsed.text("h1") == [told]
    assert parsed.row("d32 L8")[0][2] == "32 × 8"

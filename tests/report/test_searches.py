"""The search section of the page: the best ten, the figures, and what happens where all diverged."""

from __future__ import annotations

import re

import pytest
from synthetic_run import SHAPE, write_run
from test_report_page import Page

from mup_tune.findings import Finding
from mup_tune.findings.joint_search import Candidate, JointSearch, Search
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report.figures.searches import PANELS, axis_panels, order_figure
from mup_tune.report.page import render
from mup_tune.report.parts.joint_search import best_ten
from mup_tune.report.words import section
from mup_tune.run.view import load_run
from mup_tune.search.sampling import suggest
from mup_tune.settings import untuned

THREE = ("elr", "key", "mlp_down")


def made(axes: tuple[str, ...] = THREE, n: int = 24, seeds: int = 2, centre: bool = True, lost: bool = False) -> Search:
    """A bowl around +0.4 on every axis, one far-off candidate, a few that diverge; ``lost``: all of them."""
    candidates = []
    for index, offsets in enumerate(suggest("random", axes, 1.0, (), n, 3)):
        loss = 2.0 + sum((x - 0.4) ** 2 for x in offsets.values()) / len(axes) / 10 + (5.0 if index == 5 else 0.0)
        gone = lost or offsets[axes[0]] > 0.7
        losses = {seed: None if gone and seed == 0 else loss + 0.01 * seed for seed in range(seeds)}
        candidates.append(Candidate(round=1 + index // 8, offsets=offsets, losses=losses))
    means = [
        (sum(each.losses.values()) / seeds, index)
        for index, each in enumerate(candidates)
        if None not in each.losses.values()
    ]
    start = {seed: 2.03 + 0.01 * seed for seed in range(seeds)} if centre else {}
    best = min(means)[1] if means else None
    return Search(sampler="tpe", axes=axes, radius=1.0, centre_losses=start, candidates=tuple(candidates), best=best)


def finding(search: Search | None, stage: str = "01-joint") -> Finding:
    start, result = untuned(SHAPE), JointSearch(search=search)
    return Finding(stage=stage, kind="joint", title="Joint search", before=start, after=start, result=result)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    wide = made(("elr", *MULTIPLIER_NAMES), n=60, seeds=1, centre=False)
    both = (finding(made()), finding(wide, "02-joint"))
    return Page(render(load_run(write_run(tmp_path_factory.mktemp("runs") / "joint", both, {}, name="joint"))))


def test_the_table_holds_the_ten_best_with_their_offsets(page: Page) -> None:
    search = made()
    rows = best_ten(search)
    assert len(rows) == 10
    assert rows[0].number == 1 + (search.best or 0)
    assert [row.loss for row in rows] == sorted(row.loss for row in rows)
    assert all(None not in row.candidate.losses.values() for row in rows)
    assert page.row("candidate")[-2] == ["candidate", *(str(row.number) for row in rows)]
    assert page.row("mean loss")[0] == ["mean loss", *(f"{row.loss:.4f}" for row in rows)]
    shown = [float(cell.replace("−", "-")) for cell in page.row("mlp_down")[1][1:]]
    assert shown == pytest.approx([row.candidate.offsets["mlp_down"] for row in rows], abs=0.006)
    assert len(page.row("D.lr")[-1]) == 11
    titles = [title for title in page.text("h3") if "axes" in title]
    assert titles == ["TPE over 3 axes, ±1 log2", "TPE over 36 axes, ±1 log2"]


def test_figures_mark_what_diverged_and_are_drawn_the_same_twice() -> None:
    text = order_figure(made(), "s")
    assert text == order_figure(made(), "s")
    assert "best so far" in text
    assert "centre" in text
    assert not re.search("#0[1-7]0b0c", text)  # every stand-in ink was painted
    assert ("var(--c2" in text) == any(None in each.losses.values() for each in made().candidates)
    assert "var(--c2" in order_figure(made(lost=True), "s")
    panels = axis_panels(made(), "p")
    assert all(f">{axis}</text>" in panels for axis in THREE)


def test_panels_only_where_they_can_be_read() -> None:
    assert section(finding(made(tuple(MULTIPLIER_NAMES[:PANELS]))), "a").count("<svg") == 2
    assert section(finding(made(tuple(MULTIPLIER_NAMES[: PANELS + 1]))), "a").count("<svg") == 1
    assert section(finding(None), "a") == ""


def test_a_search_that_diverged_everywhere_still_has_a_page() -> None:
    for centre in (True, False):
        text = section(finding(made(lost=True, centre=centre)), "a")
        assert "24 of 24" in text
        assert "<table" not in text

"""The RoPE-base section of the page: every number of the finding, and what the figures draw."""

from __future__ import annotations

import re
from math import log2, log10
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import SHAPE, write_run
from test_report_page import Page

from mup_tune.findings import AxisFinding, Finding, Point
from mup_tune.findings.rope_bases import LengthCurve, RopeBases
from mup_tune.report.figures.lengths import by_base, by_length
from mup_tune.report.page import render
from mup_tune.report.words import headline, section
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval

BASES = (1e4, 1e6, 1e8, 1e10, 1e11, 1e12, 1e14)
SEEDS = (0, 1, 2)


def rope_finding(
    before: float = 1e8, after: float = 1e11, slope: float = 0.03, lost: float | None = None, factors=(1, 2, 4, 8)
) -> Finding:
    """A plateau from 1e10 on, below it a loss that grows with the length."""
    rng = np.random.default_rng(0)
    seed_effect = rng.normal(0, 0.02, 3)

    def points(losses: dict[float, list[float]]) -> tuple[Point, ...]:
        return tuple(
            Point(
                offset=log2(base / before),
                value=base,
                losses={seed: None if base == lost and seed == 1 else losses[base][seed] for seed in SEEDS},
            )
            for base in BASES
        )

    at = {
        factor: {
            base: list(
                1.9
                - 0.04 * log2(factor)
                + slope * (0.1 + log2(factor)) * max(0.0, 10 - log10(base)) / 2
                + seed_effect
                + rng.normal(0, 0.0015, 3)
            )
            for base in BASES
        }
        for factor in factors
    }
    mean = {base: [float(np.mean([at[f][base][seed] for f in factors])) for seed in SEEDS] for base in BASES}
    start = untuned(SHAPE).with_values({"rope_base": before})
    moved = after != before
    axis = AxisFinding(
        axis="rope_base",
        before=before,
        after=after,
        points=points(mean),
        gain=Interval(0.05, 0.04, 0.06) if moved else None,
        p_value=0.0003 if moved else None,
        decision="moved" if moved else "kept",
        reason="fitted" if moved else "best",
    )
    lengths = tuple(LengthCurve(factor=f, seq_len=128 * f, points=points(at[f])) for f in factors)
    return Finding(
        stage="01-rope_base",
        kind="rope_base",
        title="RoPE base, evaluated at 1x, 2x, 4x, 8x the training length",
        before=start,
        after=start.with_values({"rope_base": after}),
        sigma_delta=0.002,
        result=RopeBases(axis=axis, lengths=lengths, not_told_apart=(), gaps={}),
    )


def written(path: Path, finding: Finding) -> Page:
    return Page(render(load_run(write_run(path, (finding,), {}, name="rope_base"))))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(tmp_path_factory.mktemp("runs") / "rope", rope_finding())


def test_the_table_holds_every_number(page: Page) -> None:
    finding = rope_finding()
    rows = page.row("1e4") + page.row("1e14") + page.row("1e11 taken") + page.row("1e8 incumbent")
    assert len(rows) == 4
    low = [finding.result.lengths[3].points[0].losses[seed] for seed in SEEDS]
    centre = [finding.result.lengths[3].points[2].losses[seed] for seed in SEEDS]
    gap = 1e3 * np.subtract(low, centre)
    error = np.std(low, ddof=1) / 3**0.5
    assert rows[0][4] == (f"{np.mean(low):.4f} ± {error:.4f} +{np.mean(gap):.1f} ± {np.std(gap, ddof=1) / 3**0.5:.1f}")
    assert len(rows[0]) == 6
    mean = [finding.result.axis.points[-1].losses[seed] for seed in SEEDS]
    assert rows[1][5].startswith(f"{np.mean(mean):.4f} ± ")
    assert all(cell.endswith(" reference") for cell in rows[3][1:])


def test_paired_differences_lose_what_seeds_share(page: Page) -> None:
    """The seeds' own spread is 0.02; that of the differences is the noise alone."""
    cell = page.row("1e12")[0][1]
    match = re.fullmatch(r"[\d.]+ ± ([\d.]+) −[\d.]+ ± ([\d.]+)", cell)
    assert match is not None
    assert 1e3 * float(match[1]) > 3 * float(match[2])


def test_a_line_a_length_and_three_bases_by_length() -> None:
    finding = rope_finding()
    text = by_base(finding.result.lengths, finding.result.axis, "d")
    assert re.findall(r">(\d+x)</text>", text) == ["1x", "2x", "4x", "8x"]
    assert [each in text for each in (">+200</", ">+2.5</", ">+5</")] == [True] * 3
    assert not re.search("#0[1-7]0b0c", text)
    assert by_base(finding.result.lengths, finding.result.axis, "d") == text
    gentle = rope_finding(slope=0.0005)
    assert "beyond it logarithmic" in section(finding, "s")
    assert "beyond it logarithmic" not in section(gentle, "s")
    losses = by_length(finding.result.lengths, finding.result.axis, "a")
    assert {"1e4 (smallest)", "1e8 (incumbent)"} < set(re.findall(r">(1e\d+ \([^<]+\))</text>", losses))
    assert ">1024</" in losses


@pytest.mark.parametrize("lost", [1e4, 1e8, 1e11])
def test_a_base_that_diverged_is_named_and_never_averaged(tmp_path: Path, lost: float) -> None:
    finding = rope_finding(lost=lost)
    parsed = written(tmp_path / "run", finding)
    cells = parsed.row("1e4") + parsed.row("1e8 incumbent") + parsed.row("1e11 taken")
    diverged = [row for row in cells if "diverged" in row[1]]
    assert [row[0].split()[0] for row in diverged] == [f"1e{log10(lost):.0f}"]
    reference = lost == 1e8  # nothing can be paired with it on every seed
    assert set(diverged[0][1:]) == {"diverged reference" if reference else "diverged –"}
    if reference:
        assert all(cell.endswith(" –") for row in cells for cell in row[1:] if row is not diverged[0])


def test_one_length_many_lengths_and_one_seed_have_a_page() -> None:
    for factors in ((1,), (1, 2, 4, 8, 16)):
        finding = rope_finding(factors=factors)
        assert section(finding, "s").count("x</th>") == len(factors)
    alone = rope_finding()
    curves = tuple(
        curve.model_copy(
            update={"points": tuple(p.model_copy(update={"losses": {0: p.losses[0]}}) for p in curve.points)}
        )
        for curve in alone.result.lengths
    )
    axis = alone.result.axis
    axis = axis.model_copy(update={"points": curves[0].points})
    result = alone.result.model_copy(update={"lengths": curves, "axis": axis})
    text = section(alone.model_copy(update={"result": result}), "s")
    assert "± " not in text.split("<tbody>")[1]


def test_the_headline_names_the_base_and_the_range() -> None:
    told = headline(rope_finding())
    assert told is not None
    assert told.title.startswith("RoPE base 1e8 → 1e11: the best of 1e4 … 1e14")

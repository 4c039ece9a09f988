"""The words and the section of a response surface: exact where they carry numbers."""

from __future__ import annotations

import re

import pytest
from synthetic_run import SHAPE, comparison, write_run
from test_report_page import Page

from mup_tune.findings import AxisFinding, Finding
from mup_tune.findings.surface import Effect, ResponseSurface, Round, Share
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report import words
from mup_tune.report.figures.surfaces import gains, ranked
from mup_tune.report.page import render
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval

START = untuned(SHAPE)
LINE, FRESH = (4100, 4101), (4000, 4001, 4002)
WORSE = Interval(-0.004, -0.009, 0.001)
GAIN = Interval(0.012, 0.005, 0.019, 0.004)


def share(part: float, gain: Interval | None) -> Share:
    return Share(share=part, comparison=comparison("round 1: centre", gain, LINE, f"round 1: {part:g} of the step"))


FIRST = Round(
    number=1,
    radius=0.5,
    centre={"elr": 0.0, "key": 0.0, "rope_base": 0.0},
    trials=24,
    diverged=2,
    noise=0.0031,
    step={"elr": 0.5, "key": -0.25, "rope_base": 0.125},
    predicted=Interval(0.02, 0.008, 0.032),
    shares=(share(1.0, WORSE), share(0.5, Interval(0.011, 0.004, 0.018))),
    taken=0.5,
)
LAST = Round(
    number=2,
    radius=0.35,
    centre={"elr": 0.25, "key": -0.125, "rope_base": 0.0625},
    trials=24,
    diverged=0,
    noise=0.003,
    predicted=Interval(0.001, -0.002, 0.002),
)
EFFECTS = tuple(
    Effect(axis=axis, slope=Interval(slope, slope - 0.002, slope + 0.002), curvature=Interval(c, c - 0.01, c + 0.01))
    for axis, slope, c in [("elr", 0.0005, 0.05), ("key", -0.004, 0.02), ("rope_base", 0.0, 0.0004)]
)


def surface(**fields: object) -> ResponseSurface:
    moved = fields.get("moved", comparison("where the stage began", GAIN, FRESH, "the last centre"))
    taken = isinstance(moved, type(FIRST.shares[0].comparison)) and moved.outcome == "better"
    axes = tuple(
        AxisFinding(axis=axis, before=1.0, after=1.2 if taken else 1.0, decision="moved" if taken else "dropped")
        for axis in ("elr", "key", "rope_base")
    )
    made = ResponseSurface(
        rounds=(FIRST, LAST),
        stop="no gain predicted",
        units={"rope_base": 8.0},
        effects=EFFECTS,
        axes=axes,
        detectable=0.0021,
        next_gain=Interval(0.001, -0.002, 0.002),
        round_trials=30,
        round_flops=1.5e12,
        trials=60,
        flops=3e12,
    )
    return made.model_copy(update={"moved": moved, **fields})


def finding(result: ResponseSurface) -> Finding:
    return Finding(stage="01-surface", kind="surface", title="Surface", before=START, after=START, result=result)


def test_the_summary_tells_every_round_and_the_proof() -> None:
    assert words.summary(finding(surface())) == [
        "Round 1: 24 trials, all axes at once by ±0.5 log2 (rope_base ±4); 2 diverged; "
        "noise of a trial 3.1 mnat/token.",
        "The surface predicts gain 0.0200 nats/token (95 % CI 0.0080 … 0.0320); measured: the whole step gain −0.0040 "
        "nats/token (95 % CI −0.0090 … 0.0010); 0.5 of the step gain 0.0110 nats/token (95 % CI 0.0040 … 0.0180). "
        "The centre moves by 0.5 of the step.",
        "Round 2: 24 trials, all axes at once by ±0.35 log2 (rope_base ±2.8); noise of a trial 3.0 mnat/token.",
        "The surface predicts gain 0.0010 nats/token (95 % CI −0.0020 … 0.0020).",
        "No further round: all of the predicted gain's CI lies below what the verification can show.",
        "On 3 fresh seeds the last centre: gain 0.0120 nats/token (95 % CI 0.0050 … 0.0190), p = 0.004; taken.",
        "The centre went furthest along rope_base +0.50, elr +0.25, key −0.12 (log2).",
        "Most sensitive: elr (50 mnat/token per (log2)²), then key (20), at the last centre.",
        "All of it took 60 trials and 3e+12 FLOPs.",
        "A further round would cost 30 trials and 1.5e+12 FLOPs, and is predicted to gain 0.0010 nats/token "
        "(95 % CI −0.0020 … 0.0020).",
        "The verification's seeds show gains from about 0.0021 nats/token on.",
    ]


def test_a_refused_centre_and_one_that_never_moved() -> None:
    refused = finding(surface(moved=comparison("where the stage began", WORSE, FRESH, "the last centre")))
    assert words.summary(refused)[5] == (
        "On 3 fresh seeds the last centre: gain −0.0040 nats/token (95 % CI −0.0090 … 0.0010); the incumbent stays."
    )
    assert words.why(refused, refused.axes[0]).startswith("the centre moved +0.25 log2, and was not better; slope")
    assert words.headline(refused) == words.Headline("No joint move of 3 axes is shown to gain")
    still = finding(surface(moved=None, rounds=(LAST.model_copy(update={"centre": {"elr": 0.0}}),)))
    told = " ".join(words.summary(still))
    assert "The centre never moved, so there is nothing to verify: the incumbent stays." in told
    assert "furthest" not in told
    lost = finding(surface(moved=comparison("where the stage began", None, FRESH, "the last centre")))
    assert "On 3 fresh seeds the last centre: better: where the stage began diverged" in words.summary(lost)[5]
    assert words.summary(lost)[5].endswith("the incumbent stays.")


def test_a_round_without_a_surface() -> None:
    lost = FIRST.model_copy(update={"noise": None, "predicted": None, "step": {}, "shares": (), "taken": None})
    result = surface(rounds=(lost,), stop="too many diverged", effects=(), moved=None, detectable=None, next_gain=None)
    assert words.summary(finding(result)) == [
        "Round 1: 24 trials, all axes at once by ±0.5 log2 (rope_base ±4); 2 diverged; too few ended for a surface.",
        "No round is left, and in the last one too few trials ended for a surface.",
        "The centre never moved, so there is nothing to verify: the incumbent stays.",
        "All of it took 60 trials and 3e+12 FLOPs.",
    ]
    assert "<svg" not in words.section(finding(result), "a")


def test_why_says_slope_curvature_and_move() -> None:
    found = finding(surface())
    assert words.why(found, found.axes[1]) == (
        "the centre moved −0.12 log2; slope −4.0 (−6.0 to −2.0) mnat/token per log2, "
        "curvature +20.0 (+10.0 to +30.0) per (log2)²"
    )
    bare = finding(surface(effects=()))
    assert words.why(bare, bare.axes[2]) == "the centre moved +0.50 log2"


def test_verdicts_and_headline() -> None:
    found = finding(surface())
    assert [words.verdict(found, each) for each in found.comparisons] == [
        "no difference shown",
        "the next centre",
        "taken",
    ]
    assert words.headline(found) == words.Headline("3 axes moved together: +12.0 mnat/token on 3 fresh seeds")


def test_rows_of_the_figures() -> None:
    assert [row.label for row in gains(surface())] == [
        "round 1: predicted",
        "the whole step",
        "0.5 of the step, taken",
        "round 2: predicted",
        "last centre, verified",
    ]
    places = ranked(surface())
    # −slope·move + ½·curvature·move²
    assert {place.effect.axis: place.gain for place in places} == pytest.approx(
        {"elr": -0.0005 * 0.25 + 0.025 * 0.0625, "rope_base": 0.0002 * 0.25, "key": -0.004 * 0.125 + 0.01 / 64}
    )
    assert [place.effect.axis for place in places] == ["elr", "rope_base", "key"]
    still = surface(rounds=(LAST.model_copy(update={"centre": dict.fromkeys(("elr", "key", "rope_base"), 0.0)}),))
    assert [place.effect.axis for place in ranked(still)] == ["key", "elr", "rope_base"]  # by slope²/(2·curvature)
    assert ranked(still)[0].left == pytest.approx(0.004**2 / 0.04)


def test_the_page_has_both_figures_for_37_axes_and_one_figure_of_comparisons(tmp_path) -> None:
    names = ("elr", "ewd", *MULTIPLIER_NAMES)
    last = LAST.model_copy(update={"centre": {axis: 0.01 * place for place, axis in enumerate(names)}})
    effects = tuple(EFFECTS[place % 3].model_copy(update={"axis": axis}) for place, axis in enumerate(names))
    axes = tuple(AxisFinding(axis=axis, before=1.0, after=1.1, decision="moved") for axis in names)
    result = surface(rounds=(FIRST, last), effects=effects, axes=axes)
    run = write_run(tmp_path / "surface", (finding(result),), {}, name="surface", stages=("surface",))
    text = render(load_run(run))
    start = text.index('<section id="stage-01-surface"')
    section = text[start : text.index("</section>", start)]
    assert section.count("<svg") == 2
    assert not re.search("#0[1-7]0b0c", section)  # every stand-in ink was painted
    assert all(f">{axis}</text>" in section for axis in names)
    assert "One step of <code>rope_base</code> is 8 log2" in section
    page = Page(text)
    assert page.text("h1") == ["37 axes moved together: +12.0 mnat/token on 3 fresh seeds"]
    assert sum(len(page.row(axis)) for axis in names) == len(names)  # in the table of all settings, and there alone
    assert page.row("the last centre")[0][2] == "+12.0"
    assert page.row("the last centre")[0][-1] == "taken"
    assert "taken." in section
    assert words.section(finding(result), "a") == words.section(finding(result), "a")

"""What findings say: a part for every type of result, the reasons of axes, and words without figures."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from synthetic_run import AXES, SHAPE, axis_finding, comparison, confirmation, finding, passes, token_gain

from mup_tune.findings import AxisFinding, Comparison, Finding, Result, Verified
from mup_tune.findings.baselines import BaselineSet, RandomSearch
from mup_tune.findings.joint_search import Candidate, JointSearch, Search
from mup_tune.report import words
from mup_tune.settings import untuned
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

START = untuned(SHAPE)
BETTER, WORSE, UNCLEAR = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.0, -0.01, 0.01)


def stage(result: Result) -> Finding:
    return Finding(stage="01", kind="any", title="Any", before=START, after=START, result=result)


def test_every_type_of_result_has_a_part_and_words_need_no_figures() -> None:
    """`mup-tune status` pays for the words alone."""
    for kind in Result.types:
        assert import_module(f"{words.PARTS}.{kind}").summary
    code = (
        "import sys; from importlib import import_module; from mup_tune.findings import Result\n"
        f"for kind in Result.types: import_module('{words.PARTS}.' + kind)\n"
        "print(*{'matplotlib', 'pandas', 'jinja2', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_type_without_a_part_is_named() -> None:
    strange = stage(JointSearch(search=None).model_copy(update={"type": "strange"}))
    with pytest.raises(
        NotImplementedError, match=r"'strange' need words: there is no mup_tune\.report\.parts\.strange"
    ):
        words.summary(strange)


def test_a_global_axis_says_why_it_is_where_it_is() -> None:
    found = finding("01", "elr_ewd", "ELR", START, (AXES[0],), (0, 1, 2))
    said = {
        "fitted": "1 → 2.144 (parabola through 9 points); best point: gain 0.0182 nats/token (95 % CI 0.0168 … 0.0196)",
        "all diverged": "kept: every point from 0.25 up diverged",
        "noise unknown": "kept: too few seeds and points to tell noise from gain",
        "not better": "kept: gain 0.0182 nats/token (95 % CI 0.0168 … 0.0196), p = 0.0004 over all points",
    }
    for reason, text in said.items():
        assert words.why(found, found.axes[0].model_copy(update={"reason": reason})) == text
    edge = found.axes[0].model_copy(update={"decision": "edge", "extended": 2, "fit": None})
    assert words.why(found, edge).startswith("1 → 2.144 (best point, no parabola fits); best point: gain")
    assert words.why(found, edge).endswith("; still at the edge of the grid after 2 extensions")


def test_passes_name_themselves_where_the_plan_allows_several() -> None:
    one = axis_finding(AXES[0], 1.0, (0, 1))
    assert words.summary(stage(passes((one,))))[0].startswith("embedding: 1 → 2.144 (all together); best point gain")
    flat = one.model_copy(update={"decision": "flat", "reason": "not better", "pass_": 2})
    two = passes((one,), (flat,))
    quiet = two.passes[1].model_copy(update={"moves": (), "prediction": None})
    two = two.model_copy(update={"passes": (two.passes[0], quiet)})
    said = words.summary(stage(two))
    assert said[0].startswith("Pass 1: embedding: ")
    assert said[-2:] == ["Pass 2: Flat, kept: embedding.", "Pass 2 moved nothing, so it was the last."]


def test_a_multiplier_says_what_it_shows_alone_and_where_it_went_with_the_others() -> None:
    one = axis_finding(AXES[0], 1.0, (0, 1))
    alone = "best point gain 0.0182 nats/token (95 % CI 0.0168 … 0.0196), p = 0.0004 after Holm; "
    alone += "shrunken optimum +1.10 log2"
    done = passes((one,)).passes[0]
    untested = done.model_copy(update={"moves": ()})
    for told, axis, text in (
        (done, one, f"1 → 2.144 (all together); {alone}"),
        (done, {"reason": "jointly"}, f"1 → 2.144 (all together); {alone}; alone its gain is not shown"),
        (done, {"reason": "too little"}, f"kept: {alone}; too little beside the others' gain"),
        (done, {"reason": "not better"}, f"kept: {alone}"),
        (done, {"reason": "move failed"}, f"{alone}; the joint move was not better"),
        (untested, {"reason": "move failed"}, f"{alone}; the joint move was too small to test"),
    ):
        axis = axis if isinstance(axis, AxisFinding) else one.model_copy(update=axis)
        result = passes((axis,)).model_copy(update={"passes": (told.model_copy(update={"axes": (axis,)}),)})
        assert words.why(stage(result), axis) == text


def test_a_joint_move_says_what_was_promised_and_what_fresh_seeds_show() -> None:
    done = passes((axis_finding(AXES[0], 1.0, (0, 1)),)).passes[0]
    small = done.prediction.model_copy(update={"gain": Interval(0.002, 0.001, 0.003)})
    lost = done.moves[0].model_copy(update={"comparison": comparison("incumbent", None, (0, 1)), "p_value": 1.0})
    promised = "The curves ask 1 multiplier to move: predicted gain 0.0020 nats/token (95 % CI 0.0010 … 0.0030), "
    promised += "if they do not act on one another."
    for changed, said in (
        ({"prediction": small, "moves": ()}, [promised, "Not tested: the fresh seeds show gains from about 0.0040"]),
        ({}, ["On fresh seeds, moved all together: gain 0.0190 nats/token", "p = 0.002 after Bonferroni; taken."]),
        ({"moves": (lost,)}, ["gain not known, for a seed diverged here or at the incumbent; not better."]),
    ):
        text = " ".join(
            words.summary(stage(passes().model_copy(update={"passes": (done.model_copy(update=changed),)})))
        )
        assert all(each in text for each in said), text


@pytest.mark.parametrize(
    ("gain", "told"),
    [
        (BETTER, "confirmed: 0.0200 nats/token better (95 % CI 0.0100 … 0.0300)"),
        (WORSE, "worse: by 0.0200 nats/token (95 % CI 0.0100 … 0.0300)"),
        (UNCLEAR, "no gain shown: 0.0000 nats/token (95 % CI −0.0100 … 0.0100)"),
        (None, "no gain shown: the incumbent diverged on 0, untuned on 2 of 3 seeds"),
    ],
)
def test_a_confirmation_says_what_its_interval_does(gain: Interval | None, told: str) -> None:
    found = confirmation((comparison("untuned", gain, (0, 1, 2)),), START)
    assert words.summary(found) == [f"Against untuned: {told}."]
    assert words.verdict(found, found.comparisons[0]) == told


def saved(value: float, low: float, high: float, beyond: bool = False) -> TokensSaved:
    return TokensSaved(Interval(value, low, high), beyond, level=2.0, slope=-0.1, bend=0.0)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            saved(1.32, 1.2, 1.45),
            "Tokens saved: untuned needs 1.32 × (95 % CI 1.20 … 1.45) the tokens for the same loss",
        ),
        (
            saved(1.05, 0.96, 1.14),
            "No tokens saved that the seeds can show: "
            "untuned needs 1.05 × (95 % CI 0.96 … 1.14) the tokens for the same loss",
        ),
        (saved(0.8, 0.7, 0.9), "Tokens lost: untuned needs 0.80 × (95 % CI 0.70 … 0.90) the tokens for the same loss"),
        (
            saved(1.9, 1.62, 1.9, beyond=True),
            "Tokens saved: untuned does not reach the same loss with 1.9 × the tokens (95 % CI from 1.62)",
        ),
        (
            saved(1.9, 0.9, 1.9, beyond=True),
            "No tokens saved that the seeds can show: "
            "untuned does not reach the same loss with 1.9 × the tokens (95 % CI from 0.90)",
        ),
        (None, "In tokens over untuned: not known, a seed diverged or more tokens do not lower its loss"),
    ],
)
def test_a_gain_in_tokens_says_what_its_interval_does(found: TokensSaved | None, told: str) -> None:
    gain = token_gain("untuned").model_copy(update={"saved": found})
    assert words.summary(confirmation((comparison("untuned", BETTER, (0, 1, 2)),), START, tokens=gain)) == [
        f"{told}.",
        "Against untuned: confirmed: 0.0200 nats/token better (95 % CI 0.0100 … 0.0300).",
    ]


def test_of_several_better_finalists_the_first_is_taken() -> None:
    pairs = zip((BETTER, Interval(0.01, 0.005, 0.015), UNCLEAR), (0.01, 0.02, 1.0), strict=True)
    finalists = tuple(
        Verified(comparison=comparison("incumbent", gain, (7, 8), f"candidate {place}"), p_value=p)
        for place, (gain, p) in enumerate(pairs)
    )
    search = Search(sampler="random", axes=("key",), radius=1.0, centre_losses={0: 2.0}, candidates=(), best=None)
    found = stage(JointSearch(search=search, finalists=finalists))
    assert [words.verdict(found, each) for each in found.comparisons] == ["taken", "better, not the best", "not better"]
    assert words.summary(found)[-1] == "Taken: candidate 0."


@pytest.mark.parametrize(
    ("flops", "told"),
    [
        (None, "as the plan says"),
        (2e12, "what the 2e+12 FLOPs of the search for the incumbent buy"),
        (0.0, "the least there can be, for no earlier stage has searched for the incumbent"),
    ],
)
def test_a_random_search_says_what_it_was_given(flops: float | None, told: str) -> None:
    one = Candidate(round=1, offsets={"key": 0.5}, losses={0: 2.5})
    search = Search(sampler="random", axes=("key",), radius=1.0, centre_losses={}, candidates=(one,), best=0)
    found = stage(BaselineSet(tuned=(), random=RandomSearch(search=search, flops=flops)))
    best = "candidate 1 is best at 2.5000 nats/token"
    head = "random search: 1 candidates around untuned on one seed each"
    assert words.summary(found) == [f"{head}, {told}; {best}."]


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({0: None}, {0: None}, "both diverged"),
        ({0: None}, {0: 2.0}, "worse: a diverged"),
        ({0: 2.0}, {}, "better: b diverged"),
        ({0: 2.0}, {0: 2.0}, "not known: one seed cannot tell"),
    ],
)
def test_a_comparison_without_a_gain_says_which_side_diverged(ours, theirs, told: str) -> None:
    found = Comparison(candidate="a", reference="b", candidate_losses=ours, reference_losses=theirs, gain=None)
    assert words.outcome(found) == told

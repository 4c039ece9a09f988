"""Tokens saved on the page: headline, claims, table and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_run import (
    COMPARISONS,
    SHAPE,
    comparison,
    confirmation,
    synthetic_findings,
    token_gain,
    write_run,
)  # fmt: skip

from mup_tune import stats
from mup_tune.findings.confirmation import TokenGain
from mup_tune.report.claims import claims_of, headline
from mup_tune.report.figures.tokens import seeds_levelled, token_curve
from mup_tune.report.page import render
from mup_tune.report.words import section
from mup_tune.run.verdict import last_confirmation
from mup_tune.run.view import RunView, load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval

START = untuned(SHAPE)


def run_with(folder: Path, tokens: TokenGain, comparisons=COMPARISONS) -> RunView:
    first, second, _ = synthetic_findings((0, 1, 2), COMPARISONS)
    last = confirmation(comparisons, second.after, tokens=tokens)
    return load_run(write_run(folder / "run", (first, second, last), {"elr-tuned": first.after}))


def titled(run: RunView) -> tuple[str, str]:
    found = last_confirmation(run.findings)
    return headline(run.findings, claims_of(found), len(run.plan.stages), run.live)


def test_the_page_shows_the_factor_with_its_curve(tmp_path: Path) -> None:
    gain = token_gain()
    assert gain.saved is not None
    page = re.sub(r"\s+", " ", render(run_with(tmp_path, gain)))
    value, low, high = gain.saved.factor.value, gain.saved.factor.low, gain.saved.factor.high
    said = f"Confirmed: the same loss as the best that learning rate alone can do, with 1/{value:.2f} of the tokens"
    assert f"<h1>{said}</h1>" in page
    assert page.count("<small>its tokens</small>") == 1  # beside the nats of that reference alone
    assert f"<b>{value:.2f} × <small>its tokens</small></b>" in page
    assert f"for the same loss, 95 % CI {low:.2f} to {high:.2f} ×" in page
    assert page.count('<th scope="row">elr-tuned</th><td class="n">1') == 4
    for horizon in gain.horizons:
        assert f"{horizon.tokens:,}</td>" in page
        assert f"{stats.mean(horizon.losses):.4f}</td>" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("changes", "title", "below"),
    [
        (
            {"gain": 0.3},
            "Confirmed: the same loss as elr-tuned, with less than 1/1.90 of the tokens",
            "Tokens saved: elr-tuned",
        ),
        ({"gain": 0.0, "noise": 0.01}, "Confirmed: 45.2 mnat/token lower loss than elr-tuned", "No tokens saved that"),
        ({"gain": -0.05}, "Confirmed: 45.2 mnat/token lower loss than elr-tuned", "Tokens lost: elr-tuned needs 0."),
        ({"lost": 11}, "Confirmed: 45.2 mnat/token lower loss than elr-tuned", "In tokens over elr-tuned: not known"),
        ({"reference": "untuned"}, "Confirmed: 45.2 mnat/token lower loss than elr-tuned", "Tokens saved: untuned"),
    ],
)
def test_the_headline_names_tokens_where_they_are_shown_against_the_hardest_reference(
    tmp_path: Path, changes, title: str, below: str
) -> None:
    said = titled(run_with(tmp_path, token_gain(**changes)))
    assert said[0] == title
    assert said[1].startswith(below)
    assert "Gain +45.2, 95 % CI +38.1 to +52.3 mnat/token, over 3 seeds." in said[1]


def test_a_gain_that_is_not_confirmed_is_not_claimed_in_tokens(tmp_path: Path) -> None:
    unclear = comparison("elr-tuned", Interval(0.01, -0.01, 0.03), (10, 11, 12))
    assert titled(run_with(tmp_path, token_gain(), (unclear,)))[0] == "No confirmed gain over elr-tuned"


def test_claims_carry_tokens_for_their_own_reference_alone() -> None:
    gain = token_gain("untuned")
    claims = claims_of(confirmation(COMPARISONS, START, tokens=gain))
    assert [each.saved for each in claims] == [None, gain.saved, None]


def test_without_horizons_there_is_no_section() -> None:
    assert section(confirmation(COMPARISONS, START), "a") == ""


def test_levelled_seeds_keep_means_and_paired_differences() -> None:
    gain = token_gain()
    rows = [gain.candidate_losses, *(each.losses for each in gain.horizons)]
    levelled = seeds_levelled(rows)
    assert [stats.mean(row) for row in levelled] == pytest.approx([stats.mean(row) for row in rows])
    before, after = (stats.paired_gain(first, second) for first, second, *_ in (rows, levelled))
    assert (after.value, after.low, after.high) == pytest.approx((before.value, before.low, before.high))
    spread = [max(row.values()) - min(row.values()) for row in levelled]
    assert max(spread) < min(max(row.values()) - min(row.values()) for row in rows)


@pytest.mark.parametrize("changes", [{}, {"gain": 0.3}, {"gain": -0.05}, {"lost": 11}, {"seeds": (10,)}])
def test_every_outcome_can_be_drawn(changes) -> None:
    gain = token_gain(**changes)
    drawn = token_curve(gain, "a")
    assert "tuned, at 1×" in drawn
    assert "NaN" not in drawn
    assert (f"{gain.saved.factor.value:.2f}×" in drawn) if gain.saved else gain.saved is None


def test_a_reference_whose_every_seed_diverged_is_drawn() -> None:
    gain = token_gain()
    gone = gain.horizons[-1].model_copy(update={"losses": dict.fromkeys((10, 11, 12))})
    assert token_curve(gain.model_copy(update={"horizons": (*gain.horizons[:-1], gone), "saved": None}), "a")

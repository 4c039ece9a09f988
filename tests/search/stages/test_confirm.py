"""The ``confirm`` stage: fresh seeds, verdicts, and references that must exist."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, log2

import numpy as np
import pytest
from landscapes import START, Landscape, bowl, context, counts, drive
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import Finding, State
from mup_tune.report.words import summary
from mup_tune.search.stage import Stage
from mup_tune.search.stages.confirm import Confirm

BETTER = START.scaled({"key": 2.0})
GOOD_KEY = bowl({"key": 1.0}, curvature=0.08)  # BETTER gains 0.04


def compared(landscape, incumbent=BETTER, reference=START, **fields):
    stage = Confirm(against=["untuned"], **fields)
    driven = drive(stage, landscape, context(), incumbent=incumbent, references={"untuned": reference})
    return driven, driven.conclusion.finding.comparisons[0]


def test_seeds_are_fresh():
    driven, _ = compared(Landscape(GOOD_KEY))
    assert {row.trial.seed for row in driven.known.values()} == {1000, 1001, 1002, 1003}
    clash = replace(context(), seeds=(0, 1001, 1000))
    assert Confirm(against=["untuned"]).seeds(clash) == (1002, 1003, 1004, 1005)
    assert len(driven.known) == 8
    assert driven.conclusion.state.incumbent == BETTER


def test_verdicts():
    driven, found = compared(Landscape(GOOD_KEY))
    assert found.outcome == "better"
    assert summary(driven.conclusion.finding)[0].startswith("Against untuned: confirmed: 0.0")
    assert found.gain.value == pytest.approx(0.04, abs=0.01)
    driven, found = compared(Landscape(GOOD_KEY), incumbent=START, reference=BETTER)
    assert found.outcome == "worse"
    assert summary(driven.conclusion.finding)[0].startswith("Against untuned: worse: by 0.0")
    _, found = compared(Landscape(GOOD_KEY, noise=0.2))
    assert found.outcome == "unclear"
    driven, found = compared(Landscape(GOOD_KEY), incumbent=START, reference=START)
    assert found.outcome == "unclear"
    assert summary(driven.conclusion.finding)[0].startswith("Against untuned: no gain shown: 0.0000")


def test_nothing_is_claimed_too_often_and_the_gain_is_covered():
    null = [compared(Landscape(bowl({}), draw=draw))[1] for draw in range(200)]
    assert np.mean([each.outcome == "better" for each in null]) <= 0.055
    real = [compared(Landscape(GOOD_KEY, noise=0.01, draw=draw))[1].gain for draw in range(200)]
    assert 0.90 < np.mean([gain.low <= 0.04 <= gain.high for gain in real]) < 0.99


def test_divergence_is_told_instead_of_averaged():
    unstable = Landscape(GOOD_KEY, diverges=lambda at, seed: at["key"] == 0 and seed == 1001)
    driven, found = compared(unstable)
    assert (found.gain, found.outcome) == (None, "unmeasured")
    said = "Against untuned: no gain shown: the incumbent diverged on 0, untuned on 1 of 4 seeds."
    assert summary(driven.conclusion.finding) == [said]
    driven, _ = compared(unstable, incumbent=START, reference=BETTER)
    assert summary(driven.conclusion.finding)[0].startswith("Against untuned: worse: the incumbent diverged on 1")


def test_gains_by_source_are_paired_like_the_gain_and_one_that_is_lost_is_told():
    driven, plain = compared(Landscape(GOOD_KEY))
    assert plain.by_source == {}

    def mixed(row):
        shift = 0.1 * (row.trial.settings == BETTER) + 1e-3 * (row.trial.seed % 2)
        return replace(row, metrics={"loss.prose": row.loss, "loss.code": row.loss + shift, "loss_x1": 3.0})

    known = {key: mixed(row) for key, row in driven.known.items()}
    stage, state = Confirm(against=["untuned"]), State(BETTER, {"untuned": START})
    finding = stage.conclude(context(), state, known).finding
    found = finding.comparisons[0]
    assert found.gain == plain.gain == found.by_source["prose"]
    assert list(found.by_source) == ["prose", "code"]
    assert found.by_source["code"].value == pytest.approx(plain.gain.value - 0.1)
    assert len(summary(finding)) == 2
    assert summary(finding)[1].startswith("On code alone the incumbent is worse than untuned by 0.0")
    one = next(key for key, row in known.items() if row.trial.settings == START)
    known[one] = replace(known[one], status="diverged", loss=float("nan"), metrics={})
    lost = stage.conclude(context(), state, known).finding.comparisons[0]
    assert (lost.gain, lost.by_source) == (None, {})


def test_wrong_fields():
    for fields in ({"against": []}, {"against": ["a", "a"]}, {"against": ["a"], "n_seeds": 1}):
        with pytest.raises(ValidationError):
            Confirm(**fields)


def test_kinds_are_told_apart_by_their_name():
    for kind, stage in Stage.kinds.items():
        assert stage.model_fields["kind"].default == kind


HORIZONS = (1.1, 1.3, 1.9)
PLANNED = context().budget.total_tokens
SLOPE = 0.1  # nats/token that e times the tokens gain


def falling(drift: float = -0.4):
    """Loss falls with ln tokens, and the best ELR moves by ``drift`` log2 for every doubling of them."""

    def longer(at, tokens: int) -> float:
        doublings = log2(tokens / PLANNED)
        return 0.1 * (at["elr"] - drift * doublings) ** 2 - SLOPE * doublings * log(2)

    return longer


def told(landscape: Landscape, **fields):
    driven, _ = compared(landscape, horizons=HORIZONS, **fields)
    return driven, driven.conclusion.finding.result.tokens


def test_a_gain_is_told_in_tokens_with_the_reference_at_its_own_elr() -> None:
    driven, found = told(Landscape(GOOD_KEY, noise=1e-4, longer=falling()))
    assert found.saved is not None
    assert found.saved.factor.value == pytest.approx(exp(0.04 / SLOPE), rel=0.01)
    assert found.shown
    assert [each.factor for each in found.horizons] == [1.0, *HORIZONS]
    assert [each.tokens for each in found.horizons] == [round(x * PLANNED) for x in (1.0, *HORIZONS)]
    best = [START.elr * 2 ** (-0.4 * log2(x)) for x in (1.0, *HORIZONS)]
    assert [each.elr for each in found.horizons] == pytest.approx(best, rel=0.01)
    # The line is trained on the tuning seeds alone, every horizon on the fresh ones.
    at_longest = {row.trial.seed for row in driven.known.values() if row.trial.budget.total_tokens > 1.8 * PLANNED}
    assert at_longest == {0, 1, 2, 1000, 1001, 1002, 1003}
    assert all(set(each.losses) == {1000, 1001, 1002, 1003} for each in found.horizons)
    assert summary(driven.conclusion.finding)[0].startswith("Tokens saved: untuned needs 1.49 × (95 % CI 1.")


def test_a_reference_at_the_elr_of_the_shorter_run_would_flatter() -> None:
    _, tuned = told(Landscape(GOOD_KEY, noise=1e-4, longer=falling(-0.5)))
    held = Landscape(GOOD_KEY, noise=1e-4, longer=lambda at, tokens: falling(-0.5)({"elr": 0.0}, tokens))
    _, handicapped = told(held)
    assert tuned.saved.factor.value == pytest.approx(exp(0.04 / SLOPE), rel=0.02)
    assert handicapped.saved.factor.value > 1.1 * tuned.saved.factor.value


def test_the_line_of_elr_goes_on_once_where_its_edge_is_best_and_no_stage_takes_more_than_its_most() -> None:
    for drift in (0.0, -0.4, -3.0, 3.0):
        landscape = Landscape(GOOD_KEY, noise=1e-4, longer=falling(drift))
        driven, found = told(landscape)
        stage = Confirm(against=["untuned"], horizons=HORIZONS)
        expected, most = counts(stage, context(), State(BETTER, {"untuned": START}))
        assert expected <= len(driven.known) <= most
        moved = log2(found.horizons[-1].elr / START.elr)
        assert abs(moved) <= 1
        if abs(drift) == 3:
            assert len(driven.known) == most
            assert moved == pytest.approx(1.0 if drift > 0 else -1.0)


def test_horizons_are_forecast() -> None:
    """Two Settings and three horizons on 4 seeds; the line's three points on 3."""
    plain = counts(Confirm(against=["untuned"]), context(), State(BETTER, {"untuned": START}))
    longer = Confirm(against=["untuned"], horizons=HORIZONS)
    expected, most = counts(longer, context(), State(BETTER, {"untuned": START}))
    assert plain == (8, 8)
    assert (expected, most) == (8 + 3 * 4 + 3 * 3, 8 + 3 * 4 + 3 * 3 + 3)


def test_where_tokens_cannot_be_told() -> None:
    flat = Landscape(GOOD_KEY, noise=1e-4, longer=lambda at, tokens: 0.1 * log(tokens / PLANNED))
    driven, found = told(flat)
    assert found.saved is None
    assert summary(driven.conclusion.finding)[0].startswith("In tokens over untuned: not known")
    _, found = told(Landscape(GOOD_KEY, longer=falling(), diverges=lambda at, seed: at["elr"] < 0 and seed == 1001))
    assert found.saved is None
    assert found.horizons[-1].losses[1001] is None


def test_tokens_are_measured_against_one_reference() -> None:
    other = START.scaled({"key": 0.5}).model_copy(update={"name": "other"})
    stage = Confirm(against=["untuned", "other"], tokens_against="other", horizons=HORIZONS)
    landscape = Landscape(GOOD_KEY, noise=1e-4, longer=falling())
    driven = drive(stage, landscape, context(), incumbent=BETTER, references={"untuned": START, "other": other})
    found = driven.conclusion.finding
    assert found.result.tokens.reference == "other"
    assert found.result.tokens.horizons[0].losses == found.comparisons[1].reference_losses
    assert Confirm(against=["untuned", "other"]).hardest == "untuned"


def test_horizons_that_few_steps_cannot_tell_apart() -> None:
    stage, state = Confirm(against=["untuned"], horizons=(1.1, 1.2)), State(BETTER, {"untuned": START})
    with pytest.raises(UserError, match="not told apart in 4 steps") as error:
        counts(stage, context(steps=4), state)
    assert error.value.field == "horizons"


def test_a_finding_with_tokens_survives_its_file() -> None:
    driven, found = told(Landscape(GOOD_KEY, longer=falling()))
    assert found.saved is not None
    finding = driven.conclusion.finding
    assert Finding.model_validate_json(finding.model_dump_json()) == finding


@pytest.mark.parametrize(
    "fields",
    [
        {"horizons": (1.5,)},
        {"horizons": (1.3, 1.1)},
        {"horizons": (1.0, 1.5)},
        {"horizons": (1.5, 1.5)},
        {"horizons": (2.0, 9.0)},
        {"tokens_against": "b"},
    ],
)
def test_wrong_horizons_and_references(fields) -> None:
    with pytest.raises(ValidationError):
        Confirm(against=["a"], **fields)

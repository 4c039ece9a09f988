"""The ``confirm`` stage: fresh seeds, verdicts, and references that must exist."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from landscapes import START, Landscape, bowl, context, drive
from pydantic import ValidationError

from mup_tune.findings import State
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

"""The ``baselines`` stage: each reference is what its name says, and the incumbent stays."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from landscapes import AXES, START, Landscape, bowl, context, counts, drive
from pydantic import ValidationError

from mup_tune.findings import State
from mup_tune.report.words import summary
from mup_tune.search.stages.baselines import Baselines
from mup_tune.search.stages.confirm import Confirm
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.settings import falcon_h1_published, untuned

LAND = Landscape(bowl({"elr": 1.0, "key": 0.5}))
INCUMBENT = START.scaled({"key": 2.0})
EVERY = ("untuned", "ELR-tuned untuned", "falcon-h1-published", "ELR-tuned falcon-h1-published", "random search")
TRIAL = context().trials(START, [0])[0].flops


def test_each_reference_is_what_its_name_says():
    stage = Baselines(include=EVERY, trials=12)
    driven = drive(stage, LAND, context(), incumbent=INCUMBENT)
    state, finding = driven.conclusion.state, driven.conclusion.finding
    assert state.incumbent == finding.after == INCUMBENT
    assert not finding.on_path
    assert tuple(state.references) == EVERY
    assert state.references["untuned"] == untuned(context().shape)
    assert state.references["falcon-h1-published"] == falcon_h1_published()
    alone = drive(ElrEwd(settings="untuned", reference="alone", incumbent=False), LAND, context())
    tuned = state.references["ELR-tuned untuned"]
    assert tuned.content_hash() == alone.conclusion.state.references["alone"].content_hash()
    assert log2(tuned.elr / START.elr) == pytest.approx(1.0, abs=0.1)
    published = state.references["ELR-tuned falcon-h1-published"]
    assert published.multipliers == falcon_h1_published().multipliers
    assert published.elr != falcon_h1_published().elr
    Confirm(against=list(EVERY)).propose(context(), state, {})
    assert drive(stage, LAND, context(), incumbent=INCUMBENT, known=driven.known).conclusion == driven.conclusion


def test_random_search_is_the_best_of_its_candidates_on_one_seed():
    stage = Baselines(include=["random search"], trials=30, radius=1.5)
    driven = drive(stage, LAND, context())
    search = driven.conclusion.finding.result.random.search
    assert len(driven.known) == len(search.candidates) == 30
    assert {row.trial.seed for row in driven.known.values()} == {0}
    assert set(search.axes) == set(AXES) - {"ewd"}
    best = min(driven.known.values(), key=lambda row: row.loss).trial.settings
    found = driven.conclusion.state.references["random search"]
    assert found.content_hash() == best.content_hash()
    reach = [abs(x) for each in search.candidates for x in each.offsets.values()]
    assert 1.45 < max(reach) <= 1.5
    assert np.mean(reach) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("flops", "trials", "wanted"),
    [(20.5, None, 20), (20.0, None, 20), (1.5, None, 2), (0.0, None, 2), (20.5, 7, 7)],
)
def test_as_many_candidates_as_the_flops_buy(flops, trials, wanted):
    stage, state = Baselines(include=["random search"], trials=trials), State(INCUMBENT, flops=flops * TRIAL)
    proposed = stage.propose(context(), state, {})
    assert len(proposed) == wanted
    assert counts(stage, context(), state) == (wanted, wanted)
    if trials is None:
        assert sum(trial.flops for trial in proposed) <= max(flops, 2) * TRIAL * (1 + 1e-9)


def test_counts_hold_for_all():
    stage = Baselines(include=EVERY, trials=6)
    expected, most = counts(stage, context(), State(START))
    assert expected <= len(drive(stage, LAND, context()).known) <= most


def test_says_where_there_was_nothing_to_match_and_where_all_diverged():
    driven = drive(Baselines(include=["random search"]), LAND, context())
    assert "no earlier stage has searched" in summary(driven.conclusion.finding)[0]
    lost = Landscape(bowl({}), diverges=lambda at, seed: True)
    driven = drive(Baselines(include=["random search"], trials=4), lost, context())
    found = driven.conclusion.state.references["random search"]
    assert found.content_hash() == START.content_hash()
    assert "untuned stands in" in summary(driven.conclusion.finding)[0]


def test_wrong_fields():
    for fields in ({"include": []}, {"include": ["tuned"]}, {"include": ["untuned"] * 2}, {"trials": 1}):
        with pytest.raises(ValidationError):
            Baselines(**fields)

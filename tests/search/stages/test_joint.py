"""The ``joint`` stage: what it picks, what it takes, and that it does not move on noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from landscapes import SHAPE, START, Landscape, bowl, budget, context, counts, drive
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report.words import summary
from mup_tune.search.plan import load_plan
from mup_tune.search.stage import Context
from mup_tune.search.stages.joint import Joint
from mup_tune.settings import untuned

THREE = ["key", "mlp_down", "elr"]
REAL = bowl({"key": 0.8, "mlp_down": -0.7, "elr": 0.6}, curvature=0.2)
BARE = SHAPE.model_copy(update={"d_ssm": 0})


@pytest.mark.parametrize("sampler", ["tpe", "trust-region", "random"])
def test_moves_on_a_real_landscape(sampler):
    driven = drive(Joint(axes=THREE, sampler=sampler), Landscape(REAL), context())
    finding = driven.conclusion.finding
    left = REAL({axis: driven.moved.get(axis, 0.0) for axis in THREE})
    assert left < 0.4 * REAL(dict.fromkeys(THREE, 0.0))
    assert driven.conclusion.state.incumbent == finding.after
    assert [axis.decision for axis in finding.axes] == ["moved"] * 3
    assert finding.result.taken is finding.result.finalists[0]
    assert driven.rounds == 4  # three rounds of candidates, the finalists
    search = finding.result.search
    means = [np.mean(list(each.losses.values())) for each in search.candidates]
    assert search.best == int(np.argmin(means))
    assert [each.round for each in search.candidates] == [1] * 8 + [2] * 8 + [3] * 8


def test_later_rounds_use_what_the_earlier_ones_found():
    def third_round(sampler, draw):
        driven = drive(Joint(axes=THREE, sampler=sampler), Landscape(REAL, draw=draw), context(seeds=2))
        search = driven.conclusion.finding.result.search
        return np.mean([REAL(each.offsets) for each in search.candidates[16:]])

    ratios = [third_round("tpe", draw) / third_round("random", draw) for draw in range(12)]
    assert np.median(ratios) < 0.8


def test_rarely_moves_on_a_flat_landscape():
    stage = Joint(axes=THREE, sampler="random", trials=12, finalists=3)
    moved = [bool(drive(stage, Landscape(bowl({}), draw=draw), context(seeds=1)).moved) for draw in range(120)]
    assert np.mean(moved) <= 0.05


def test_candidates_share_seeds_and_the_finalists_have_their_own():
    driven = drive(Joint(axes=THREE, trials=12, batch=5, n_seeds=2), Landscape(REAL), context())
    seeds = {}
    for row in driven.known.values():
        seeds.setdefault(row.trial.settings.content_hash(), set()).add(row.trial.seed)
    fresh = {2000, 2001, 2002, 2003}
    assert sorted(map(len, seeds.values())) == [2] * 10 + [6] * 3
    assert set.union(*seeds.values()) == {0, 1} | fresh
    assert {frozenset(each - fresh) for each in seeds.values()} == {frozenset({0, 1})}
    clash = replace(context(), seeds=(0, 2001))
    assert Joint(axes=THREE).seeds(clash) == (2000, 2002, 2003, 2004)


@pytest.mark.parametrize("fields", [{}, {"trials": 11, "batch": 4, "n_seeds": 2, "finalists": 3, "verify_seeds": 5}])
def test_counts_are_exact(fields):
    stage = Joint(axes=THREE, **fields)
    driven = drive(stage, Landscape(REAL), context())
    assert counts(stage, context(), State(START)) == (len(driven.known),) * 2


def test_known_rows_replay_to_the_same_end():
    stage, at = Joint(axes=THREE, trials=10, batch=4), context(seeds=2)
    driven = drive(stage, Landscape(REAL), at)
    wanted = [trial.hash for trial in stage.propose(at, State(START), driven.known)]
    assert set(wanted) == set(driven.known)
    again = drive(stage, Landscape(lambda _: 1 / 0), at, known=driven.known)  # nothing trains
    assert (again.rounds, again.conclusion) == (0, driven.conclusion)
    some = dict(list(driven.known.items())[:-9])
    assert drive(stage, Landscape(REAL), at, known=some).conclusion == driven.conclusion


def searched(stage, sensitivity, shape=SHAPE):
    """The axes that a search goes over."""
    at, start = Context(shape, budget(), (0, 1)), untuned(shape)
    landscape = Landscape(lambda _: 0.0)
    search = drive(stage, landscape, at, start, sensitivity=sensitivity).conclusion.finding.result.search
    return search.axes


def test_top_takes_the_most_sensitive():
    curvatures = {"D.lr": 0.01, "key": 0.03, "elr": 0.5, "lm_head": 0.01, "ssm_dt": 0.2, "embedding": 0.0}
    assert searched(Joint(top=1), curvatures) == ("elr",)
    assert searched(Joint(top=3), curvatures) == ("elr", "key", "ssm_dt")
    assert searched(Joint(top=4), curvatures) == ("elr", "lm_head", "key", "ssm_dt")  # a tie: registry order
    assert searched(Joint(top=9), curvatures) == ("elr", "lm_head", "key", "ssm_dt", "D.lr")  # 0 is none
    assert searched(Joint(top=3), curvatures, BARE) == ("elr", "lm_head", "key")


def test_without_any_curvature_nothing_is_trained():
    stage, state = Joint(top=2), State(START, sensitivity={"key": 0.0}, flops=1.0)
    assert stage.propose(context(), state, {}) == []
    conclusion = stage.conclude(context(), state, {})
    assert conclusion.state == state
    assert "nothing to search" in summary(conclusion.finding)[0]


def test_all_axes_are_elr_and_what_acts():
    assert searched(Joint(axes="all"), {}) == ("elr", *MULTIPLIER_NAMES)
    bare = searched(Joint(axes="all"), {}, BARE)
    assert not {"ssm_dt", "conv1d.lr"} & set(bare)
    assert {"elr", "key", "D.lr"} - set(bare) == {"D.lr"}
    with pytest.raises(UserError, match=r"without an SSM branch .* none of ssm_dt, ssm_x"):
        searched(Joint(axes=["ssm_dt", "ssm_x"]), {}, BARE)


def test_divergence_is_no_candidate():
    edge = Landscape(REAL, diverges=lambda at, seed: at["key"] > 0.5 and seed in (1, 2001))
    driven = drive(Joint(axes=THREE), edge, context())
    assert 0 < driven.moved["key"] <= 0.5
    nowhere = Landscape(REAL, diverges=lambda at, seed: any(at.values()))
    driven = drive(Joint(axes=THREE), nowhere, context())
    assert driven.moved == {}
    assert driven.conclusion.finding.result.search.best is None
    assert "every candidate diverged" in summary(driven.conclusion.finding)[-1]
    centre = Landscape(REAL, diverges=lambda at, seed: not any(at.values()))
    driven = drive(Joint(axes=THREE), centre, context())
    assert driven.moved == {}
    assert "a seed diverged here or at the incumbent" in summary(driven.conclusion.finding)[-2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either `top`"),
        ({"top": 3, "axes": ["key"]}, "give either `top`"),
        ({"axes": "forward"}, "'forward' is not allowed: give 'all' or a list"),
        ({"axes": ["keys"]}, "did you mean 'key'"),
        ({"axes": []}, "at least one axis"),
        ({"axes": ["key", "key"]}, "each once"),
        ({"axes": ["key"], "trials": 1}, "finalists = 2 must not exceed trials = 1"),
        ({"axes": ["key"], "sampler": "cmaes"}, "'tpe', 'gp', 'cma-es', 'trust-region' or 'random'"),
        ({"axes": ["key"], "radius": 0.01}, "greater than or equal to 0.125"),
    ],
)
def test_wrong_fields_name_value_and_fix(fields, message):
    with pytest.raises(ValidationError, match=message):
        Joint(**fields)


PLAN = """
proxy: cpu-32
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 320}
stages: [%s]
"""


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{kind: joint, top: 8}", r"stages\[0\].top: top = 8 but earlier stages measure only 0 axes. Put a `surface`"),
        ("{kind: joint, axes: [keyy]}", r"stages\[0\].axes: unknown axis 'keyy'; did you mean 'key'"),
        ("{kind: joint, axes: [key], radius: 0.125, trials: 17, batch: 4}", "key holds 16 different .* fewer than 20"),
    ],
)
def test_plans_are_refused_before_anything_trains(tmp_path, stage, message):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN % stage)
    with pytest.raises(UserError, match=message):
        load_plan(str(path))

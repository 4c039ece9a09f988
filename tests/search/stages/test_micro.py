"""The ``micro`` stage on landscapes with known optima, flat axes and interactions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landscapes import AXES, SHAPE, START, Landscape, bowl, budget, context, counts, drive, title
from pydantic import ValidationError

from mup_tune.findings import State
from mup_tune.multipliers import GROUPS
from mup_tune.report.words import summary, verdict, why
from mup_tune.search.stage import Context
from mup_tune.search.stages.micro import Micro
from mup_tune.settings import untuned

THREE = ["key", "mlp_down", "lm_head"]


def decisions(driven):
    return {each.axis: each.decision for each in driven.conclusion.finding.axes}


def test_moves_what_matters_and_keeps_what_is_flat():
    driven = drive(Micro(group="forward"), Landscape(bowl({"key": 1.2, "ssm_dt": -0.8}, skew=0.1)), context())
    assert driven.moved == pytest.approx({"key": 1.2, "ssm_dt": -0.8}, abs=0.2)
    found = decisions(driven)
    assert (found.pop("key"), found.pop("ssm_dt")) == ("moved", "moved")
    assert set(found.values()) <= {"flat", "kept"}
    assert len(found) == 10
    assert driven.rounds == 3  # grid, refinement, joint move
    finding = driven.conclusion.finding
    assert finding.sigma_delta == pytest.approx(0.003 * 2**0.5, rel=0.3)
    assert finding.comparisons[0].gain.low > 0
    assert [point.offset for point in finding.axes[2].points] == [-2, -1, 0, 0.5, 1, 1.5, 2]


def test_all_trials_of_a_group_go_out_at_once_and_share_the_centre():
    first = Micro(group=THREE).propose(context(), State(START), {})
    assert len(first) == 3 * (3 * 4 + 1)
    assert sum(trial.settings == START for trial in first) == 3


def test_flat_multipliers_rarely_move():
    moved = 0
    for draw in range(160):
        driven = drive(Micro(group=THREE), Landscape(bowl({}), draw=draw), context(seeds=2))
        moved += bool(driven.moved)
    assert moved / 160 <= 0.06


def test_a_moved_optimum_is_unbiased():
    found = [
        drive(Micro(group=THREE), Landscape(bowl({"key": 1.3}), noise=0.005, draw=draw), context(seeds=2)).moved
        for draw in range(40)
    ]
    hits = [each["key"] for each in found if "key" in each]
    assert len(hits) > 33
    assert np.mean(hits) == pytest.approx(1.3, abs=0.06)


def redundant(at):
    """Two multipliers of which only the product counts: either alone wants +2, both together only +1 each."""
    over = at["key"] + at["mlp_down"] - 2
    return 0.025 * over**2 + 0.05 * max(0.0, over - 1) ** 2


def hostile(at):
    return 0.025 * ((at["key"] - 2) ** 2 + (at["mlp_down"] - 2) ** 2) + 2 * (at["key"] * at["mlp_down"]) ** 2


def test_a_joint_move_that_overshoots_is_halved():
    driven = drive(Micro(group=THREE), Landscape(redundant), context())
    assert driven.moved == pytest.approx({"key": 1.0, "mlp_down": 1.0}, abs=0.15)
    whole, half, quarter = driven.conclusion.finding.result.passes[0].moves
    assert [each.better for each in (whole, half, quarter)] == [False, True, True]
    assert half.comparison.gain.value == pytest.approx(0.1, abs=0.01)
    finding = driven.conclusion.finding
    told = [verdict(finding, each) for each in finding.comparisons]
    assert told == ["not better", "taken", "better, not the best"]


def test_a_joint_move_that_is_worse_at_every_share_is_dropped():
    driven = drive(Micro(group=THREE), Landscape(hostile), context())
    assert driven.moved == {}
    assert driven.conclusion.state.incumbent == START
    assert decisions(driven)["key"] == decisions(driven)["mlp_down"] == "dropped"
    assert len(driven.conclusion.finding.comparisons) == 3
    assert any("the joint move was not better" in each for each in summary(driven.conclusion.finding))


def test_the_joint_move_is_tested_on_seeds_that_chose_nothing():
    at = Context(SHAPE, budget(), (0, 1, 3001))
    stage = Micro(group=THREE, passes=2, verify_seeds=3)
    assert stage.seeds(at, 1) == (3000, 3002, 3003)
    assert stage.seeds(at, 2) == (3100, 3101, 3102)
    driven = drive(stage, Landscape(bowl({"key": 1.0})), at)
    (first, *_) = driven.conclusion.finding.result.passes
    for move in first.moves:
        assert set(move.comparison.candidate_losses) == set(move.comparison.reference_losses) == {3000, 3002, 3003}


class Overfit(Landscape):
    """Flat on every seed but the tuning seeds, which see ``loss``."""

    def row(self, trial):
        loss = self.loss if trial.seed < 1000 else bowl({})
        return Landscape(loss, noise=self.noise, draw=self.draw).row(trial)


def test_what_the_curves_promise_and_fresh_seeds_deny_is_rarely_moved():
    moved = 0
    for draw in range(80):
        driven = drive(Micro(group=["key"], refine=False), Overfit(bowl({"key": 1.0}), draw=draw), context(seeds=2))
        (only,) = driven.conclusion.finding.result.passes
        assert only.prediction.gain.low > 0
        assert len(only.moves) == 3
        moved += bool(driven.moved)
    assert moved / 80 <= 0.05


def test_many_small_moves_gain_together_what_none_shows_alone():
    """Twelve optima 0.4 log2 away, 4 mnat/token each, in noise of 8 mnat/token on one loss."""
    optima = {name: 0.4 * (-1) ** place for place, name in enumerate(GROUPS["forward"])}
    landscape = Landscape(bowl(optima), noise=0.008)
    driven = drive(Micro(group="forward"), landscape, context())
    found = driven.conclusion.finding
    assert all(axis.p_value > 0.05 for axis in found.axes)
    assert len(driven.moved) >= 9
    assert {axis.reason for axis in found.axes if axis.decision == "moved"} == {"jointly"}
    left = bowl(optima)({**dict.fromkeys(AXES, 0.0), **driven.moved})
    assert left < 0.35 * bowl(optima)(dict.fromkeys(AXES, 0.0))
    (only,) = found.result.passes
    assert only.prediction.gain.low < 0.048 < only.prediction.gain.high
    assert "alone its gain is not shown" in why(found, next(axis for axis in found.axes if axis.decision == "moved"))


def test_a_gain_that_the_fresh_seeds_cannot_show_is_not_tested():
    driven = drive(Micro(group=["key"]), Landscape(bowl({"key": 0.3}, curvature=0.02)), context())
    (only,) = driven.conclusion.finding.result.passes
    assert only.moves == ()
    assert 0 < only.prediction.gain.high < only.prediction.detectable
    assert any(
        sentence.startswith("Not tested: the fresh seeds show gains") for sentence in summary(driven.conclusion.finding)
    )
    # 30 seeds could show it.
    more = drive(Micro(group=["key"], verify_seeds=30), Landscape(bowl({"key": 0.3}, curvature=0.02)), context())
    assert len(more.conclusion.finding.result.passes[0].moves) == 3


def test_a_joint_move_that_diverges_is_halved():
    landscape = Landscape(bowl({"key": 2.0, "mlp_down": 2.0}), diverges=lambda at, s: at["key"] + at["mlp_down"] > 3)
    driven = drive(Micro(group=THREE), landscape, context())
    assert driven.moved == pytest.approx({"key": 1.0, "mlp_down": 1.0}, abs=0.15)


@pytest.mark.parametrize(("extend", "last"), [(0, 2.0), (1, 3.0), (2, 4.0)])
def test_an_edge_is_extended_at_most_as_often_as_said(extend, last):
    driven = drive(Micro(group=["key"], extend=extend), Landscape(bowl({"key": 7.0})), context())
    (found,) = driven.conclusion.finding.axes
    assert found.points[-1].offset == last
    assert found.decision == "edge"
    assert driven.moved["key"] == pytest.approx(last)


def test_an_extended_curve_with_an_inner_optimum_is_refined():
    driven = drive(Micro(group=["key"]), Landscape(bowl({"key": 3.1})), context())
    (found,) = driven.conclusion.finding.axes
    assert [point.offset for point in found.points][-4:] == [2.5, 3, 3.5, 4]
    assert driven.moved["key"] == pytest.approx(3.1, abs=0.15)


def test_no_refinement_where_none_is_wanted():
    driven = drive(Micro(group=["key"], refine=False), Landscape(bowl({"key": 0.8})), context())
    assert len(driven.conclusion.finding.axes[0].points) == 5
    assert driven.moved["key"] == pytest.approx(0.8, abs=0.15)


def test_diverged_points_are_left_out_and_end_the_curve():
    landscape = Landscape(bowl({"key": 0.9}), diverges=lambda at, seed: at["key"] > 1.7 and seed == 2)
    driven = drive(Micro(group=THREE), landscape, context())
    found = next(each for each in driven.conclusion.finding.axes if each.axis == "key")
    assert found.points[-1].losses[2] is None
    assert driven.moved["key"] == pytest.approx(0.9, abs=0.2)


def test_noise_at_a_cliff_does_not_hide_gains_elsewhere():
    def loss(at):
        # Beyond +1.5 the loss is a few nats and seed-dependent noise is as large.
        return bowl({"key": 1.0})(at) + (3 + 40 * (at["lm_head"] % 0.1) if at["lm_head"] > 1.5 else 0)

    driven = drive(Micro(group=THREE), Landscape(loss), context())
    assert driven.moved == pytest.approx({"key": 1.0}, abs=0.2)


def test_an_incumbent_that_diverges_moves_nothing():
    landscape = Landscape(bowl({"key": 1.0}), diverges=lambda at, seed: seed == 0 and not any(at.values()))
    driven = drive(Micro(group=THREE), landscape, context())
    assert driven.moved == {}
    assert driven.conclusion.finding.axes[0].reason == "incumbent diverged"


def test_one_seed_tells_the_noise_from_the_scatter():
    driven = drive(Micro(group="forward", n_seeds=1), Landscape(bowl({"key": 1.5}, 0.08), noise=0.002), context())
    assert driven.moved == pytest.approx({"key": 1.5}, abs=0.2)
    moved = sum(
        bool(drive(Micro(group=THREE), Landscape(bowl({}), draw=draw), context(seeds=1)).moved) for draw in range(50)
    )
    assert moved <= 3


def test_one_seed_and_three_points_move_nothing_and_say_so():
    stage = Micro(group=["key"], offsets=[-2, 0, 2], n_seeds=1)
    driven = drive(stage, Landscape(bowl({"key": 1.0})), context())
    assert driven.moved == {}
    assert any("Too few seeds" in sentence for sentence in summary(driven.conclusion.finding))


def test_weight_decay_that_cannot_act_is_not_swept():
    driven = drive(Micro(group="matrix_wd"), Landscape(bowl({"qkv.ewd": 1.0})), context(steps=500))
    assert driven.known == {}
    assert set(decisions(driven).values()) == {"not identifiable"}
    # One matrix with 8 times the ELR does reach its equilibrium: (8 ELR)² T > 1.
    faster = START.scaled({"qkv.elr": 8.0})
    driven = drive(Micro(group="matrix_wd"), Landscape(bowl({"qkv.ewd": 1.0})), context(steps=500), incumbent=faster)
    assert driven.moved == pytest.approx({"qkv.ewd": 1.0}, abs=0.2)
    assert list(decisions(driven).values()).count("not identifiable") == 6


def test_axes_without_an_ssm_branch_are_skipped_and_said():
    bare = SHAPE.model_copy(update={"d_ssm": 0})
    at = Context(bare, budget(), (0, 1))
    driven = drive(Micro(group="forward"), Landscape(bowl({})), at, incumbent=untuned(bare))
    assert set(decisions(driven)) == {"embedding", "lm_head", "key", "attention_out", "mlp_gate", "mlp_down"}
    assert any("d_ssm = 0" in each and "ssm_dt" in each for each in summary(driven.conclusion.finding))


def test_decisions_need_whole_rounds_and_never_take_a_wish_back():
    stage, state, at = Micro(group=THREE), State(START), context()
    rows = drive(stage, Landscape(bowl({"key": 1.0})), at).known
    everything = {trial.hash for trial in stage.propose(at, state, rows)}
    rng, some, before = np.random.default_rng(0), {}, set()
    for name in rng.permutation(sorted(rows)):
        some[name] = rows[name]
        wanted = {trial.hash for trial in stage.propose(at, state, some)}
        assert before <= wanted <= everything
        before = wanted
    assert before == everything
    first, second = (stage.conclude(at, state, rows) for _ in range(2))
    assert first == second


def test_rows_of_other_trials_change_nothing():
    stage, at = Micro(group=THREE), context()
    driven = drive(stage, Landscape(bowl({"key": 1.0})), at)
    other = drive(Micro(group=["D.lr"]), Landscape(bowl({"D.lr": 1.0})), replace(at, seeds=(7, 8))).known
    assert stage.conclude(at, State(START), {**driven.known, **other}) == driven.conclusion


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": "foward"}, "did you mean 'forward'"),
        ({"group": ["keys"]}, "did you mean 'key'"),
        ({"group": []}, "at least one multiplier"),
        ({"group": ["key", "key"]}, "each once"),
        ({"group": "forward", "offsets": [0, 1, 2]}, "offsets below 0"),
    ],
)
def test_wrong_fields_name_value_and_fix(fields, message):
    with pytest.raises(ValidationError, match=message):
        Micro(**fields)


def test_every_group_of_the_registry_can_be_named():
    for group in GROUPS:
        wanted = Micro(group=group).propose(context(), State(START), {})
        assert len(wanted) == len(context().seeds) * (1 + 4 * len(GROUPS[group]))


def test_sensitivity_is_the_curvature_and_0_where_none_is_shown():
    landscape = Landscape(bowl({"key": 0.6}, curvature=0.08), noise=0.002)
    driven = drive(Micro(group="forward"), landscape, context())
    found = driven.conclusion.state.sensitivity
    assert set(found) == set(GROUPS["forward"])
    assert found["key"] == pytest.approx(0.08, rel=0.1)
    assert sum(value > 0 for value in found.values()) <= 3  # noise shows a curvature in one of forty flat axes
    assert max(found, key=found.__getitem__) == "key"
    key = f"{1e3 * found['key']:.3g}"
    assert title(driven.conclusion.finding).startswith(f"Most sensitive: key ({key} mnat/token per (log2)²)")
    nothing = drive(Micro(group=THREE), Landscape(bowl({}), draw=1), context()).conclusion
    assert title(nothing.finding) == "No curvature shown on any axis"
    assert nothing.state.sensitivity == dict.fromkeys(THREE, 0.0)


def test_sensitivity_replaces_what_was_known_of_the_group_alone():
    state = State(START, sensitivity={"key": 9.0, "D.lr": 0.3})
    at = context()
    driven = drive(Micro(group=["key"]), Landscape(bowl({"key": 0.5})), at)
    after = Micro(group=["key"]).conclude(at, state, driven.known).state.sensitivity
    assert after["D.lr"] == 0.3
    assert after["key"] == pytest.approx(0.05, rel=0.2)
    assert title(driven.conclusion.finding) == ""  # one axis ranks nothing


def test_counts_are_the_trials_of_a_quiet_and_of_the_longest_walk():
    at, state = context(), State(START)
    test = 6 * (1 + 3)  # fresh seeds × (incumbent, three shares)
    assert counts(Micro(group=THREE), at, state) == (3 * 13 + test, 3 * (1 + 3 * (4 + 2 + 2)) + test)
    quiet = Micro(group=THREE, refine=False, extend=0, n_seeds=2)
    assert counts(quiet, at, state) == (2 * 13 + test, 2 * 13 + test)
    twice = quiet.model_copy(update={"passes": 2, "verify_seeds": 4})
    assert counts(twice, at, state) == (2 * 13 + 16, 2 * (2 * 13 + 16))
    assert counts(Micro(group="matrix_wd"), context(steps=500), state) == (0, 0)


@settings(max_examples=20)
@given(
    optima=st.dictionaries(st.sampled_from(["qkv.elr", "qkv.ewd", "key"]), st.floats(-6, 6)),
    coupling=st.floats(-0.02, 0.02),
    cliff=st.floats(0.2, 8),
    passes=st.integers(1, 3),
    verify=st.integers(2, 4),
    extend=st.integers(0, 3),
    steps=st.sampled_from([500, 20_000]),
    refine=st.booleans(),
    seeds=st.integers(1, 2),
    draw=st.integers(0, 99),
)
def test_no_walk_asks_for_more_than_most(optima, coupling, cliff, passes, verify, extend, steps, refine, seeds, draw):
    stage = Micro(group=["qkv.elr", "qkv.ewd", "key"], passes=passes, verify_seeds=verify, extend=extend, refine=refine)

    def loss(at):
        return bowl(optima)(at) + coupling * at["qkv.elr"] * at["key"]

    landscape = Landscape(loss, draw=draw, diverges=lambda at, seed: max(at["qkv.elr"], at["key"]) > cliff + seed / 4)
    at = context(seeds=seeds, steps=steps)
    driven = drive(stage, landscape, at)
    expected, most = counts(stage, at, State(START))
    assert len(driven.known) <= most
    assert expected <= most
    if driven.moved and passes == 1 and extend == 0 and not refine:
        assert len(driven.known) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passes": 0}, "greater than or equal to 1"),
        ({"passes": 6}, "less than or equal to 5"),
        ({"verify_seeds": 1}, "greater than or equal to 2"),
        ({"verify_seeds": 51}, "less than or equal to 50"),
        ({"offsets": [0]}, r"\[0.0\] is not allowed: a grid has offsets below 0, 0 itself and offsets above 0"),
    ],
)
def test_passes_seeds_and_grids_of_one_point_are_checked(fields, message):
    with pytest.raises(ValidationError, match=message):
        Micro(group=["key"], **fields)

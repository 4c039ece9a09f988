"""Passes of the ``micro`` stage: where one joint move overshoots, further ones sweep around it."""

from __future__ import annotations

import numpy as np
import pytest
from landscapes import AXES, START, Landscape, bowl, context, drive

from mup_tune.report.words import summary
from mup_tune.search.stages.micro import Micro

THREE = ["key", "mlp_down", "lm_head"]


def coupled(at):
    """Three multipliers of which nearly only the product counts: alone each wants +2, together +2/3."""
    total = at["key"] + at["mlp_down"] + at["lm_head"]
    return 0.025 * (total - 2) ** 2 + 0.002 * (at["key"] ** 2 + at["mlp_down"] ** 2 + at["lm_head"] ** 2)


def excess(driven, loss):
    """How far the new incumbent is above the least loss along the line where all three are alike."""
    at = {axis: driven.moved.get(axis, 0.0) for axis in AXES}
    return loss(at) - min(loss(dict.fromkeys(AXES, x)) for x in np.linspace(0, 2, 201))


def test_passes_converge_where_one_overshoots():
    once = drive(Micro(group=THREE), Landscape(coupled, noise=0.001), context())
    assert [move.better for move in once.conclusion.finding.result.passes[0].moves] == [False, True, True]
    often = drive(Micro(group=THREE, passes=5), Landscape(coupled, noise=0.001), context())
    assert excess(once, coupled) > 0.005
    assert excess(often, coupled) < 0.3 * excess(once, coupled)
    finding = often.conclusion.finding
    assert finding.before == START
    assert finding.comparisons[3].candidate.startswith("pass 2: ")
    # A later pass sweeps around the point that the one before took, and tests on seeds of its own.
    first, second, *_ = finding.result.passes
    assert [axis.axis for axis in second.axes] == THREE
    shift = first.taken.share * first.prediction.joint["key"]
    assert second.axes[0].before == pytest.approx(START.value("key") * 2**shift)
    assert set(second.moves[0].comparison.candidate_losses) == set(range(3100, 3106))


def test_later_passes_rarely_move_what_is_flat():
    """Beside an axis that matters, so that there is a second pass at all."""
    stage, wrong = Micro(group=THREE, passes=3, refine=False), 0
    for draw in range(40):
        driven = drive(stage, Landscape(bowl({"key": 1.0}, curvature=0.08), draw=draw), context(seeds=2))
        assert "key" in driven.moved
        wrong += len(driven.moved) > 1
    assert wrong <= 4  # 5 % and two standard errors


def test_passes_end_with_the_first_that_moves_nothing():
    driven = drive(Micro(group=THREE, passes=5), Landscape(bowl({"key": 1.5})), context())
    finding = driven.conclusion.finding
    assert max(axis.pass_ for axis in finding.axes) == 2
    assert next(axis.decision for axis in finding.axes if axis.pass_ == 2 and axis.axis == "key") in ("flat", "kept")
    assert any("Pass 2 moved nothing" in sentence for sentence in summary(finding))
    flat = drive(Micro(group=THREE, passes=5), Landscape(bowl({})), context())
    assert {axis.pass_ for axis in flat.conclusion.finding.axes} == {1}


def test_one_pass_is_the_first_of_many():
    landscape = Landscape(bowl({"key": 1.5, "lm_head": -1.0}))
    one, many = (drive(Micro(group=THREE, passes=n), landscape, context()) for n in (1, 4))
    first = [axis for axis in many.conclusion.finding.axes if axis.pass_ == 1]
    for alone, among in zip(one.conclusion.finding.axes, first, strict=True):
        assert (alone.points, alone.fit, alone.gain, alone.after) == (among.points, among.fit, among.gain, among.after)
        assert among.p_value == min(1.0, 4 * alone.p_value)
    assert set(one.known) <= set(many.known)
    assert one.conclusion.finding.title == "Multipliers: key, mlp_down, lm_head"
    assert one.conclusion.finding.comparisons[0].candidate == "all together"


def test_a_later_pass_may_sweep_what_was_not_identifiable():
    # With 8 times the ELR the same matrix reaches its equilibrium: η·λ·T = (ELR·8)²·T > 1.
    stage = Micro(group=["qkv.elr", "qkv.ewd"], passes=2)
    driven = drive(stage, Landscape(bowl({"qkv.elr": 3.0, "qkv.ewd": 1.0})), context(steps=500))
    found = [(axis.pass_, axis.axis, axis.decision) for axis in driven.conclusion.finding.axes]
    assert (1, "qkv.ewd", "not identifiable") in found
    assert (2, "qkv.ewd", "moved") in found

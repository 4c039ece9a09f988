"""The ``elr_ewd`` stage on landscapes with a known optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landscapes import START, Landscape, bowl, context, counts, drive
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.report.words import summary, why
from mup_tune.search.stages.elr_ewd import ElrEwd


def axis(driven, name):
    return next(each for each in driven.conclusion.finding.axes if each.axis == name)


def test_finds_both_optima_on_orthogonal_axes():
    stage = ElrEwd(ewd_offsets=[-2, -1, 0, 1, 2])
    driven = drive(stage, Landscape(bowl({"elr": 0.7, "ewd": -1.2})), context())
    assert driven.moved["elr"] == pytest.approx(0.7, abs=0.15)
    assert driven.moved["ewd"] == pytest.approx(-1.2, abs=0.15)
    assert [each.decision for each in driven.conclusion.finding.axes] == ["moved", "moved"]
    assert driven.rounds == 3
    assert len(driven.known) == 3 * (5 + 2 * 5 + 4 + 5)  # the line, two columns beside the best, EWD there, half steps
    assert axis(driven, "ewd").gain.low > 0
    after = driven.conclusion.finding.after
    assert driven.conclusion.state.incumbent == after
    assert axis(driven, "elr").after == after.elr


def test_bias_and_coverage_over_many_draws():
    found = [
        axis(
            drive(ElrEwd(), Landscape(bowl({"elr": 0.4}), noise=0.005, draw=draw), context(seeds=2)), "elr"
        ).fit.optimum
        for draw in range(150)
    ]
    assert abs(np.mean([each.value for each in found]) - 0.4) < 0.02
    assert 0.90 < np.mean([each.low <= 0.4 <= each.high for each in found]) < 0.995


@pytest.mark.parametrize(("optimum", "trained", "decision"), [(3.2, 7, "moved"), (-3.2, 7, "moved"), (9.0, 7, "edge")])
def test_an_edge_extends_the_grid_at_most_twice(optimum, trained, decision):
    found = axis(drive(ElrEwd(), Landscape(bowl({"elr": optimum})), context()), "elr")
    assert len(found.points) == trained
    assert found.decision == decision
    if decision == "edge":
        assert found.after == pytest.approx(found.before * 2**4)
        assert found.extended == 2
    else:
        assert np.log2(found.after / found.before) == pytest.approx(optimum, abs=0.2)


def test_extension_uses_the_grids_own_spacing_and_can_be_off():
    found = axis(drive(ElrEwd(elr_offsets=[-1, -0.5, 0, 0.5], extend=1), Landscape(bowl({"elr": 5})), context()), "elr")
    assert [point.offset for point in found.points] == [-1, -0.5, 0, 0.5, 1.0]
    found = axis(drive(ElrEwd(extend=0), Landscape(bowl({"elr": 5})), context()), "elr")
    assert (len(found.points), found.decision) == (5, "edge")


def test_a_cliff_above_the_optimum_is_no_edge():
    # The optimum would be at 1.4, but from 1.5 on members diverge, the point at 2 on one seed only.
    landscape = Landscape(bowl({"elr": 1.4}), diverges=lambda at, seed: at["elr"] > 1.5 and seed == 1)
    found = axis(drive(ElrEwd(), landscape, context()), "elr")
    assert len(found.points) == 5
    assert found.points[-1].losses[1] is None
    assert found.points[-1].losses[0] is not None
    assert found.decision == "moved"
    assert 0.5 < np.log2(found.after / found.before) <= 1


def test_a_start_that_diverges_has_no_gain_but_an_optimum():
    landscape = Landscape(bowl({"elr": -1.6}), diverges=lambda at, seed: at["elr"] > -0.9)
    driven = drive(ElrEwd(), landscape, context())
    found = axis(driven, "elr")
    assert found.gain is None
    assert found.decision == "moved"
    assert found.after < found.before / 2
    assert "gain not known" in why(driven.conclusion.finding, found)


def test_where_everything_diverges_the_grid_goes_down_then_gives_up():
    driven = drive(ElrEwd(), Landscape(bowl({}), diverges=lambda at, seed: True), context())
    found = axis(driven, "elr")
    assert [point.offset for point in found.points] == [-4, -3, -2, -1, 0, 1, 2]
    assert (found.decision, found.after, driven.moved) == ("kept", found.before, {})
    rescued = drive(ElrEwd(), Landscape(bowl({"elr": -4}), diverges=lambda at, seed: at["elr"] > -2.5), context())
    assert rescued.moved["elr"] <= -3


def test_a_short_run_has_an_ewd_too_and_it_is_said_what_it_is_worth():
    stage = ElrEwd(ewd_offsets=[-1, 0, 1])
    landscape = Landscape(bowl({"elr": 0.0, "ewd": 1.0}))
    said = " ".join(summary(drive(stage, landscape, context(steps=500)).conclusion.finding))
    assert "EWD says little about a longer one" in said
    assert axis(drive(stage, landscape, context(steps=500)), "ewd").decision in ("moved", "edge")
    said = " ".join(summary(drive(stage, landscape, context()).conclusion.finding))
    assert "longer one" not in said


RIDGE = {"elr": 2.0, "ewd": -1.2}  # as measured on a small model: the higher ELR, the higher EWD


def ridge(at):
    u, v = at["elr"] - RIDGE["elr"], at["ewd"] - RIDGE["ewd"]
    return 0.05 * (u - v) ** 2 + 0.006 * (u + v) ** 2


def test_a_ridge_is_followed_where_one_axis_after_the_other_stops_on_its_side():
    together, in_turn = [], []
    for draw in range(12):
        landscape = Landscape(ridge, noise=0.004, draw=draw)
        stage = ElrEwd(elr_offsets=[-1, 0, 1, 2, 3], ewd_offsets=[-2, -1, 0, 1, 2])
        moved = drive(stage, landscape, context(seeds=2)).moved
        together.append(ridge({"elr": 0.0, "ewd": 0.0, **moved}))
        first = drive(ElrEwd(elr_offsets=[-1, 0, 1, 2, 3]), landscape, context(seeds=2)).conclusion
        second = drive(
            ElrEwd(elr_offsets=[], ewd_offsets=[-2, -1, 0, 1, 2]), landscape, context(seeds=2),
            incumbent=first.state.incumbent,
        ).conclusion.state.incumbent  # fmt: skip
        in_turn.append(ridge({each: np.log2(second.value(each) / START.value(each)) for each in RIDGE}))
    assert np.mean(together) < 0.003
    assert np.mean(in_turn) > 3 * np.mean(together)


def test_a_flat_ewd_keeps_its_value():
    decisions = [
        axis(drive(ElrEwd(ewd_offsets=[-2, -1, 0, 1, 2]), Landscape(bowl({"elr": 0.3}), draw=draw), context()), "ewd")
        for draw in range(50)
    ]
    assert np.mean([each.after != each.before for each in decisions]) <= 0.06
    assert "kept" in {each.decision for each in decisions}


def test_a_reference_leaves_the_incumbent_alone():
    incumbent = START.scaled({"key": 2.0})
    stage = ElrEwd(settings="untuned", reference="tuned-untuned", incumbent=False)
    state = drive(stage, Landscape(bowl({"elr": 1.0})), context(), incumbent=incumbent).conclusion.state
    assert state.incumbent == incumbent
    assert state.references["tuned-untuned"].elr == pytest.approx(START.elr * 2, rel=0.1)
    assert state.references["tuned-untuned"].multipliers["key"] == 1
    assert set(state.references) == {"tuned-untuned"}


def test_one_seed_works():
    driven = drive(ElrEwd(n_seeds=1), Landscape(bowl({"elr": 1.0}), noise=0.002), context())
    assert len(driven.known) == 5
    assert driven.moved["elr"] == pytest.approx(1.0, abs=0.2)
    fit = axis(driven, "elr").fit
    assert fit.optimum.low < 1.0 < fit.optimum.high


def test_known_rows_of_an_earlier_stage_are_used_again():
    first = drive(ElrEwd(), Landscape(bowl({"elr": 0.0})), context())
    again = drive(ElrEwd(name="again"), Landscape(bowl({"elr": 0.0})), context(), known=first.known)
    assert again.rounds == 0
    assert again.conclusion.finding.after.elr == first.conclusion.finding.after.elr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"elr_offsets": [-1, 0]}, "offsets below 0, 0 itself and offsets above 0"),
        ({"elr_offsets": [-1, 1, 2]}, "0 itself"),
        ({"elr_offsets": [-1, 0, 0, 1]}, "holds an offset twice"),
        ({"elr_offsets": [-40, 0, 1]}, "at most ±16"),
        ({"elr_offsets": []}, "nothing would be swept"),
        ({"incumbent": False}, "needs a `reference` name"),
    ],
)
def test_wrong_fields_name_value_and_fix(fields, message):
    with pytest.raises(ValidationError, match=message):
        ElrEwd(**fields)


def test_more_seeds_than_the_plan_has():
    with pytest.raises(UserError, match=r"9 is more than the plan's 3 seeds"):
        drive(ElrEwd(n_seeds=9), Landscape(bowl({})), context())


def test_the_elrs_curvature_is_left_where_it_is_swept_for_the_incumbent():
    driven = drive(ElrEwd(ewd_offsets=[-1, 0, 1]), Landscape(bowl({"elr": 0.7, "ewd": 0.2}, 0.06)), context())
    assert driven.conclusion.state.sensitivity == pytest.approx({"elr": 0.06}, rel=0.15)
    other = ElrEwd(reference="other", incumbent=False)
    assert drive(other, Landscape(bowl({"elr": 0.7})), context()).conclusion.state.sensitivity == {}
    alone = drive(ElrEwd(elr_offsets=[], ewd_offsets=[-1, 0, 1]), Landscape(bowl({"ewd": 0.2})), context())
    assert alone.conclusion.state.sensitivity == {}
    lost = drive(ElrEwd(), Landscape(bowl({}), diverges=lambda at, seed: True), context())
    assert lost.conclusion.state.sensitivity == {"elr": 0.0}


def test_a_bowl_that_is_no_parabola_is_fitted_locally_and_says_so():
    def steep(at):
        return 0.05 * (np.exp(1.5 * (at["elr"] - 0.4)) - 1.5 * (at["elr"] - 0.4)) / 1.5**2

    driven = drive(ElrEwd(), Landscape(steep, noise=0.002), context())
    found = axis(driven, "elr")
    assert found.fit.robust
    assert found.fit.lack_of_fit < 0.01
    assert "local fits, no parabola holds" in why(driven.conclusion.finding, found)
    assert found.fit.optimum.low <= 0.4 <= found.fit.optimum.high
    assert np.log2(found.after / found.before) == pytest.approx(0.4, abs=0.25)


def test_counts_of_a_line_and_of_a_plane():
    state, stage = State(START), ElrEwd(ewd_offsets=[-1, 0, 1])
    assert counts(ElrEwd(), context(), state) == (15, 21)
    plane = (3 * (5 + 2 * 3 + 8), 3 * (7 + 2 * 3 + 2 + 2 * 8 + 9))
    assert counts(stage, context(), state) == plane
    assert counts(stage, context(steps=10), state) == plane
    assert counts(ElrEwd(elr_offsets=[], ewd_offsets=[-1, 0, 1], n_seeds=2), context(), state) == (6, 10)


@settings(max_examples=20)
@given(
    optimum=st.floats(-6, 6),
    ewd=st.floats(-6, 6),
    cliff=st.floats(-5, 8),
    extend=st.integers(0, 3),
    steps=st.sampled_from([10, 500, 5000, 20_000]),
    start=st.floats(-2, 2),
    draw=st.integers(0, 99),
)
def test_no_walk_asks_for_more_than_most(optimum, ewd, cliff, extend, steps, start, draw):
    stage = ElrEwd(ewd_offsets=[-1, -0.5, 0, 0.5], extend=extend)
    landscape = Landscape(bowl({"elr": optimum, "ewd": ewd}), draw=draw, diverges=lambda at, seed: at["elr"] > cliff)
    at, incumbent = context(seeds=2, steps=steps), START.scaled({"elr": 2.0**start})
    driven = drive(stage, landscape, at, incumbent=incumbent)
    expected, most = counts(stage, at, State(incumbent))
    assert len(driven.known) <= most
    assert expected <= most


def test_an_optimum_without_a_shown_gain_is_re_centred_and_says_so():
    """In noise this large the fitted ELR is taken to go on from, and nobody has tested it."""
    driven = drive(ElrEwd(elr_offsets=(-1, 0, 1)), Landscape(bowl({"elr": 0.3}), noise=0.05), context())
    found = axis(driven, "elr")
    assert found.after != found.before
    assert (found.decision, found.p_value > 0.05) == ("re-centred", True)
    assert summary(driven.conclusion.finding)[0].startswith("ELR: re-centred, not tested: 0.01")

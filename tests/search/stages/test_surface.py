"""The ``surface`` stage: what it gains, what it refuses, and that noise and cliffs do not move it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import log2

import numpy as np
import pytest
from landscapes import SHAPE, START, Driven, Landscape, bowl, context, counts, drive
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import Finding, State
from mup_tune.findings.surface import ResponseSurface
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.search.coordinates import coordinates
from mup_tune.search.stages.surface import EVERYTHING, UNITS, SurfaceStage

FOUR = ["ssm_out", "key", "mlp_down", "ssm_x"]
REAL = bowl({"ssm_out": 0.8, "key": -0.7, "mlp_down": 0.9, "ssm_x": -0.6}, curvature=0.05)
MIXED = coordinates(dict.fromkeys(EVERYTHING, 1.0), SHAPE)
OPTIMUM = np.random.default_rng(5).choice([-0.8, -0.4, 0.3, 0.7], size=len(MIXED))


def WIDE(at):  # noqa: N802  a landscape as the others
    """A bowl over what training depends on: every group's own ELR and EWD or η, and forward multipliers."""
    return 0.01 * float(((MIXED @ [at[axis] for axis in EVERYTHING] - OPTIMUM) ** 2).sum())


BARE = SHAPE.model_copy(update={"d_ssm": 0})
SMALL = SurfaceStage(axes=FOUR, pairs=12, rounds=2, line_seeds=3, verify_seeds=5)


def result(driven: Driven) -> ResponseSurface:
    found = driven.conclusion.finding.result
    assert isinstance(found, ResponseSurface)
    return found


def left(driven: Driven, loss, axes) -> float:
    """Share of the loss above the optimum that is still there."""
    return loss({axis: driven.moved.get(axis, 0.0) for axis in axes}) / loss(dict.fromkeys(axes, 0.0))


@cache
def small() -> Driven:
    return drive(SMALL, Landscape(REAL, noise=0.002), context())


@cache
def wide() -> Driven:
    return drive(SurfaceStage(), Landscape(WIDE, noise=0.005), context())


def test_a_bowl_of_37_axes_gives_most_of_its_gain() -> None:
    assert len(EVERYTHING) == 37
    assert left(wide(), WIDE, EVERYTHING) < 0.4
    found = result(wide())
    assert found.taken
    assert {axis.decision for axis in found.axes} <= {"moved", "kept"}
    true = WIDE(dict.fromkeys(EVERYTHING, 0.0)) - WIDE({axis: wide().moved.get(axis, 0.0) for axis in EVERYTHING})
    assert found.moved is not None
    assert found.moved.gain is not None
    assert found.moved.gain.value == pytest.approx(true, abs=0.01)
    assert 0.5 < found.rounds[0].predicted.value / found.rounds[0].shares[0].comparison.gain.value < 2
    assert found.rounds[0].noise == pytest.approx(0.005, rel=0.4)


def test_a_bowl_of_four_axes_ends_near_its_optimum() -> None:
    assert left(small(), REAL, FOUR) < 0.15
    assert small().conclusion.state.incumbent == small().conclusion.finding.after
    assert small().conclusion.finding.after.name == "surface"
    assert set(small().moved) <= set(FOUR)


def test_moves_are_those_of_the_last_centre() -> None:
    """Half of a step is rounded to 1/256 of a unit, which the moves leave out."""
    for driven in (small(), wide()):
        moves = {axis: move for axis, move in result(driven).moves.items() if abs(move) > 1 / 256}
        assert moves == pytest.approx({axis: driven.moved[axis] for axis in moves}, abs=1 / 256)


def test_a_bowl_of_no_depth_is_rarely_moved() -> None:
    stage = SurfaceStage(axes=FOUR, pairs=6, rounds=2, line_seeds=2, verify_seeds=4)
    flat = [drive(stage, Landscape(bowl({}), draw=draw), context(seeds=2)) for draw in range(40)]
    assert np.mean([bool(driven.moved) for driven in flat]) <= 0.05
    for driven in flat:
        assert result(driven).taken == bool(driven.moved)
        if not driven.moved:
            assert driven.conclusion.state.incumbent == START


def test_a_centre_that_only_looked_better_on_the_line_is_refused() -> None:
    """Along the line seeds everything but the start is better; on the verification's it is worse."""
    lucky = range(4100, 4300)

    class Luck(Landscape):
        def row(self, trial):
            found = super().row(trial)
            away = trial.settings.content_hash() != START.content_hash()
            shift = -0.1 if trial.seed in lucky else 0.02 if trial.seed >= 4000 else 0.0
            return replace(found, loss=found.loss + shift * away)

    driven = drive(SMALL, Luck(bowl({"ssm_out": 0.3}, curvature=0.02), noise=0.002), context())
    found = result(driven)
    assert found.rounds[0].taken is not None
    assert found.moved is not None
    assert found.moved.outcome == "worse"
    assert not found.taken
    assert driven.conclusion.state.incumbent == START == driven.conclusion.finding.after
    assert {axis.decision for axis in found.axes} <= {"dropped", "kept"}
    assert "dropped" in {axis.decision for axis in found.axes}
    assert all(axis.after == axis.before for axis in found.axes)


def test_cliffs_and_divergence_do_not_spoil_the_step() -> None:
    """Beyond +0.6 of one axis trials diverge, beyond +0.6 of another they are 0.5 nats higher."""

    def loss(at):
        return REAL(at) + (0.5 if at["ssm_z"] > 0.6 else 0.0)

    axes = [*FOUR, "ssm_z", "ssm_B"]
    stage = SMALL.model_copy(update={"axes": axes, "pairs": 20})
    cliff = Landscape(loss, noise=0.002, diverges=lambda at, seed: at["ssm_B"] > 0.6)
    driven = drive(stage, cliff, context())
    assert result(driven).rounds[0].diverged > 0
    assert driven.moved.get("ssm_z", 0.0) <= 0.6
    assert driven.moved.get("ssm_B", 0.0) <= 0.6
    assert left(driven, REAL, FOUR) < 0.5


def test_where_all_diverges_nothing_moves() -> None:
    driven = drive(SMALL, Landscape(REAL, diverges=lambda at, seed: True), context())
    found = result(driven)
    assert found.stop == "too many diverged"
    assert [each.diverged for each in found.rounds] == [24, 24]
    assert [each.predicted for each in found.rounds] == [None, None]
    assert (found.effects, found.moved, found.next_gain) == ((), None, None)
    assert driven.conclusion.finding.sigma_delta is None
    assert not driven.moved


def test_known_rows_replay_to_the_same_end_and_draw_the_same_trials() -> None:
    again = drive(SMALL, Landscape(REAL, noise=0.002), context())
    assert list(again.known) == list(small().known)
    replayed = drive(SMALL, Landscape(REAL, noise=0.002), context(), known=small().known)
    assert replayed.rounds == 0
    assert replayed.conclusion == small().conclusion


@pytest.mark.parametrize("stage", [SMALL, SMALL.model_copy(update={"shares": (1.0, 0.5, 0.25), "rounds": 1})])
def test_no_walk_asks_for_more_than_it_said(stage: SurfaceStage) -> None:
    _, most = counts(stage, context(), State(START))
    assert len(drive(stage, Landscape(REAL, noise=0.002), context()).known) <= most


def test_rounds_have_their_own_seeds_and_a_pair_shares_one() -> None:
    by_settings: dict[str, list[int]] = {}
    for row in small().known.values():
        by_settings.setdefault(row.trial.settings.content_hash(), []).append(row.trial.seed)
    tuned = [seeds[0] for seeds in by_settings.values() if len(seeds) == 1]
    assert set(tuned) == {0, 1, 2}
    assert tuned[:24:2] == tuned[1:24:2]
    lines = {row.trial.seed for row in wide().known.values()} - {0, 1, 2}
    searched = [each.number for each in result(wide()).rounds if each.shares]
    assert len(searched) > 1
    assert lines == {*range(4000, 4008), *(4000 + 100 * number + k for number in searched for k in range(4))}
    clash = replace(context(), seeds=(0, 4101))
    assert SMALL.line(clash, 1) == (4100, 4102, 4103)


def test_the_rope_base_moves_in_units_of_eight_octaves() -> None:
    assert UNITS["rope_base"] == 8.0
    stage = SMALL.model_copy(update={"axes": ["elr", "rope_base"], "rounds": 1, "radius": 0.75})
    driven = drive(stage, Landscape(bowl({"elr": 0.3}, curvature=0.1), noise=0.002), context())
    bases = {log2(row.trial.settings.rope_base / START.rope_base) for row in driven.known.values()}
    elrs = {log2(row.trial.settings.elr / START.elr) for row in driven.known.values() if row.trial.seed < 4000}
    assert max(bases) == pytest.approx(8 * 1.4 * 0.75, abs=0.05)
    assert max(elrs) == pytest.approx(0.5 * 1.4 * 0.75, abs=0.01)  # ELR moves all groups at once
    assert result(driven).units == {"elr": 0.5, "rope_base": 8.0}
    elr, rope = result(driven).effects
    assert elr.curvature.value == pytest.approx(0.1, rel=0.4)
    assert abs(rope.curvature.value) < 0.01  # per (log2)², of a landscape that is flat along it


def test_a_stage_beside_an_optimum_predicts_nothing_and_stops() -> None:
    stage = SMALL.model_copy(update={"rounds": 3})
    driven = drive(stage, Landscape(bowl(dict.fromkeys(FOUR, 0.0), curvature=0.1), noise=0.01), context())
    found = result(driven)
    assert found.stop == "no gain predicted"
    last = found.rounds[-1]
    assert last.shares == ()
    assert last.predicted is not None
    assert found.detectable is not None
    assert last.predicted.high < found.detectable
    assert not driven.moved


def test_curvatures_that_are_shown_are_handed_on() -> None:
    driven = drive(SMALL, Landscape(REAL, noise=0.002), context(), sensitivity={"D.lr": 0.5})
    learned = driven.conclusion.state.sensitivity
    assert learned["D.lr"] == 0.5
    shown = {each.axis: each.curvature.value for each in result(driven).effects if each.curvature.above_0}
    assert {axis: value for axis, value in learned.items() if value and axis != "D.lr"} == shown
    assert shown


def test_findings_survive_json() -> None:
    for driven in (small(), wide()):
        finding = driven.conclusion.finding
        assert Finding.model_validate_json(finding.model_dump_json()) == finding


def test_without_an_ssm_branch_its_axes_are_left_out() -> None:
    driven = drive(SMALL.model_copy(update={"axes": "all", "rounds": 1}), Landscape(REAL), context(shape=BARE))
    axes = {axis.axis for axis in result(driven).axes}
    assert axes == {axis for axis in EVERYTHING if axis not in MULTIPLIERS or not MULTIPLIERS[axis].needs_ssm}
    with pytest.raises(UserError, match="none of ssm_x does anything"):
        counts(SMALL.model_copy(update={"axes": ["ssm_x"]}), context(shape=BARE), State(START))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"axes": "some"}, "give 'all' or a list of axes"),
        ({"axes": []}, "name at least one axis"),
        ({"axes": ["elr", "elr"]}, "each once"),
        ({"axes": ["elrr"]}, "elrr"),
        ({"shares": ()}, "at least one share"),
        ({"shares": (0.5, 0.5)}, "each once"),
        ({"shares": (0.0,)}, "above 0"),
        ({"shares": (2.5,)}, "up to 2"),
        ({"pairs": 3}, "greater than or equal to 4"),
        ({"line_seeds": 1}, "greater than or equal to 2"),
        ({"verify_seeds": 1}, "greater than or equal to 2"),
        ({"rounds": 0}, "greater than or equal to 1"),
    ],
)
def test_what_a_plan_may_not_say(fields, problem) -> None:
    with pytest.raises(ValidationError, match=problem):
        SurfaceStage(**fields)


def test_shares_are_tried_from_the_largest() -> None:
    assert SurfaceStage(shares=(0.25, 1.0, 0.5)).shares == (1.0, 0.5, 0.25)

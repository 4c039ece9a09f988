"""The ``micro`` stage: every multiplier of a group swept alone around one incumbent, then moved together.

The √2 grid is Falcon-H1's (arXiv 2507.22448); the joint move, its tests and the passes are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mup_tune import stats
from mup_tune.errors import unknown
from mup_tune.findings import AxisFinding, Decision, Reason, State
from mup_tune.findings.multipliers import (
    Move,
    MultiplierPasses,
    Pass,
    Prediction,
    best_shown,
    share_label,
)
from mup_tune.findings.result import sensitivities
from mup_tune.multipliers import GROUPS, MULTIPLIER_NAMES, MULTIPLIERS
from mup_tune.search import swept_axis
from mup_tune.search.axes import acting, most_sensitive
from mup_tune.search.joint_move import horizon, identifiable, predicted, shifted
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.search.swept_axis import Grid, SweptAxis
from mup_tune.settings import Settings
from mup_tune.stats import SIGNIFICANT, Sigma

HALF = 0.5  # one √2 step in log2
REFINED = 2  # points that a refinement adds at most
SHARES = (1.0, 0.5, 0.25)  # of the joint move, in log2
FIRST_SEED = 3000  # ``confirm`` counts from 1000, ``joint`` from 2000
BETWEEN_PASSES = 100  # seeds from one pass's first to the next's


class Micro(Stage):
    """Sweeps the multipliers of a group on √2 grids, all from one incumbent, and moves them together.

    ``offsets`` count √2 steps. Many small moves gain together what none of them shows alone, so the curves
    propose and fresh seeds decide:
    (1) every curve's slope and curvature at the incumbent are shrunk by what their noise and the whole group
    say (:mod:`mup_tune.stats.shrinkage`), which gives each multiplier an optimum;
    (2) the multipliers go there together, the whole way, half and a quarter of it in log2, and meet the
    incumbent on ``verify_seeds`` seeds that chose nothing;
    (3) the best share is taken whose gain's CI, Student's t on the differences' own SD with Bonferroni over
    shares and passes, lies above 0; else nothing moves. Where even the upper end of the predicted gain is
    below what these seeds can show, nothing is tested.

    A multiplier's own gain is *shown* where its best grid point beats the incumbent at p < 0.05 after
    Bonferroni over the points it was picked from, Holm over the group and Bonferroni over the passes. That
    says where to refine and how to call a curve. It decides nothing else, and sees the first grid alone.

    With ``passes`` > 1 the group is swept again around the new incumbent, until a pass moves nothing.
    """

    kind: Literal["micro"] = "micro"
    group: str | list[str] | None = None
    top: Annotated[int, Field(ge=1)] | None = None
    offsets: Grid = (-4.0, -2.0, 0.0, 2.0, 4.0)
    refine: bool = True
    extend: Annotated[int, Field(ge=0, le=4)] = 2
    passes: Annotated[int, Field(ge=1, le=5)] = 1
    n_seeds: Annotated[int, Field(ge=1)] | None = None
    verify_seeds: Annotated[int, Field(ge=2, le=50)] = 6

    @field_validator("group")
    @classmethod
    def _known_group(cls, group: str | list[str] | None) -> str | list[str] | None:
        if group is None:
            return None
        if isinstance(group, str):
            if group not in GROUPS:
                raise ValueError(unknown("group", group, GROUPS) + "; a list of multipliers may be given as well")
            return group
        for name in group:
            if name not in MULTIPLIERS:
                raise ValueError(unknown("multiplier", name, MULTIPLIER_NAMES))
        if not group or len(set(group)) != len(group):
            raise ValueError(f"{group} is not allowed: name at least one multiplier, each once")
        return group

    @model_validator(mode="after")
    def _either(self) -> Micro:
        if (self.group is None) == (self.top is None):
            raise ValueError("give either `group` or `top` (the most sensitive of the multipliers measured before)")
        return self

    def names(self, context: Context, state: State, refuse: bool = False) -> tuple[str, ...]:
        """The multipliers of the group, or the ``top`` ones that can be swept by what stages measured."""
        if self.top is not None:
            there = acting(MULTIPLIER_NAMES, context.shape)
            swept = [name for name in there if refuse or identifiable(state.incumbent, name, context)]
            return most_sensitive(swept, state.sensitivity, self.top, refuse)
        return GROUPS[self.group] if isinstance(self.group, str) else tuple(self.group or ())

    @property
    def title(self) -> str:
        passes = f", up to {self.passes} passes" if self.passes > 1 else ""
        which = f"the {self.top} most sensitive" if self.top else self.group
        return f"Multipliers: {which if isinstance(which, str) else ', '.join(which or ())}{passes}"

    def seeds(self, context: Context, number: int) -> tuple[int, ...]:
        """The seeds that test a pass's joint move: from 3000 on, in the next pass from 3100 on, and so on."""
        first = FIRST_SEED + BETWEEN_PASSES * (number - 1)
        return swept_axis.fresh_seeds(context, first, self.verify_seeds)

    def expected(self, trials: int, context: Context, state: State) -> int:
        """And one test of a joint move, which a quiet landscape gives no reason for."""
        return trials and trials + self._tested

    def most(self, expected: int, context: Context, state: State) -> int:
        """All extended and refined, every pass to its end."""
        if not expected:
            return 0
        there = acting(self.names(context, state), context.shape)
        swept = sum(identifiable(state.incumbent, name, context) for name in there)
        curve = len(self.offsets) - 1 + self.extend + (REFINED if self.refine else 0)
        # A pass may move what makes a weight decay identifiable, so that later passes may sweep them all.
        points = self.passes + curve * (swept + len(there) * (self.passes - 1))
        return len(swept_axis.chosen_seeds(context, self.n_seeds)) * points + self.passes * self._tested

    @property
    def _tested(self) -> int:
        """Trials that test one joint move."""
        return self.verify_seeds * (1 + len(SHARES))

    @property
    def decides(self) -> tuple[int, int]:
        return self.verify_seeds, len(SHARES) * self.passes

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context, incumbent = asked.context, state.incumbent
        names = self.names(context, state, refuse=asked.rehearsed)
        if not names:
            return Conclusion(state, self.finding(incumbent, incumbent, MultiplierPasses(passes=(), most=self.passes)))
        passes, sigmas = list[Pass](), list[Sigma | None]()
        while not passes or (len(passes) < self.passes and passes[-1].taken):
            incumbent, found, sigma = self._pass(asked, incumbent, names, len(passes) + 1)
            passes.append(found)
            sigmas.append(sigma)
        idle = tuple(name for name in names if name not in acting(names, context.shape))
        result = MultiplierPasses(passes=tuple(passes), most=self.passes, idle=idle)
        learned = {**dict.fromkeys(names, 0.0), **sensitivities(result.swept)}
        state_after = replace(state, incumbent=incumbent, sensitivity={**state.sensitivity, **learned})
        return Conclusion(state_after, self.finding(state.incumbent, incumbent, result, sigmas[0]))

    def _pass(
        self, asked: Asked, before: Settings, names: Sequence[str], number: int
    ) -> tuple[Settings, Pass, Sigma | None]:
        """One pass around ``before``: the Settings it ends at, what it found, its σ_Δ."""
        context = asked.context
        seeds = swept_axis.chosen_seeds(context, self.n_seeds)
        there = acting(names, context.shape)
        curves = [SweptAxis(name, before) for name in there if identifiable(before, name, context)]
        swept_axis.train(asked, curves, [[HALF * offset for offset in self.offsets]] * len(curves), seeds)
        sigma = swept_axis.noise(curves)
        p_values = _adjusted(curves, sigma, self.passes)
        shown = {axis for axis, p_value in p_values.items() if p_value < SIGNIFICANT}
        self._follow(asked, curves, shown, self._predicted(curves, sigma), seeds)
        prediction = self._predicted(curves, sigma)
        moves = self._moves(asked, before, prediction, number)
        taken, after = best_shown(moves), before
        if taken and prediction:
            after = shifted(before, prediction, taken.share).with_values({}, name=self.label)
        axes = [_judged(each, after, sigma, p_values.get(each.axis), prediction, taken) for each in curves]
        swept = {curve.axis for curve in curves}
        axes += [_not_identifiable(name, before, context) for name in there if name not in swept]
        numbered = tuple(axis.model_copy(update={"pass_": number}) for axis in axes)
        found = Pass(axes=numbered, prediction=prediction, moves=moves, noise_known=sigma is not None)
        return after, found, sigma

    def _predicted(self, curves: Sequence[SweptAxis], sigma: Sigma | None) -> Prediction | None:
        return predicted(curves, sigma, self.verify_seeds, len(SHARES) * self.passes)

    def _follow(
        self,
        asked: Asked,
        curves: Sequence[SweptAxis],
        shown: Collection[str],
        prediction: Prediction | None,
        seeds: Sequence[int],
    ) -> None:
        """Extend curves best at an edge that are shown or want to leave their grid; refine the shown."""
        followed = [curve for curve in curves if curve.axis in shown or _pressed(curve, prediction)]
        refined: set[str] = set()
        while True:
            wanted = []
            for curve in followed:
                if curve.at_edge and curve.extended < self.extend and curve.axis not in refined:
                    wanted.append([curve.beyond()])
                    curve.extended += 1
                elif self.refine and curve.axis in shown and curve.axis not in refined:
                    wanted.append(_between(curve))
                    refined.add(curve.axis)
                else:
                    wanted.append([])
            if not any(wanted):
                return
            swept_axis.train(asked, followed, wanted, seeds)

    def _moves(self, asked: Asked, before: Settings, prediction: Prediction | None, number: int) -> tuple[Move, ...]:
        """The joint move on fresh seeds, a share of the way each; none where they could show nothing."""
        if prediction is None or not prediction.testable:
            return ()
        moved = [shifted(before, prediction, share) for share in SHARES]
        incumbent, *found = asked.losses([before, *moved], self.seeds(asked.context, number))
        prefix = f"pass {number}: " if self.passes > 1 else ""
        tests = len(SHARES) * self.passes
        return tuple(
            Move.over_incumbent(prefix + share_label(share), losses, incumbent, tests, share=share)
            for share, losses in zip(SHARES, found, strict=True)
        )


def _adjusted(curves: Sequence[SweptAxis], sigma: Sigma | None, passes: int) -> Mapping[str, float]:
    """p-value of every curve's best-minus-centre gain after Holm over the curves; left out if not known.

    It is times the passes, so that all of them together show what is flat in at most 5 % of stages.
    """
    gains = {curve.axis: curve.gain(sigma) for curve in curves}
    known = {axis: gain.p_value for axis, gain in gains.items() if gain is not None and gain.p_value is not None}
    return {axis: min(1.0, passes * p) for axis, p in zip(known, stats.holm(list(known.values())), strict=True)}


def _between(curve: SweptAxis) -> list[float]:
    """One √2 step on either side of the best point, where that is inside the grid and not trained."""
    best, offsets = curve.best or 0.0, curve.offsets
    return [x for x in (best - HALF, best + HALF) if offsets[0] < x < offsets[-1] and x not in curve.losses]


def _pressed(curve: SweptAxis, prediction: Prediction | None) -> bool:
    """Whether the curve wants to leave its grid: best and shrunken optimum are both its last point."""
    optimum = prediction and prediction.optimum(curve.axis)
    return bool(optimum and optimum.moves and curve.at_edge and optimum.offset == curve.best)


def _not_identifiable(name: str, before: Settings, context: Context) -> AxisFinding:
    said = horizon(before, name, context)
    return SweptAxis(name, before).finding(before, "not identifiable", reason="horizon", horizon=said)


def _judged(
    curve: SweptAxis,
    after: Settings,
    sigma: Sigma | None,
    p_value: float | None,
    prediction: Prediction | None,
    taken: Move | None,
) -> AxisFinding:
    shown = p_value is not None and p_value < SIGNIFICANT
    decision: Decision
    reason: Reason
    if stats.usable(curve.losses[0.0]) is None:
        decision, reason = "kept", "incumbent diverged"
    elif taken and prediction and curve.axis in prediction.joint:
        decision = "edge" if curve.at_edge and (shown or _pressed(curve, prediction)) else "moved"
        reason = "fitted" if shown else "jointly"
    elif shown:
        decision, reason = ("kept", "too little") if taken else ("dropped", "move failed")
    else:
        decision, reason = ("kept", "best") if curve.best == 0 else ("flat", "not better")
    return curve.finding(after, decision, sigma, reason=reason, p_value=p_value)

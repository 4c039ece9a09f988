"""The ``micro`` stage: every multiplier of a group swept alone around one incumbent, then moved together.

The √2 grid is Falcon-H1's (arXiv 2507.22448); the tests, the joint step, its damping and the passes are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mup_tune import stats
from mup_tune.errors import unknown
from mup_tune.findings import AxisFinding, Comparison, Decision
from mup_tune.multipliers import GROUPS, MULTIPLIER_NAMES, MULTIPLIERS
from mup_tune.roles import group_lr_wd
from mup_tune.search.stage import Asked, Conclusion, Context, Losses, Stage, State
from mup_tune.search.stages import sweep
from mup_tune.search.stages.sweep import Curve
from mup_tune.settings import Settings
from mup_tune.stats import Estimate, Sigma

SIGNIFICANT = 0.05
HALF = 0.5  # one √2 step in log2
REFINED = 2  # points that a refinement adds at most
JOINT = 2  # joint moves that a pass trains at most: whole, and half


@dataclass(frozen=True)
class Step:
    """A joint move that was trained: its Settings' losses beside the incumbent's, and its gain over it."""

    label: str
    settings: Settings
    losses: Losses
    centre: Losses
    gain: Estimate | None

    @property
    def better(self) -> bool:
        return self.gain is not None and self.gain.low > 0


@dataclass(frozen=True)
class Pass:
    """One pass over the group: where it started and ended, its axes, the joint moves it trained, its σ_Δ."""

    before: Settings
    after: Settings
    axes: tuple[AxisFinding, ...]
    steps: tuple[Step, ...]
    sigma: Sigma | None

    @property
    def swept(self) -> bool:
        return any(axis.points for axis in self.axes)


class Micro(Stage):
    """Sweeps the multipliers of a group on √2 grids, all from one incumbent, and moves the ones that matter.

    ``offsets`` count √2 steps. The best of several noisy points looks better than it is (winner's curse), so
    (1) a multiplier is *flat*, and keeps its value, unless its best grid point beats the incumbent at p <
        0.05 after
    Bonferroni over the points it was picked from, Holm over the group and Bonferroni over the passes; that
    test sees the first grid alone, never the points added because of it; (2) the others go to the fitted
    optimum of all their points, which one lucky point does not decide; (3) they go there together,
    ``damping`` of the way in log2, and only if that joint point beats the incumbent on the same seeds, its CI
    above 0; else half of that way, else not at all. The gains named here share the incumbent's own draws and
    stay a little optimistic: ``confirm`` measures on fresh seeds.

    Multipliers that act on one another overshoot when each goes where it wants alone: with ``passes`` > 1 the
    group is swept again around the new incumbent, until a pass moves nothing.
    """

    kind: Literal["micro"] = "micro"
    group: str | list[str]
    offsets: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    refine: bool = True
    extend: Annotated[int, Field(ge=0, le=4)] = 2
    passes: Annotated[int, Field(ge=1, le=5)] = 1
    damping: Annotated[float, Field(gt=0, le=1)] = 1.0
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("group")
    @classmethod
    def _known_group(cls, group: str | list[str]) -> str | list[str]:
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

    @field_validator("offsets")
    @classmethod
    def _grid(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        return sweep.checked_grid(offsets)

    @property
    def names(self) -> tuple[str, ...]:
        return GROUPS[self.group] if isinstance(self.group, str) else tuple(self.group)

    @property
    def title(self) -> str:
        passes = f", up to {self.passes} passes" if self.passes > 1 else ""
        return f"Multipliers: {self.group if isinstance(self.group, str) else ', '.join(self.group)}{passes}"

    @property
    def measures(self) -> Sequence[str]:
        return self.names

    def counts(self, context: Context, state: State) -> tuple[int, int]:
        """Expected: the first round and one joint point. At most: all extended, refined, every pass to its end.

        The incumbent is trained once: a later pass starts from the joint point of the one before.
        """
        seeds, acting = len(sweep.chosen_seeds(context, self.n_seeds)), _acting(self.names, context)
        first = len(self.propose(context, state, {}))
        added = (self.extend, REFINED if self.refine else 0)
        curve = len(self.offsets) - 1 + sum(added)
        swept = sum(_identifiable(state.incumbent, name, context) for name in acting)
        # A pass may move what makes a weight decay identifiable, so that later passes may sweep them all.
        most = [1 + swept * curve + JOINT] + [len(acting) * curve + JOINT] * (self.passes - 1)
        return (first + seeds, seeds * sum(most)) if first else (0, 0)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        done = [self._pass(asked, state.incumbent, 1)]
        while len(done) < self.passes and done[-1].after != done[-1].before:
            done.append(self._pass(asked, done[-1].after, len(done) + 1))
        return self._conclusion(state, done, [n for n in self.names if n not in _acting(self.names, asked.context)])

    def _pass(self, asked: Asked, before: Settings, number: int) -> Pass:
        context = asked.context
        seeds = sweep.chosen_seeds(context, self.n_seeds)
        acting = _acting(self.names, context)
        curves = [Curve(name, before) for name in acting if _identifiable(before, name, context)]
        sweep.train(asked, curves, [[HALF * offset for offset in self.offsets]] * len(curves), seeds)
        sigma = sweep.noise(curves)
        p_values = _adjusted(curves, sigma, self.passes)
        sensitive = [curve for curve in curves if p_values.get(curve.axis, 1.0) < SIGNIFICANT]
        self._follow(asked, sensitive, seeds)
        steps = self._joint(asked, before, sensitive, seeds, sigma)
        after = steps[-1].settings if steps and steps[-1].better else before
        after = after.with_values({}, name=self.label) if after != before else before
        axes = [_judged(curve, after, sigma, p_values.get(curve.axis), curve in sensitive, steps) for curve in curves]
        swept = {curve.axis for curve in curves}
        axes += [_not_identifiable(name, before, context) for name in acting if name not in swept]
        return Pass(before, after, tuple(a.model_copy(update={"pass_": number}) for a in axes), tuple(steps), sigma)

    def _follow(self, asked: Asked, sensitive: Sequence[Curve], seeds: Sequence[int]) -> None:
        """Extend the curves whose best point is at the edge; refine the others by one √2 step on either side."""
        refined: set[str] = set()
        while True:
            wanted = []
            for curve in sensitive:
                if curve.at_edge and curve.extended < self.extend and curve.axis not in refined:
                    wanted.append([curve.beyond()])
                    curve.extended += 1
                elif self.refine and curve.axis not in refined:
                    wanted.append(_between(curve))
                    refined.add(curve.axis)
                else:
                    wanted.append([])
            if not any(wanted):
                return
            sweep.train(asked, sensitive, wanted, seeds)

    def _joint(
        self, asked: Asked, before: Settings, sensitive: Sequence[Curve], seeds: Sequence[int], sigma: Sigma | None
    ) -> list[Step]:
        """The joint moves that were trained: whole, then halved where the whole one is not better."""
        moves = {curve.axis: offset for curve in sensitive if (offset := _optimum(curve, sigma))}
        steps: list[Step] = []
        for share in (self.damping, self.damping / 2):
            if not moves or (steps and steps[-1].better):
                break
            label = {1.0: "all together", 0.5: "half the way"}.get(share, f"{100 * share:g} % of the way")
            settings = before.scaled({axis: 2.0 ** (share * offset) for axis, offset in moves.items()})
            losses, centre = asked.losses([settings, before], seeds)
            steps.append(Step(label, settings, losses, centre, stats.paired_gain(losses, centre, sigma)))
        return steps

    def _conclusion(self, state: State, done: Sequence[Pass], idle: Sequence[str]) -> Conclusion:
        axes = [axis for each in done for axis in each.axes]
        learned = dict.fromkeys(self.names, 0.0)
        for axis in axes:  # of a later pass where that shows any: it is nearer to the incumbent
            learned[axis.axis] = sweep.sensitivity(axis.fit) or learned[axis.axis]
        sigma = done[0].sigma
        finding = self.finding(
            before=state.incumbent,
            after=done[-1].after,
            axes=tuple(axes),
            comparisons=tuple(
                _compared(step, f"pass {number}: " if self.passes > 1 else "")
                for number, each in enumerate(done, 1)
                for step in each.steps
            ),
            headline=_headline(axes, learned),
            sigma_delta=None if sigma is None else sigma.value,
            summary=tuple(self._summary(done, idle)),
        )
        sensitivity = {**state.sensitivity, **learned}
        return Conclusion(replace(state, incumbent=done[-1].after, sensitivity=sensitivity), finding)

    def _summary(self, done: Sequence[Pass], idle: Sequence[str]) -> list[str]:
        said = []
        for number, each in enumerate(done, 1):
            prefix = f"Pass {number}: " if self.passes > 1 else ""
            loud = [axis for axis in each.axes if axis.decision not in ("flat", "not identifiable")]
            said += [f"{prefix}{axis.axis}: {axis.why}." for axis in loud]
            for decision, words in (("flat", "Flat, kept"), ("not identifiable", "Not identifiable, not swept")):
                those = [axis for axis in each.axes if axis.decision == decision]
                if those:
                    said.append(f"{prefix}{words}: {', '.join(axis.axis for axis in those)}.")
            said += [f"{prefix}Moved {step.label}: {sweep.spoken(step.gain)}, {_outcome(step)}." for step in each.steps]
        if any(axis.decision == "not identifiable" for axis in done[-1].axes):
            said.append("Weight decay is not identifiable where η·λ·T < 1: the run never leaves its init.")
        if idle:
            said.append(f"Without an SSM branch (d_ssm = 0) these do nothing: {', '.join(idle)}.")
        if done[0].swept and done[0].sigma is None:
            said.append("Too few seeds and points to tell noise from gain: nothing was moved.")
        if len(done) > 1 and done[-1].after == done[-1].before:
            said.append(f"Pass {len(done)} moved nothing, so it was the last.")
        return said


def _acting(names: Sequence[str], context: Context) -> list[str]:
    return [name for name in names if context.shape.d_ssm or not MULTIPLIERS[name].needs_ssm]


def _identifiable(settings: Settings, name: str, context: Context) -> bool:
    return not name.endswith(".ewd") or _horizon(settings, name, context) >= 1


def _horizon(settings: Settings, name: str, context: Context) -> float:
    """η·λ·T of the matrix that an ``.ewd`` multiplier belongs to."""
    eta, lam = group_lr_wd(settings, name.removesuffix(".ewd"))
    return eta * lam * context.budget.steps


def _adjusted(curves: Sequence[Curve], sigma: Sigma | None, passes: int) -> Mapping[str, float]:
    """p-value of every curve's best-minus-centre gain after Holm over the curves; left out where nothing tells it.

    Times the passes, so that all of them together move what is flat in at most 5 % of stages.
    """
    gains = {curve.axis: curve.gain(sigma) for curve in curves}
    known = {axis: gain.p_value for axis, gain in gains.items() if gain is not None and gain.p_value is not None}
    return {axis: min(1.0, passes * p) for axis, p in zip(known, stats.holm(list(known.values())), strict=True)}


def _between(curve: Curve) -> list[float]:
    """One √2 step on either side of the best point, where that is inside the grid and not trained."""
    best, offsets = curve.best or 0.0, curve.offsets
    return [x for x in (best - HALF, best + HALF) if offsets[0] < x < offsets[-1] and x not in curve.losses]


def _optimum(curve: Curve, sigma: Sigma | None) -> float:
    fit = curve.fit(sigma)
    return (curve.best or 0.0) if fit is None else fit.optimum.value


def _outcome(step: Step) -> str:
    return "taken" if step.better else "not taken: the CI must lie above 0"


def _not_identifiable(name: str, before: Settings, context: Context) -> AxisFinding:
    horizon = _horizon(before, name, context)
    why = f"η·λ·T = {horizon:.3g} < 1: the run never leaves its init, not swept"
    return Curve(name, before).finding(before, "not identifiable", why, None, None)


def _compared(step: Step, prefix: str) -> Comparison:
    return Comparison(
        candidate=prefix + step.label,
        reference="incumbent",
        candidate_losses=step.losses,
        reference_losses=step.centre,
        gain=sweep.as_interval(step.gain),
        verdict="taken" if step.better else "not better",
    )


def _headline(axes: Sequence[AxisFinding], curvature: Mapping[str, float]) -> str:
    """The most sensitive axes, for a run that measures; curvature in mnat/token per (log2)²."""
    if len({axis.axis for axis in axes if axis.points}) < 2:
        return ""
    ranked = sorted((axis for axis, value in curvature.items() if value > 0), key=lambda axis: -curvature[axis])
    if not ranked:
        return "No curvature shown on any axis"
    units = [" mnat/token per (log2)²", "", ""]
    said = [f"{axis} ({1e3 * curvature[axis]:.3g}{unit})" for axis, unit in zip(ranked, units, strict=False)]
    return f"Most sensitive: {', then '.join(said)}"


def _judged(
    curve: Curve, after: Settings, sigma: Sigma | None, p_value: float | None, sensitive: bool, steps: Sequence[Step]
) -> AxisFinding:
    gain = curve.gain(sigma)
    said = f"best point {sweep.spoken(gain)}" + ("" if p_value is None else f", p = {p_value:.2g} after Holm")
    decision: Decision
    if not sensitive:
        decision, why = ("kept", "kept: its value is the best point") if curve.best == 0 else ("flat", f"kept: {said}")
        if stats.usable(curve.losses[0.0]) is None:
            decision, why = "kept", "kept: the incumbent diverged, there is nothing to compare with"
    elif not steps or not steps[-1].better:
        decision, why = "dropped", f"{said}; the joint move was not better"
    else:
        decision = "edge" if curve.at_edge else "moved"
        old, new = curve.centre.value(curve.axis), after.value(curve.axis)
        why = f"{old:.4g} → {new:.4g} ({steps[-1].label}); {said}"
        why += f"; still at the edge after {curve.extended} extensions" if curve.at_edge else ""
    return curve.finding(after, decision, why, sigma, p_value)

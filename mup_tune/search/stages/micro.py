"""The ``micro`` stage: every multiplier of a group swept alone around one incumbent, then moved together.

The √2 grid is Falcon-H1's (arXiv 2507.22448); the tests, the joint step, its damping and the passes are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mup_tune import stats
from mup_tune.errors import unknown
from mup_tune.findings import AxisFinding, Comparison, Decision, Reason, State
from mup_tune.findings.multipliers import Move, MultiplierPasses, Pass, share_label
from mup_tune.findings.result import sensitivities
from mup_tune.multipliers import GROUPS, MULTIPLIER_NAMES, MULTIPLIERS
from mup_tune.roles import group_lr_wd
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.search.swept_axis import Grid, SweptAxis
from mup_tune.settings import Settings
from mup_tune.stats import SIGNIFICANT, Sigma

HALF = 0.5  # one √2 step in log2
REFINED = 2  # points that a refinement adds at most
MOVES = 2  # joint moves that a pass trains at most: whole, and half


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
    offsets: Grid = (-4.0, -2.0, 0.0, 2.0, 4.0)
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

    @property
    def names(self) -> tuple[str, ...]:
        return GROUPS[self.group] if isinstance(self.group, str) else tuple(self.group)

    @property
    def title(self) -> str:
        passes = f", up to {self.passes} passes" if self.passes > 1 else ""
        return f"Multipliers: {self.group if isinstance(self.group, str) else ', '.join(self.group)}{passes}"

    def expected(self, trials: int, context: Context, state: State) -> int:
        """And one joint move, which a quiet landscape gives no reason for."""
        return trials and trials + len(swept_axis.chosen_seeds(context, self.n_seeds))

    def most(self, expected: int, context: Context, state: State) -> int:
        """All extended and refined, every pass to its end.

        The incumbent is trained once: a later pass starts from the joint point of the one before.
        """
        if not expected:
            return 0
        acting = _acting(self.names, context)
        curve = len(self.offsets) - 1 + self.extend + (REFINED if self.refine else 0)
        swept = sum(_identifiable(state.incumbent, name, context) for name in acting)
        # A pass may move what makes a weight decay identifiable, so that later passes may sweep them all.
        trials = [1 + swept * curve + MOVES] + [len(acting) * curve + MOVES] * (self.passes - 1)
        return len(swept_axis.chosen_seeds(context, self.n_seeds)) * sum(trials)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context, incumbent = asked.context, state.incumbent
        passes, sigmas = list[Pass](), list[Sigma | None]()
        while not passes or (len(passes) < self.passes and passes[-1].moved):
            incumbent, found, sigma = self._pass(asked, incumbent, len(passes) + 1)
            passes.append(found)
            sigmas.append(sigma)
        idle = tuple(name for name in self.names if name not in _acting(self.names, context))
        result = MultiplierPasses(passes=tuple(passes), most=self.passes, idle=idle)
        learned = {**dict.fromkeys(self.names, 0.0), **sensitivities(result.swept)}
        state_after = replace(state, incumbent=incumbent, sensitivity={**state.sensitivity, **learned})
        return Conclusion(state_after, self.finding(state.incumbent, incumbent, result, sigmas[0]))

    def _pass(self, asked: Asked, before: Settings, number: int) -> tuple[Settings, Pass, Sigma | None]:
        """One pass around ``before``: the Settings it ends at, what it found, its σ_Δ."""
        context = asked.context
        seeds = swept_axis.chosen_seeds(context, self.n_seeds)
        acting = _acting(self.names, context)
        curves = [SweptAxis(name, before) for name in acting if _identifiable(before, name, context)]
        swept_axis.train(asked, curves, [[HALF * offset for offset in self.offsets]] * len(curves), seeds)
        sigma = swept_axis.noise(curves)
        p_values = _adjusted(curves, sigma, self.passes)
        sensitive = [curve for curve in curves if p_values.get(curve.axis, 1.0) < SIGNIFICANT]
        self._follow(asked, sensitive, seeds)
        moves, after = self._joint(asked, before, sensitive, seeds, sigma, number)
        moved = bool(moves) and moves[-1].taken
        axes = [_judged(each, after, sigma, p_values.get(each.axis), each in sensitive, moved) for each in curves]
        swept = {curve.axis for curve in curves}
        axes += [_not_identifiable(name, before, context) for name in acting if name not in swept]
        numbered = tuple(axis.model_copy(update={"pass_": number}) for axis in axes)
        return after, Pass(axes=numbered, moves=tuple(moves), noise_known=sigma is not None), sigma

    def _follow(self, asked: Asked, sensitive: Sequence[SweptAxis], seeds: Sequence[int]) -> None:
        """Extend curves whose best point is at the edge; refine the others by a √2 step on either side."""
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
            swept_axis.train(asked, sensitive, wanted, seeds)

    def _joint(
        self,
        asked: Asked,
        before: Settings,
        sensitive: Sequence[SweptAxis],
        seeds: Sequence[int],
        sigma: Sigma | None,
        number: int,
    ) -> tuple[list[Move], Settings]:
        """The joint moves trained, whole and then halved, and the Settings they end at."""
        optima = {curve.axis: offset for curve in sensitive if (offset := _optimum(curve, sigma))}
        moves: list[Move] = []
        for share in (self.damping, self.damping / 2):
            if not optima:
                break
            settings = before.scaled({axis: 2.0 ** (share * offset) for axis, offset in optima.items()})
            losses, centre = asked.losses([settings, before], seeds)
            gain = stats.paired_gain(losses, centre, sigma)
            compared = Comparison(
                candidate=(f"pass {number}: " if self.passes > 1 else "") + share_label(share),
                reference="incumbent",
                candidate_losses=losses,
                reference_losses=centre,
                gain=gain,
            )
            moves.append(Move(share=share, comparison=compared))
            if moves[-1].taken:
                return moves, settings.with_values({}, name=self.label)
        return moves, before


def _acting(names: Sequence[str], context: Context) -> list[str]:
    return [name for name in names if context.shape.d_ssm or not MULTIPLIERS[name].needs_ssm]


def _identifiable(settings: Settings, name: str, context: Context) -> bool:
    return MULTIPLIERS[name].kind != "wd" or _horizon(settings, name, context) >= 1


def _horizon(settings: Settings, name: str, context: Context) -> float:
    """η·λ·T of the matrix that an ``.ewd`` multiplier belongs to."""
    eta, lam = group_lr_wd(settings, name.removesuffix(".ewd"))
    return eta * lam * context.budget.steps


def _adjusted(curves: Sequence[SweptAxis], sigma: Sigma | None, passes: int) -> Mapping[str, float]:
    """p-value of every curve's best-minus-centre gain after Holm over the curves; left out if not known.

    It is times the passes, so that all of them together move what is flat in at most 5 % of stages.
    """
    gains = {curve.axis: curve.gain(sigma) for curve in curves}
    known = {axis: gain.p_value for axis, gain in gains.items() if gain is not None and gain.p_value is not None}
    return {axis: min(1.0, passes * p) for axis, p in zip(known, stats.holm(list(known.values())), strict=True)}


def _between(curve: SweptAxis) -> list[float]:
    """One √2 step on either side of the best point, where that is inside the grid and not trained."""
    best, offsets = curve.best or 0.0, curve.offsets
    return [x for x in (best - HALF, best + HALF) if offsets[0] < x < offsets[-1] and x not in curve.losses]


def _optimum(curve: SweptAxis, sigma: Sigma | None) -> float:
    fit = curve.fit(sigma)
    return (curve.best or 0.0) if fit is None else fit.optimum.value


def _not_identifiable(name: str, before: Settings, context: Context) -> AxisFinding:
    horizon = _horizon(before, name, context)
    return SweptAxis(name, before).finding(before, "not identifiable", reason="horizon", horizon=horizon)


def _judged(
    curve: SweptAxis, after: Settings, sigma: Sigma | None, p_value: float | None, sensitive: bool, moved: bool
) -> AxisFinding:
    decision: Decision = "edge" if curve.at_edge else "moved"
    reason: Reason = "fitted"
    if not sensitive:
        decision, reason = ("kept", "best") if curve.best == 0 else ("flat", "not better")
        if stats.usable(curve.losses[0.0]) is None:
            decision, reason = "kept", "incumbent diverged"
    elif not moved:
        decision, reason = "dropped", "move failed"
    return curve.finding(after, decision, sigma, reason=reason, p_value=p_value)

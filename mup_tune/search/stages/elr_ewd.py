"""The ``elr_ewd`` stage: the two global axes, together or one of them (arXiv 2507.22448)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mup_tune import stats
from mup_tune.errors import located
from mup_tune.files import Name
from mup_tune.findings import AxisFinding, Decision, State
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.result import sensitivities
from mup_tune.search import swept_axis
from mup_tune.search.ridge import BESIDE, EIGHT, NINE, Ridge
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import Shape
from mup_tune.stats import Sigma


class ElrEwd(Stage):
    """Sweeps the two global axes of some Settings on log2 grids.

    With ``elr_offsets`` alone the new ELR is the fitted optimum of its line, clamped to the trained range,
    or the best point where no parabola fits. With ``ewd_offsets`` alone EWD moves only where its best point
    beats the centre (Bonferroni over the grid's points).

    With both, the two are tuned together, for their optima lie on a ridge: tuned one after the other they
    stop on its side. The ELR line comes first. Around its best point follows a block of three ELRs by
    ``ewd_offsets``, then a block of half steps around the optimum of the bowl fitted to all of them. The new
    (ELR, EWD) is the bowl's lowest point within what was trained. Where no curvature along EWD is shown, EWD
    moves only to a pair that is better after Bonferroni over all of them. EWD is tuned for the horizon at
    hand, also where η·λ·T = ELR²·T < 1; the finding says so, for there it tells little about a longer run.

    A best point at the edge extends a line by its own spacing, a block by the point's untrained neighbours,
    at most ``extend`` times each.
    """

    kind: Literal["elr_ewd"] = "elr_ewd"
    settings: Settings | str | None = None
    reference: Annotated[Name, Field(min_length=1)] | None = None
    incumbent: bool = True
    elr_offsets: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    ewd_offsets: tuple[float, ...] = ()
    extend: Annotated[int, Field(ge=0, le=4)] = 2
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("elr_offsets", "ewd_offsets")
    @classmethod
    def _grid(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        return swept_axis.checked_grid(offsets) if offsets else offsets

    @model_validator(mode="after")
    def _does_something(self) -> ElrEwd:
        if not self.elr_offsets and not self.ewd_offsets:
            raise ValueError("elr_offsets and ewd_offsets are both empty: nothing would be swept")
        if not self.incumbent and self.reference is None:
            raise ValueError("incumbent: false needs a `reference` name, or the result would be lost")
        return self

    @property
    def title(self) -> str:
        axes = " and ".join(name for name, on in (("ELR", self.elr_offsets), ("EWD", self.ewd_offsets)) if on)
        name = self.settings.name if isinstance(self.settings, Settings) else self.settings
        return f"{axes} of {name or 'the incumbent'}"

    def resolved(self, shape: Shape) -> ElrEwd:
        """With the Settings that ``settings`` names, read once."""
        if not isinstance(self.settings, str):
            return self
        with located(field="settings"):
            return self.model_copy(update={"settings": load_settings(self.settings, shape)})

    @property
    def on_path(self) -> bool:
        return self.incumbent

    def most(self, expected: int, context: Context, state: State) -> int:
        """Every grid and block extended, and the block of half steps."""
        line = len(self.elr_offsets or self.ewd_offsets) + self.extend
        block = (len(BESIDE) - 1) * len(self.ewd_offsets) + len(self.ewd_offsets) - 1 + EIGHT * self.extend + NINE
        places = line + (block if self.elr_offsets and self.ewd_offsets else 0)
        return places * len(swept_axis.chosen_seeds(context, self.n_seeds))

    def foreseen(self, context: Context, incumbent: Settings) -> Settings:
        """At an ELR where η·λ·T = ELR²·T is 1, if the grid reaches it: there stages begin to sweep EWD."""
        elr = 1.001 / sqrt(context.budget.steps)
        reached = self.incumbent and self.elr_offsets and elr <= incumbent.elr * 2 ** max(self.elr_offsets)
        return incumbent.with_values({"elr": elr}) if reached and incumbent.elr < elr else incumbent

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context, seeds = asked.context, swept_axis.chosen_seeds(asked.context, self.n_seeds)
        before, bowl = self._before(context, state), None
        if self.elr_offsets:
            curve, sigma = self._swept(asked, "elr", before, self.elr_offsets)
            after, found = _moved(curve, sigma)
            axes = [found]
            if self.ewd_offsets and curve.best is not None:
                bowl = Ridge(asked, curve, self.ewd_offsets, self.extend, seeds)
                after, axes = bowl.walk()
                sigma = bowl.sigma
        else:
            curve, sigma = self._swept(asked, "ewd", before, self.ewd_offsets)
            after, found = _ewd(curve, sigma)
            axes = [found]
        after = after.with_values({}, name=self.reference or self.label)
        result = GlobalAxes(
            axes=tuple(axes),
            eta_lambda_T=after.elr**2 * context.budget.steps,
            steps=context.budget.steps,
            bowl=bowl and bowl.finding,
        )
        return Conclusion(self._handed_on(state, after, axes), self.finding(before, after, result, sigma))

    def _before(self, context: Context, state: State) -> Settings:
        if isinstance(self.settings, str):
            return load_settings(self.settings, context.shape)
        return self.settings or state.incumbent

    def _swept(
        self, asked: Asked, axis: str, centre: Settings, offsets: Sequence[float]
    ) -> tuple[SweptAxis, Sigma | None]:
        curve = SweptAxis(axis, centre)
        seeds = swept_axis.chosen_seeds(asked.context, self.n_seeds)
        swept_axis.train_grid(asked, [curve], offsets, seeds, self.extend, down=axis == "elr")
        return curve, swept_axis.noise([curve])

    def _handed_on(self, state: State, after: Settings, axes: Sequence[AxisFinding]) -> State:
        """ELR's sensitivity is handed on from the incumbent's way alone; EWD's is of another kind."""
        references = {**state.references, self.reference: after} if self.reference else state.references
        if not self.incumbent:
            return replace(state, references=references)
        learned = sensitivities([axis for axis in axes if axis.axis == "elr"])
        return replace(state, incumbent=after, references=references, sensitivity={**state.sensitivity, **learned})


def _ewd(curve: SweptAxis, sigma: Sigma | None) -> tuple[Settings, AxisFinding]:
    """The new EWD: kept unless the best point beats the centre, or the centre does not train."""
    gain = curve.gain(sigma)
    if stats.usable(curve.losses[0.0]) is None or (gain is not None and gain.significant):
        return _moved(curve, sigma)
    decision: Decision = "flat"
    reason = "noise unknown" if gain is None else "not better"
    if curve.best == 0:
        decision, reason = "kept", "best"
    p_value = gain.p_value if gain else None
    return curve.centre, curve.finding(curve.centre, decision, sigma, reason=reason, p_value=p_value)


def _moved(curve: SweptAxis, sigma: Sigma | None) -> tuple[Settings, AxisFinding]:
    """The optimum of a curve, whatever the gain: the fitted one, or the best point."""
    best = curve.best
    if best is None:
        return curve.centre, curve.finding(curve.centre, "kept", sigma, reason="all diverged")
    fit, gain = curve.fit(sigma), curve.gain(sigma)
    after = curve.at(best if fit is None else fit.optimum.value)
    decision: Decision = "edge" if curve.at_edge else "kept" if after == curve.centre else curve.leaving(gain)
    return after, curve.finding(after, decision, sigma, p_value=gain.p_value if gain else None)

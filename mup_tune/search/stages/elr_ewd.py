"""The ``elr_ewd`` stage: global ELR at fixed EWD, then EWD at the best ELR (arXiv 2507.22448's orthogonal axes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mup_tune import stats
from mup_tune.findings import AxisFinding, Decision
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, State
from mup_tune.search.stages import sweep
from mup_tune.search.stages.sweep import Curve
from mup_tune.settings import Settings, load_settings
from mup_tune.stats import Sigma

SIGNIFICANT = 0.05


class ElrEwd(Stage):
    """Sweeps the two global axes of some Settings on log2 grids.

    The new ELR is the fitted optimum, clamped to the trained range, or the best point where no parabola fits.
    EWD moves only where its best point beats the centre (Bonferroni over the grid's points), and is not swept
    at all where η·λ·T = ELR²·T < 1: so short a run never leaves its init, and a better EWD there says nothing
    about a long one. An optimum at the edge extends the grid by its own spacing, at most ``extend`` times.
    """

    kind: Literal["elr_ewd"] = "elr_ewd"
    settings: str | None = None
    reference: Annotated[str, Field(min_length=1)] | None = None
    incumbent: bool = True
    elr_offsets: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    ewd_offsets: tuple[float, ...] = ()
    extend: Annotated[int, Field(ge=0, le=4)] = 2
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("elr_offsets", "ewd_offsets")
    @classmethod
    def _grid(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        return sweep.checked_grid(offsets) if offsets else offsets

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
        return f"{axes} of {self.settings or 'the incumbent'}"

    @property
    def provides(self) -> Sequence[str]:
        """The name under which the result is kept for later stages."""
        return (self.reference,) if self.reference else ()

    @property
    def measures(self) -> Sequence[str]:
        """ELR, where it is swept on the way of the incumbent."""
        return ("elr",) if self.incumbent and self.elr_offsets else ()

    @property
    def on_path(self) -> bool:
        return self.incumbent

    def counts(self, context: Context, state: State) -> tuple[int, int]:
        """EWD counts where η·λ·T reaches 1 at the ELR the stage starts from; at most, at the highest it may find."""
        elr = self._before(context, state).elr
        seeds, steps = len(sweep.chosen_seeds(context, self.n_seeds)), context.budget.steps
        highest = 0.0
        if self.elr_offsets:
            spacing = self.elr_offsets[-1] - self.elr_offsets[-2]
            highest = self.elr_offsets[-1] + self.extend * spacing
        expected = len(self.elr_offsets) + (len(self.ewd_offsets) if elr**2 * steps >= 1 else 0)
        most = len(self.elr_offsets) + (self.extend if self.elr_offsets else 0)
        if self.ewd_offsets and (elr * 2**highest) ** 2 * steps >= 1:
            most += len(self.ewd_offsets) + self.extend
        return expected * seeds, most * seeds

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context = asked.context
        before = self._before(context, state)
        current, axes, sigma = before, [], None
        if self.elr_offsets:
            curve, sigma = self._swept(asked, "elr", current, self.elr_offsets)
            current, found = _moved(curve, sigma)  # ELR: all else is compared at a tuned one
            axes.append(found)
        horizon = current.elr**2 * context.budget.steps
        if self.ewd_offsets and horizon < 1:
            why = f"η·λ·T = {horizon:.3g} < 1 after {context.budget.steps} steps: the run never leaves its init"
            axes.append(Curve("ewd", current).finding(current, "not identifiable", why, None, None))
        elif self.ewd_offsets:
            curve, ewd_sigma = self._swept(asked, "ewd", current, self.ewd_offsets)
            current, found = _ewd(curve, ewd_sigma)
            axes.append(found)
            sigma = sigma or ewd_sigma
        return self._conclusion(state, before, current, axes, sigma, horizon)

    def _before(self, context: Context, state: State) -> Settings:
        return load_settings(self.settings, context.shape) if self.settings else state.incumbent

    def _swept(self, asked: Asked, axis: str, centre: Settings, offsets: Sequence[float]) -> tuple[Curve, Sigma | None]:
        curve = Curve(axis, centre)
        seeds = sweep.chosen_seeds(asked.context, self.n_seeds)
        sweep.train_grid(asked, [curve], offsets, seeds, self.extend, down=axis == "elr")
        return curve, sweep.noise([curve])

    def _conclusion(
        self,
        state: State,
        before: Settings,
        current: Settings,
        axes: list[AxisFinding],
        sigma: Sigma | None,
        horizon: float,
    ) -> Conclusion:
        after = current.with_values({}, name=self.reference or self.label)
        summary = [f"{axis.axis.upper()}: {axis.why}." for axis in axes]
        summary.append(f"Now η = {after.eta:.4g}, λ = {after.lam:.4g}, η·λ·T = {horizon:.3g}.")
        if any(axis.axis == "ewd" and axis.points for axis in axes):
            summary.append("A global EWD sweep also moves η of the vectors (norms, conv, A_log, D, dt_bias).")
        finding = self.finding(
            before=before,
            after=after,
            axes=tuple(axes),
            sigma_delta=None if sigma is None else sigma.value,
            summary=tuple(summary),
        )
        references = {**state.references, self.reference: after} if self.reference else dict(state.references)
        incumbent = after if self.incumbent else state.incumbent
        learned = {axis.axis: sweep.sensitivity(axis.fit) for axis in axes if axis.axis in self.measures}
        sensitivity = {**state.sensitivity, **learned}
        return Conclusion(replace(state, incumbent=incumbent, references=references, sensitivity=sensitivity), finding)


def _ewd(curve: Curve, sigma: Sigma | None) -> tuple[Settings, AxisFinding]:
    """The new EWD: kept unless the best point beats the centre, or the centre does not train."""
    if stats.usable(curve.losses[0.0]) is None:
        return _moved(curve, sigma)
    gain = curve.gain(sigma)
    if gain is not None and gain.p_value is not None and gain.p_value < SIGNIFICANT:
        return _moved(curve, sigma)
    decision: Decision = "kept" if curve.best == 0 else "flat"
    if curve.best == 0:
        why = "kept: its value is the best point"
    elif gain is None:
        why = "kept: too few seeds and points to tell noise from gain"
    else:
        why = f"kept: {sweep.spoken(gain)}, p = {gain.p_value:.2g} over all points"
    return curve.centre, curve.finding(curve.centre, decision, why, sigma, gain.p_value if gain else None)


def _moved(curve: Curve, sigma: Sigma | None) -> tuple[Settings, AxisFinding]:
    """The optimum of a curve, whatever the gain: the fitted one, or the best point."""
    best = curve.best
    if best is None:
        why = f"kept: every point from {curve.at(curve.offsets[0]).value(curve.axis):.4g} up diverged"
        return curve.centre, curve.finding(curve.centre, "kept", why, sigma, None)
    fit, gain = curve.fit(sigma), curve.gain(sigma)
    after = curve.at(best if fit is None else fit.optimum.value)
    how = "best point, no parabola fits"
    if fit is not None:
        how = f"{'local fits, no parabola holds,' if fit.robust else 'parabola'} through {fit.points_used} points"
    change = f"{curve.centre.value(curve.axis):.4g} → {after.value(curve.axis):.4g}"
    why = f"{change} ({how}); best point: {sweep.spoken(gain)}"
    decision: Decision = "kept" if after == curve.centre else "moved"
    if curve.at_edge:
        decision, why = "edge", why + f"; still at the edge of the grid after {curve.extended} extensions"
    return after, curve.finding(after, decision, why, sigma, gain.p_value if gain else None)

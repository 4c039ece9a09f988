"""A response surface over many axes at once: its rounds, what it says of every axis, and its proof."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Comparison, Result
from mup_tune.stats import Interval

# Why there is no further round.
Stop = Literal["rounds", "no gain predicted", "too many diverged"]


class Share(FrozenModel):
    """A part of the step on the line-search seeds: ``share`` 1 is the whole of it."""

    share: float
    comparison: Comparison

    @property
    def label(self) -> str:
        return "the whole step" if self.share == 1 else f"{self.share:g} of the step"


class Round(FrozenModel):
    """One design around a centre, and the line search along the step that the surface predicts.

    ``centre`` and ``step`` are in units of the axes, the centre from where the stage began. ``noise``: SD of
    one trial's loss in nats/token; ``predicted``: gain of the whole step. Both are None where too many
    diverged. ``taken``: the share that the centre moved by.
    """

    number: int
    radius: float
    centre: dict[str, float]
    trials: int
    diverged: int
    noise: float | None = None
    step: dict[str, float] = Field(default_factory=dict)
    predicted: Interval | None = None
    shares: tuple[Share, ...] = ()
    taken: float | None = None

    @property
    def measured(self) -> Comparison | None:
        """Of the share taken, or else of the largest."""
        wanted = [each.comparison for each in self.shares if self.taken in (None, each.share)]
        return wanted[0] if wanted else None


class Effect(FrozenModel):
    """An axis at the last centre: slope and curvature in nats/token per log2 and per (log2)²."""

    axis: str
    slope: Interval
    curvature: Interval


class ResponseSurface(Result):
    """``moved`` compares the last centre with where the stage began on seeds that chose nothing.

    It is None where the centre never moved. ``next_gain``: what one more round would be predicted to gain;
    ``round_trials`` and ``round_flops``: what it would cost. ``detectable``: the gain in nats/token that the
    verification's seeds show in about half of all runs.
    """

    type: Literal["surface"] = "surface"
    rounds: tuple[Round, ...]
    stop: Stop
    units: dict[str, float]
    effects: tuple[Effect, ...] = ()
    axes: tuple[AxisFinding, ...] = ()
    moved: Comparison | None = None
    detectable: float | None = None
    next_gain: Interval | None = None
    round_trials: int = 0
    round_flops: float = 0.0
    trials: int = 0
    flops: float = 0.0

    @property
    def moves(self) -> dict[str, float]:
        """log2 from where the stage began to the last centre, by axis."""
        if not self.rounds:
            return {}
        last = self.rounds[-1]
        return {
            axis: self.units.get(axis, 1.0) * (place + (last.taken or 0.0) * last.step.get(axis, 0.0))
            for axis, place in last.centre.items()
        }

    @property
    def taken(self) -> bool:
        return self.moved is not None and self.moved.outcome == "better"

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return self.axes

    @property
    def compared(self) -> tuple[Comparison, ...]:
        tried = tuple(share.comparison for each in self.rounds for share in each.shares)
        return tried if self.moved is None else (*tried, self.moved)

    @property
    def gained(self) -> Comparison | None:
        return self.moved

"""A group of multipliers, swept around one incumbent and moved together, pass after pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Comparison, Result, Verified
from mup_tune.stats import Interval


class ShrunkenOptimum(FrozenModel):
    """Where an axis should go given the whole group, log2 from the incumbent, and what that should gain.

    ``moves``: it is part of the joint move. What adds too little to it stays.
    """

    axis: str
    offset: float
    gain: float
    moves: bool


class Prediction(FrozenModel):
    """What the group's curves together promise before anything is tested.

    ``gain``: of the whole joint move if the axes do not act on one another. ``detectable``: the gain that the
    fresh seeds show in about half of all draws.
    """

    optima: tuple[ShrunkenOptimum, ...]
    gain: Interval
    detectable: float

    @property
    def joint(self) -> dict[str, float]:
        """The whole joint move, log2 by axis."""
        return {each.axis: each.offset for each in self.optima if each.moves}

    @property
    def testable(self) -> bool:
        """Whether the fresh seeds may show the gain: the upper end of its interval reaches what they can."""
        return bool(self.joint) and self.gain.high >= self.detectable

    def optimum(self, axis: str) -> ShrunkenOptimum | None:
        return next((each for each in self.optima if each.axis == axis), None)


class Move(Verified):
    """The joint move, ``share`` of the way in log2, on fresh seeds."""

    share: float

    @property
    def label(self) -> str:
        return share_label(self.share)


def share_label(share: float) -> str:
    """What a joint move of that share is called."""
    return {1.0: "all together", 0.5: "half the way", 0.25: "a quarter of the way"}[share]


def best_shown(moves: Sequence[Move]) -> Move | None:
    """The move of the largest gain among those whose gain is shown."""
    shown = [(gain.value, move) for move in moves if move.better and (gain := move.comparison.gain)]
    return max(shown, key=lambda pair: pair[0])[1] if shown else None


class Pass(FrozenModel):
    """One pass over the group.

    ``noise_known``: seeds and points told σ_Δ. ``prediction`` is None where they did not, or where the
    incumbent diverged. ``moves`` is empty where nothing was tested.
    """

    axes: tuple[AxisFinding, ...]
    prediction: Prediction | None
    moves: tuple[Move, ...]
    noise_known: bool

    @property
    def taken(self) -> Move | None:
        return best_shown(self.moves)


class MultiplierPasses(Result):
    """``most``: the passes that the plan allows. ``idle``: multipliers that do nothing at this Shape."""

    type: Literal["multipliers"] = "multipliers"
    passes: tuple[Pass, ...]
    most: int
    idle: tuple[str, ...] = ()

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return tuple(axis for each in self.passes for axis in each.axes)

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return tuple(move.comparison for each in self.passes for move in each.moves)

    @property
    def gained(self) -> Comparison | None:
        """Of the last pass that moved, else of the last move that was tested."""
        taken = [each.taken for each in self.passes if each.taken]
        tested = taken or [move for each in self.passes for move in each.moves]
        return tested[-1].comparison if tested else None

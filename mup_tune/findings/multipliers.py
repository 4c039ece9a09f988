"""A group of multipliers, swept around one incumbent and moved together, pass after pass."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Comparison, Result


class Move(FrozenModel):
    """A joint move of all sensitive axes, ``share`` of the way to their optima in log2."""

    share: float
    comparison: Comparison

    @property
    def taken(self) -> bool:
        return self.comparison.outcome == "better"

    @property
    def label(self) -> str:
        return share_label(self.share)


def share_label(share: float) -> str:
    """What a joint move of that share is called."""
    return {1.0: "all together", 0.5: "half the way"}.get(share, f"{100 * share:g} % of the way")


class Pass(FrozenModel):
    """One pass over the group. ``noise_known``: seeds and points told σ_Δ."""

    axes: tuple[AxisFinding, ...]
    moves: tuple[Move, ...]
    noise_known: bool

    @property
    def moved(self) -> bool:
        return bool(self.moves) and self.moves[-1].taken


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

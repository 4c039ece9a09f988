"""Shapes at equal parameters: losses, speeds, and which of them noise cannot tell from the best."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import Result
from mup_tune.shape import Shape
from mup_tune.stats import SIGNIFICANT, Interval, Losses


class ShapePoint(FrozenModel):
    """One Shape of a comparison at equal parameters, at its best ELR, ``elr_offset`` in log2.

    ``channels`` is SSM:attention:MLP in eighths, empty where channels were not split so. ``gain``:
    loss(proxy) − loss(this), paired, each at its own best ELR; None at the proxy itself. ``tokens_per_s``: of
    one pack while training, ``members`` members together. ``on_front``: no other Shape is both better and
    faster.
    """

    label: str
    shape: Shape
    channels: str
    parameters: int
    flops_per_token: float
    losses: Losses
    elr_offset: float
    at_edge: bool
    gain: Interval | None
    tokens_per_s: float
    members: int
    on_front: bool


class Ranking(FrozenModel):
    """Indices of the Shapes that trained, best first; ``p_values`` of the others against the best."""

    order: tuple[int, ...]
    p_values: dict[int, float]

    @property
    def within_noise(self) -> list[int]:
        return [index for index in self.order[1:] if self.p_values.get(index, 1.0) >= SIGNIFICANT]


class ShapeSet(Result):
    """``points``: the proxy first. ``noun``: what differs. ``prefix``: what a label needs before it.

    ``elr_tuned``: each Shape's loss is the lowest of an ELR grid. ``total_tokens``: of one trial.
    """

    type: Literal["shapes"] = "shapes"
    points: tuple[ShapePoint, ...]
    ranking: Ranking
    noun: str
    prefix: str
    elr_tuned: bool
    total_tokens: int

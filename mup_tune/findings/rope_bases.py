"""RoPE bases, each evaluated at multiples of the training length."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Point, Result
from mup_tune.stats import Interval


class LengthCurve(FrozenModel):
    """Validation loss against the RoPE base, on one text, at ``factor`` times the training length."""

    factor: int
    seq_len: int
    points: tuple[Point, ...]


class RopeBases(Result):
    """``axis``: by the mean over ``lengths``. ``not_told_apart``: bases that the best one does not beat.

    ``gaps``: loss at the longest length − loss at the training length, by base.
    """

    type: Literal["rope_bases"] = "rope_bases"
    axis: AxisFinding
    lengths: tuple[LengthCurve, ...]
    not_told_apart: tuple[float, ...]
    gaps: dict[float, Interval]

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return (self.axis,)

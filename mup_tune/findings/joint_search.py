"""A search over several axes at once, and what fresh seeds said of its best candidates."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Comparison, Result, Verified
from mup_tune.stats import Losses


class Candidate(FrozenModel):
    """One point of a joint search: log2 offsets by axis from the centre, loss by seed."""

    round: int
    offsets: dict[str, float]
    losses: Losses


class Search(FrozenModel):
    """A joint search in a box of ±``radius`` log2 around its centre; candidates in the order proposed."""

    sampler: str
    axes: tuple[str, ...]
    radius: float
    centre_losses: Losses
    candidates: tuple[Candidate, ...]
    best: int | None


class JointSearch(Result):
    """``search`` is None where no axis is curved. ``finalists``: best first; that one is taken if better.

    ``trials`` and ``flops``: of the search and its verification.
    """

    type: Literal["joint_search"] = "joint_search"
    search: Search | None
    axes: tuple[AxisFinding, ...] = ()
    finalists: tuple[Verified, ...] = ()
    trials: int = 0
    flops: float = 0.0

    @property
    def taken(self) -> Verified | None:
        return self.finalists[0] if self.finalists and self.finalists[0].better else None

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return self.axes

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return tuple(each.comparison for each in self.finalists)

    @property
    def gained(self) -> Comparison | None:
        return self.finalists[0].comparison if self.finalists else None

"""ELR and EWD: one of them swept, or both as a plane."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Result
from mup_tune.stats import Losses
from mup_tune.stats.bowl import Bowl


class Place(FrozenModel):
    """A trained pair: log2 offsets of ELR and EWD from where the stage began, loss by seed."""

    elr: float
    ewd: float
    losses: Losses


class Plane(FrozenModel):
    """All pairs, and the bowl through those near the minimum; x is ELR, y EWD. ``extended``: how often."""

    places: tuple[Place, ...]
    fit: Bowl | None
    extended: int = 0


class GlobalAxes(Result):
    """``eta_lambda_T``: η·λ·T at the tuned ELR, after ``steps`` steps. ``bowl``: both tuned at once."""

    type: Literal["global_axes"] = "global_axes"
    axes: tuple[AxisFinding, ...]
    eta_lambda_T: float
    steps: int
    bowl: Plane | None = None

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return self.axes

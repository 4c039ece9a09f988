"""ELR and EWD, swept one after the other."""

from __future__ import annotations

from typing import Literal

from mup_tune.findings.result import AxisFinding, Result


class GlobalAxes(Result):
    """``eta_lambda_T``: η·λ·T at the tuned ELR, after ``steps`` steps."""

    type: Literal["global_axes"] = "global_axes"
    axes: tuple[AxisFinding, ...]
    eta_lambda_T: float
    steps: int

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        return self.axes

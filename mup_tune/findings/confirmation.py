"""The incumbent against references on seeds that tuned nothing."""

from __future__ import annotations

from typing import Literal

from mup_tune.findings.result import Comparison, Result


class Confirmation(Result):
    """Comparisons that may be claimed."""

    type: Literal["confirmation"] = "confirmation"
    comparisons: tuple[Comparison, ...]

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return self.comparisons

"""The incumbent against references on seeds that tuned nothing: in nats and in tokens."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import Comparison, Result, hardest
from mup_tune.stats import Losses
from mup_tune.stats.tokens import TokensSaved


class Horizon(FrozenModel):
    """The reference trained for ``factor`` times the plan's steps, at an ELR tuned for it."""

    factor: float
    tokens: int
    elr: float
    losses: Losses


class TokenGain(FrozenModel):
    """What the gain over ``reference`` is worth in tokens. ``saved`` is None where it could not be told."""

    reference: str
    horizons: tuple[Horizon, ...]
    candidate_losses: Losses
    saved: TokensSaved | None

    @property
    def shown(self) -> bool:
        return self.saved is not None and self.saved.factor.low > 1


class Confirmation(Result):
    """Comparisons that may be claimed; ``tokens`` where the plan asks for longer horizons."""

    type: Literal["confirmation"] = "confirmation"
    comparisons: tuple[Comparison, ...]
    tokens: TokenGain | None = None

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return self.comparisons

    @property
    def gained(self) -> Comparison | None:
        return hardest(self.comparisons)

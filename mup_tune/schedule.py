"""The schedule of η and λ over one budget: warmup, stable stage, exponential decay, and the power schedule.

With t the tokens seen when a step updates, its own batch included, and T those of the last step:

    η factor = warm(t) · power(t) · decay(t)        λ factor = power(t)

    warm(t)  = min(1, t / warmup_tokens)
    power(t) = (t / power_onset_tokens)^-¼ from the onset on, 1 before it or without one
    decay(t) = lr_decay_to^((t − T + decay_tokens) / decay_tokens) over the last decay_tokens, 1 before them

The power factor is that of the Effective Power Scheduler (arXiv 2507.22448): it acts on η and λ alike, so
that EWD = √(λ/η) stays as tuned and ELR = √(η·λ) falls ∝ t^-¼. Warmup and decay act on η alone.
"""

from __future__ import annotations

from math import sqrt
from typing import Annotated, NamedTuple

from pydantic import Field

from mup_tune.files import FrozenModel
from mup_tune.settings import Settings
from mup_tune.shape import NonNegative, Positive

POWER = -0.25


class Schedule(FrozenModel):
    """Factors on the peak η and on λ at every 0-based step.

    All sizes are tokens; a last partial batch is dropped. ``lr_decay_to`` is the fraction of the peak that
    the exponential decay ends at. ``power_onset_tokens`` switches on the power schedule, null leaves it off.
    """

    batch_tokens: Positive
    total_tokens: Positive
    warmup_tokens: NonNegative
    decay_tokens: NonNegative
    lr_decay_to: Annotated[float, Field(gt=0, le=1)] = 0.1
    power_onset_tokens: Positive | None = None

    @property
    def steps(self) -> int:
        return self.total_tokens // self.batch_tokens

    def eta_factor(self, step: int) -> float:
        """Factor on η at a 0-based step."""
        return self.eta_factor_at(self._tokens(step))

    def lam_factor(self, step: int) -> float:
        """Factor on λ at a 0-based step."""
        return self.lam_factor_at(self._tokens(step))

    def eta_factor_at(self, tokens: int) -> float:
        """Factor on η after so many tokens: warm(t) · power(t) · decay(t), see the module's formulas."""
        warm = min(1.0, tokens / self.warmup_tokens) if self.warmup_tokens else 1.0
        decayed = tokens - (self.steps * self.batch_tokens - self.decay_tokens)
        decay = self.lr_decay_to ** (decayed / self.decay_tokens) if self.decay_tokens and decayed > 0 else 1.0
        return warm * self.lam_factor_at(tokens) * decay

    def lam_factor_at(self, tokens: int) -> float:
        """Factor on λ after so many tokens: power(t), so 1 throughout where the power schedule is off."""
        onset = self.power_onset_tokens
        return float((tokens / onset) ** POWER) if onset is not None and tokens > onset else 1.0

    def _tokens(self, step: int) -> int:
        """Tokens seen when ``step`` updates: (step + 1) batches."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside the schedule's steps 0 … {self.steps - 1}")
        return (step + 1) * self.batch_tokens


class ScheduleRow(NamedTuple):
    """The global η and λ that a 0-based step updates with, their ELR = √(η·λ) and their EWD = √(λ/η)."""

    step: int
    eta: float
    lam: float
    elr: float
    ewd: float


def schedule_table(schedule: Schedule, settings: Settings) -> list[ScheduleRow]:
    """One row a step; a parameter group's own η and λ are fixed multiples of these."""
    rows = []
    for step in range(schedule.steps):
        eta, lam = settings.eta * schedule.eta_factor(step), settings.lam * schedule.lam_factor(step)
        rows.append(ScheduleRow(step, eta, lam, sqrt(eta * lam), sqrt(lam / eta)))
    return rows


def batch_lr_factor(batch_tokens: int, reference: int) -> float:
    """√(b/b_ref), the factor on every η at another batch; λ stays (arXiv 2507.22448). In tokens a step."""
    return sqrt(batch_tokens / reference)

"""Budget, trial and pack: what is trained, and what comes back. Pure data that every layer above shares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mup_tune.files import FrozenModel, content_hash
from mup_tune.schedule import Schedule
from mup_tune.settings import Settings
from mup_tune.shape import NonNegative, Positive, Shape

SHARE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
IGNORED_TARGET = -100  # among the ids that a batch asks for: not predicted


class _RowLength(FrozenModel):
    """A base of its own, so that files and messages name ``seq_len`` before the schedule's sizes."""

    seq_len: Positive


class Budget(Schedule, _RowLength):
    """How long, on how much and in which order a trial trains. Everything is counted in tokens of one member.

    ``val_lengths`` adds validation at these multiples of ``seq_len``, on one text cut into rows of each
    length. ``dtype`` is that of matrix products; parameters, decays, softmax and losses are float32 either
    way.
    """

    val_tokens: Positive
    val_lengths: tuple[Positive, ...] = ()
    data_seed: NonNegative = 0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _whole_batches(self) -> Budget:
        if self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens = {self.batch_tokens} must be a multiple of seq_len = {self.seq_len}")
        if self.val_tokens % self.seq_len:
            raise ValueError(f"val_tokens = {self.val_tokens} must be a multiple of seq_len = {self.seq_len}")
        longest = self.seq_len * max(self.val_lengths, default=1)
        if any(longest % (self.seq_len * factor) for factor in self.val_lengths) or self.val_tokens % longest:
            raise ValueError(
                f"val_lengths = {list(self.val_lengths)} must each divide the largest, "
                f"and val_tokens = {self.val_tokens} must be a multiple of {longest}"
            )
        if self.total_tokens < self.batch_tokens:
            raise ValueError(f"total_tokens = {self.total_tokens} is less than one batch of {self.batch_tokens}")
        if self.warmup_tokens + self.decay_tokens > self.total_tokens:
            raise ValueError("warmup_tokens + decay_tokens must not exceed total_tokens")
        return self

    def longer(self, factor: float) -> Budget:
        """``factor`` ≥ 1 times the tokens in whole batches; warmup stays, and so does the decay's share."""
        batch = self.batch_tokens
        steps = max(round(self.steps * factor), ceil(self.total_tokens / batch))
        total = steps * batch
        decay = min(round(self.decay_tokens / self.total_tokens * steps) * batch, total - self.warmup_tokens)
        return self.model_copy(update={"total_tokens": total, "decay_tokens": decay})

    @property
    def rows(self) -> int:
        """Sequences in a batch."""
        return self.batch_tokens // self.seq_len


def in_tokens(budget: Any) -> Any:
    """A Budget's data with warmup and decay in tokens where they are shares of all tokens, such as ``10%``.

    A share is rounded to whole batches. What is no such text stays as it is, to be checked as any other.
    """
    if not isinstance(budget, dict):
        return budget
    total, batch = budget.get("total_tokens"), budget.get("batch_tokens")
    if not (isinstance(total, int) and isinstance(batch, int) and batch > 0):
        return budget
    found = dict(budget)
    for name in ("warmup_tokens", "decay_tokens"):
        share = SHARE.fullmatch(value) if isinstance(value := budget.get(name), str) else None
        if share:
            found[name] = round(float(share[1]) / 100 * (total // batch)) * batch
    return found


class Trial(FrozenModel):
    """(Shape, Budget, Settings, seed). Its hash covers all four and is its identity everywhere."""

    shape: Shape
    budget: Budget
    settings: Settings
    seed: NonNegative

    @cached_property
    def hash(self) -> str:
        return self.content_hash()

    @property
    def flops(self) -> float:
        """Training FLOPs; validation is not counted."""
        budget = self.budget
        return self.shape.flops_per_token(budget.seq_len) * budget.steps * budget.batch_tokens


Status = Literal["ok", "diverged"]
_ON_SOURCE = "loss."


def source_loss(name: str) -> str:
    """The metric that holds the loss on one source of a mixture: ``loss.NAME``."""
    return f"{_ON_SOURCE}{name}"


def sources(metrics: Iterable[str]) -> list[str]:
    """The sources of a mixture that have a loss of their own among ``metrics``, in their order."""
    return [metric.removeprefix(_ON_SOURCE) for metric in metrics if metric.startswith(_ON_SOURCE)]


def length_loss(factor: int) -> str:
    """The metric that holds the loss at ``factor`` times the training length: ``loss_x2`` at twice it."""
    return f"loss_x{factor}"


@dataclass(frozen=True)
class TrialResult:
    """A finished trial. ``loss`` is nats/token on the fixed validation batches, NaN if the member diverged.

    ``metrics``: bits_per_byte, train_loss, eta_lambda_T, clipped_fraction, grad_norm, tokens_per_s (this
    member's share), members (of its pack), flops; :func:`source_loss` of each source of a mixture;
    :func:`length_loss` of every entry of ``val_lengths``. ``reason`` says why and at which step a member
    diverged.
    """

    trial: Trial
    status: Status
    loss: float
    loss_se: float
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Pack:
    """One population as a unit of work: members of one Shape and Budget, in order."""

    id: str
    stage: str
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, stage: str, trials: tuple[Trial, ...]) -> Pack:
        """The id is the hash of the members in order, so that one composition has one name."""
        return cls(content_hash([trial.hash for trial in trials]), stage, trials)


@dataclass(frozen=True)
class PackResult:
    """What a lane hands back: rows in member order, and one curve table for the pack.

    ``curves`` has equally long columns: member (index), step, tokens, loss, grad_norm, clipped (0/1), eta.
    ``record`` names what ran: backend, device, threads, tokens_per_s (all members), mfu, seconds, torch.
    """

    pack: Pack
    rows: tuple[TrialResult, ...]
    curves: dict[str, list[float]]
    record: dict[str, Any]

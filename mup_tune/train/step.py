"""What trains a population step by step, whatever the backend, and which one a device takes.

Shape suffixes: P members, B rows, T tokens of a row, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mup_tune.data.batches import Batch
from mup_tune.errors import UserError
from mup_tune.model import backends
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.torch_step import TorchStep
from mup_tune.trial import Budget


class TrainingStep(Protocol):
    """A population in training: batches are fed for several steps, and then each step trains on the next.

    ``trace_4SP`` tells of every step since the last feed, fp32: the loss, the gradient's norm, 1 where it was
    clipped, and 1 where the member is alive afterwards. ``loss_P`` (fp32 [P]) is the last step's, ``alive_P``
    (bool [P]) holds after it.
    """

    trace_4SP: Tensor
    loss_P: Tensor
    alive_P: Tensor

    @property
    def backend(self) -> str:
        """What computes; recorded with every run."""

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        """Start another pack: parameters at their init, zero moments, all members alive."""

    def feed(self, batches: Sequence[Batch], factors: Sequence[tuple[float, float]]) -> None:
        """What the next steps train on, without waiting for the device.

        Args:
            batches: one a step, at most :func:`~mup_tune.train.fed.fed_steps` of them.
            factors: every step's multiples of all η and of all λ.
        """

    def step(self) -> None:
        """One update, without waiting for the device.

        A member whose loss or gradient norm is not finite is masked from this step on.

        Raises:
            IndexError: all batches that were fed are used up.
        """

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, in nats: [P, B]."""


class Steps:
    """Steps by their sizes: the last one is kept, so that packs of one Shape and size share its recording."""

    def __init__(self, device: str) -> None:
        self.device, self.backend = device, backends.choose(device)
        self._kept: tuple[tuple[object, ...], TrainingStep] | None = None

    def of(self, shape: Shape, members: int, budget: Budget) -> TrainingStep:
        """A step to :meth:`~TrainingStep.load` a pack into.

        Raises:
            UserError: a dtype that no backend of this device trains in.
        """
        key = (shape, members, budget.rows, budget.seq_len, budget.dtype, budget.beta1, budget.beta2, budget.clip_norm)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # the old one's memory first
            self._kept = (key, self._new(shape, members, budget))
        return self._kept[1]

    def _new(self, shape: Shape, members: int, budget: Budget) -> TrainingStep:
        if self.backend == "triton":
            from mup_tune.train.fused_step import FusedStep

            betas = (budget.beta1, budget.beta2)
            dtype = getattr(torch, budget.dtype)
            return FusedStep(shape, members, budget.rows, budget.seq_len, self.device, dtype, betas, budget.clip_norm)
        if budget.dtype != "float32":
            raise UserError(
                f"{budget.dtype!r} cannot be trained in on {self.device!r} with the {self.backend!r} backend "
                f"({backends.missing('triton', self.device)})",
                field="budget.dtype",
                fix="Use a CUDA GPU with triton, or --set budget.dtype=float32",
            )
        return TorchStep(shape, members, budget, self.device, self.backend)

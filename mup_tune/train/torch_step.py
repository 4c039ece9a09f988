"""One training step of a population in PyTorch's own operators.

Shape suffixes: P members, B rows, T tokens of a row, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mup_tune.data.batches import Batch
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.optimizer import MemberAdamW, rates
from mup_tune.train.population import initialise
from mup_tune.train.validation import to_device
from mup_tune.trial import IGNORED_TARGET, Budget


class TorchStep:
    """A :class:`~mup_tune.train.step.TrainingStep` in fp32; ``scan`` names the SSD scan."""

    def __init__(self, shape: Shape, members: int, budget: Budget, device: str, scan: str) -> None:
        self.population = Population(shape, members, device=device, scan=scan)
        self.backend = scan
        self._budget = budget
        self._device = device
        self.loss_P = torch.zeros(members, device=device)
        self.alive_P = torch.zeros(members, dtype=torch.bool, device=device)

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        initialise(self.population, tables, seeds)
        parameters, budget = dict(self.population.named_parameters()), self._budget
        self._optimizer = MemberAdamW(
            parameters, rates(parameters, tables, hf.owning_role), (budget.beta1, budget.beta2), budget.clip_norm
        )
        self.alive_P = torch.ones_like(self.alive_P)
        self.feed([], [])

    def feed(self, batches: Sequence[Batch], factors: Sequence[tuple[float, float]]) -> None:
        self._fed, self._done = list(zip(batches, factors, strict=True)), 0
        self.trace_4SP = torch.zeros(4, len(batches), len(self.alive_P), device=self._device)

    def step(self) -> None:
        batch, factors = self._fed[self._done]
        tokens_BT, targets_BT, documents_BT = to_device(batch, self._device)
        self._optimizer.zero_grad()
        loss_P = self.population.nll(tokens_BT, targets_BT, documents_BT).sum(1) / (targets_BT != IGNORED_TARGET).sum()
        loss_P.sum().backward()  # type: ignore[no-untyped-call]
        self.loss_P, norm_P = loss_P.detach(), self._optimizer.gradient_norms()
        self.alive_P = self.alive_P & self.loss_P.isfinite() & norm_P.isfinite()
        clipped_P = self._optimizer.step(*factors, norm_P, self.alive_P)
        self.trace_4SP[:, self._done] = torch.stack([self.loss_P, norm_P, clipped_P.float(), self.alive_P.float()])
        self._done += 1

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        return self.population.nll(tokens_BT, targets_BT, documents_BT)

"""One training step of a population in PyTorch's own operators.

Shape suffixes: P members, B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.optimizer import MemberAdamW, rates
from mup_tune.train.population import initialise
from mup_tune.trial import IGNORED_TARGET, Budget


class TorchStep:
    """A :class:`~mup_tune.train.step.TrainingStep` in fp32; ``scan`` names the SSD scan."""

    def __init__(self, shape: Shape, members: int, budget: Budget, device: str, scan: str) -> None:
        self.population = Population(shape, members, device=device, scan=scan)
        self.backend = scan
        self._budget = budget
        self.loss_P, self.norm_P = (torch.zeros(members, device=device) for _ in range(2))
        self.clipped_P, self.alive_P = (torch.zeros(members, dtype=torch.bool, device=device) for _ in range(2))

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        initialise(self.population, tables, seeds)
        parameters, budget = dict(self.population.named_parameters()), self._budget
        self._optimizer = MemberAdamW(
            parameters, rates(parameters, tables, hf.owning_role), (budget.beta1, budget.beta2), budget.clip_norm
        )
        self.alive_P = torch.ones_like(self.alive_P)

    def step(
        self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None, eta_factor: float, lam_factor: float
    ) -> None:
        self._optimizer.zero_grad()
        loss_P = self.population.nll(tokens_BT, targets_BT, documents_BT).sum(1) / (targets_BT != IGNORED_TARGET).sum()
        loss_P.sum().backward()  # type: ignore[no-untyped-call]
        self.loss_P, self.norm_P = loss_P.detach(), self._optimizer.gradient_norms()
        self.alive_P = self.alive_P & self.loss_P.isfinite() & self.norm_P.isfinite()
        self.clipped_P = self._optimizer.step(eta_factor, lam_factor, self.norm_P, self.alive_P)

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        return self.population.nll(tokens_BT, targets_BT, documents_BT)

"""One training step of a population: what every backend offers, and the PyTorch one.

Shape suffixes: P members, B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model import backends, hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.init import draw_
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.optimizer import MemberAdamW, rates
from mup_tune.trial import IGNORED_TARGET, Budget


class Step(Protocol):
    """A population in training. ``loss_P``, ``norm_P``, ``clipped_P``: of the last step; ``alive_P``: after it."""

    loss_P: Tensor
    norm_P: Tensor
    clipped_P: Tensor
    alive_P: Tensor

    @property
    def backend(self) -> str:
        """What computes; recorded with every run."""

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        """Start another pack: parameters at their init, zero moments, all members alive."""

    def step(
        self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None, eta_factor: float, lam_factor: float
    ) -> None:
        """One update. A member whose loss or gradient norm is not finite is masked from this step on.

        Args:
            documents_BT: int32 document numbers, or None where every row is one document.
            eta_factor, lam_factor: this step's multiples of every η and λ.
        """

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, in nats: [P, B]."""


def initialise(population: Population, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
    """Roles and the training init; members with one seed share their draws, scaled by their own init."""
    population.set_roles(tables)
    for member, (table, seed) in enumerate(zip(tables, seeds, strict=True)):
        for name, tensor in hf.state_dict(population, member).items():
            draw_(tensor, table.of(name), seed=seed, parameter=name)


def new_population(shape: Shape, tables: Sequence[RoleTable], seeds: Sequence[int], device: str) -> Population:
    """A population at its training init."""
    population = Population(shape, len(tables), device=device)
    initialise(population, tables, seeds)
    return population


class TorchStep:
    """The step in PyTorch's own operators, in fp32; ``scan`` names the SSD scan."""

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


class Steps:
    """Steps by their sizes: the last one is kept, so that packs of one Shape and size share its recording."""

    def __init__(self, device: str) -> None:
        self.device, self.backend = device, backends.choose(device)
        self._kept: tuple[tuple[object, ...], Step] | None = None

    def of(self, shape: Shape, members: int, budget: Budget) -> Step:
        """A step to :meth:`Step.load` a pack into.

        Raises:
            UserError: a dtype that no backend of this device trains in.
        """
        key = (shape, members, budget.rows, budget.seq_len, budget.dtype, budget.beta1, budget.beta2, budget.clip_norm)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # the old one's memory first
            self._kept = (key, self._new(shape, members, budget))
        return self._kept[1]

    def _new(self, shape: Shape, members: int, budget: Budget) -> Step:
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

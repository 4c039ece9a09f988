"""AdamW for populations: every member has its own LR, WD, eps and clip norm, and none can disturb another.

Shape suffixes: P members; parameters are [P, …].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mup_tune.roles import Role, RoleTable


@dataclass(frozen=True)
class Rates:
    """Peak η, λ and eps of one parameter, each [P, 1, …] to broadcast over the parameter."""

    eta: Tensor
    lam: Tensor
    eps: Tensor


def rates(
    parameters: Mapping[str, Tensor], tables: Sequence[RoleTable], role_of: Callable[[RoleTable, str], Role]
) -> dict[str, Rates]:
    """Rates of every parameter from the members' role tables.

    Args:
        parameters: ours, [P, …] each, by our names.
        tables: one role table a member.
        role_of: the role that owns the rates of one of our parameters.
    """

    def of(name: str, like: Tensor) -> Rates:
        roles = [role_of(table, name) for table in tables]
        columns = zip(*((role.lr, role.weight_decay, role.eps) for role in roles), strict=True)
        size = (-1, *[1] * (like.ndim - 1))
        return Rates(*(torch.tensor(each, dtype=torch.float32, device=like.device).view(size) for each in columns))

    return {name: of(name, tensor) for name, tensor in parameters.items()}


class MemberAdamW:
    """AdamW with the decay θ ← θ − η·λ·θ (arXiv 1711.05101) and per-member clipping.

    A member that is not alive gets zero gradients and a zero LR: its parameters stay where they were.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], rates: Mapping[str, Rates], betas: tuple[float, float], clip_norm: float
    ) -> None:
        if set(parameters) != set(rates):
            raise ValueError(f"parameters without rates: {sorted(set(parameters) ^ set(rates))}")
        self.parameters, self.rates = dict(parameters), dict(rates)
        self.betas, self.clip_norm = betas, clip_norm
        self.first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Global gradient norm of each member, fp32 [P]; non-finite where any of its gradients is."""
        norms = [torch.linalg.vector_norm(self._gradient(name).flatten(1), dim=1) for name in self.parameters]
        norm_P: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        return norm_P

    @torch.no_grad()
    def step(self, eta_factor: float, lam_factor: float, norm_P: Tensor, alive_P: Tensor) -> Tensor:
        """One update; returns which members were clipped (bool [P]).

        Args:
            eta_factor: this step's multiple of every η.
            lam_factor: this step's multiple of every λ.
            norm_P: what :meth:`gradient_norms` gave.
            alive_P: bool [P].
        """
        self.steps += 1
        beta1, beta2 = self.betas
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        clipped_P = norm_P > self.clip_norm
        scale_P = torch.where(clipped_P, self.clip_norm / norm_P, torch.ones_like(norm_P))
        for name, parameter in self.parameters.items():
            rate, first, second = self.rates[name], self.first[name], self.second[name]
            alive = alive_P.view_as(rate.eta)
            # where, not a product: 0 · NaN is NaN
            gradient = torch.where(alive, self._gradient(name) * scale_P.view_as(rate.eta), 0.0)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            eta = torch.where(alive, rate.eta * eta_factor, 0.0)
            parameter.mul_(1 - eta * rate.lam * lam_factor)
            update = first / (second / correction2).sqrt_().add_(rate.eps)
            parameter.sub_(update.mul_(eta / correction1))
        return clipped_P & alive_P

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        if gradient is None:
            raise RuntimeError(f"{name} has no gradient: it takes no part in the forward pass")
        return gradient

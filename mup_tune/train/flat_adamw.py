"""AdamW over flat storage in two kernels a bank: the update of ``optimizer.MemberAdamW``, for the GPU step.

Shape suffixes: P members, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mup_tune.model.kernels import adamw, verdict
from mup_tune.model.storage import Bank, Storage
from mup_tune.roles import Role, RoleTable

ETA, LAM, EPS, SCALE = range(4)


class _Bank:
    """One bank's moments and its rows' rates."""

    def __init__(self, bank: Bank, members: int) -> None:
        self.bank = bank
        places = [(each.offset, each.member_stride, each.rows, each.cols, each.row_stride) for each in bank.places]
        tiles, rows = adamw.make_tiles(places)
        self.tiles = tiles.to(bank.master.device)
        self.first, self.second = torch.zeros_like(bank.master), torch.zeros_like(bank.master)
        self.tables = torch.zeros(4, members, rows, device=bank.master.device)

    def load(
        self, tables: Sequence[RoleTable], role_of: Callable[[RoleTable, str], Role], scales: dict[str, Tensor]
    ) -> None:
        """Rates and scales of every row, in place: addresses that a CUDA graph has read stay."""
        self.first.zero_()
        self.second.zero_()
        filled = torch.empty(self.tables.shape)
        start = 0
        for place in self.bank.places:
            rows = slice(start, start + place.rows)
            for member, table in enumerate(tables):
                role = role_of(table, place.parameter)
                for index, value in ((ETA, role.lr), (LAM, role.weight_decay), (EPS, role.eps)):
                    filled[index, member, rows] = value
            scale = scales.get(place.parameter) if self.bank.work is not None else None
            filled[SCALE, :, rows] = 1.0 if scale is None else scale[..., 0].cpu().expand(-1, place.rows)
            start += place.rows
        self.tables.copy_(filled)


class FlatAdamW:
    """AdamW with per-member rates, clipping and masking over a :class:`Storage`; renews its work copies."""

    def __init__(self, storage: Storage, betas: tuple[float, float], clip_norm: float) -> None:
        self.storage, self.betas, self.clip_norm = storage, betas, clip_norm
        self._banks = [_Bank(bank, storage.members) for bank in storage.banks]

    def load(self, tables: Sequence[RoleTable], role_of: Callable[[RoleTable, str], Role]) -> None:
        """Zero moments, and rates from a role table a member; ``role_of`` finds a parameter's role."""
        scales = self.storage.scales()
        for each in self._banks:
            each.load(tables, role_of, scales)

    def judge(self, loss_P: Tensor, alive_P: Tensor, cursor: Tensor, trace_4SP: Tensor) -> Tensor:
        """Each member's global gradient norm, fp32 [P]; :func:`.verdict.judge` tells what else it leaves."""
        matrices, vectors = (
            adamw.square_sums(each.bank.grad, each.tiles, each.tables[SCALE], self.storage.members)
            for each in self._banks
        )
        return verdict.judge(matrices, vectors, loss_P, alive_P, self.clip_norm, cursor, trace_4SP)

    def step(self, factors: Tensor, norm_P: Tensor, alive_P: Tensor) -> None:
        """One update.

        Args:
            factors: fp32 [4] on the device: this step's multiples of η and λ, 1 − β₁ᵗ and 1 − β₂ᵗ.
            norm_P: what :meth:`judge` gave.
            alive_P: bool [P]; the others' parameters and moments stay.
        """
        for each in self._banks:
            bank = each.bank
            adamw.adamw_(
                bank.master,
                each.first,
                each.second,
                bank.grad,
                bank.work,
                each.tiles,
                each.tables,
                factors,
                self.clip_norm,
                *self.betas,
                norm_P,
                alive_P,
            )

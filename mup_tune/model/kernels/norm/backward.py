"""Backward pass of the norm kernels.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import Parts, strides
from mup_tune.model.kernels.norm.forward import plan_tile

TILE = 2048  # half the forward pass's: two inputs and the weight gradient's running sum are held
PROGRAMS = 512  # over all members, about four an SM of a Hopper GPU


def add_norm_backward(
    d_summed_PND: Tensor | None,
    d_normed_PND: Tensor,
    summed_PND: Tensor,
    rstd_PN: Tensor,
    weight_PD: Tensor,
    branch_dtype: torch.dtype | None,
    weight_parts: Parts,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`~mup_tune.model.kernels.norm.add_norm`: the same one for both addends.

    Args:
        d_summed_PND: fp32, what reaches ``summed`` by other ways than this norm; None where there is none.
        d_normed_PND: in the work dtype.
        branch_dtype: the branch's dtype; None where there was no branch.
        weight_parts: of width D.

    Returns:
        the residual's gradient [P, N, D] fp32, the branch's in its dtype or None.
    """
    d_in_PND = torch.empty_like(summed_PND)
    d_branch_PND = None if branch_dtype is None else torch.empty_like(summed_PND, dtype=branch_dtype)
    _launch(d_summed_PND, d_normed_PND, summed_PND, rstd_PN, weight_PD, 1, d_in_PND, d_branch_PND, weight_parts)
    return d_in_PND, d_branch_PND


def group_norm_backward(
    d_out_PNC: Tensor, rstd_PNG: Tensor, y_PNC: Tensor, weight_PC: Tensor, n_groups: int, weight_parts: Parts
) -> Tensor:
    """Gradient of :func:`~mup_tune.model.kernels.norm.group_norm`, [P, N, C] in y's dtype, contiguous.

    Args:
        weight_parts: of width C.
    """
    d_y_PNC = torch.empty(y_PNC.shape, dtype=y_PNC.dtype, device=y_PNC.device)
    _launch(None, d_out_PNC, y_PNC, rstd_PNG, weight_PC, n_groups, d_y_PNC, None, weight_parts)
    return d_y_PNC


def _launch(
    d_summed_PNC: Tensor | None,
    d_out_PNC: Tensor,
    x_PNC: Tensor,
    rstd: Tensor,
    weight_PC: Tensor,
    n_groups: int,
    d_in_PNC: Tensor,
    d_branch_PNC: Tensor | None,
    weight_parts: Parts,
) -> None:
    P, N, C = x_PNC.shape
    rows, columns, warps = plan_tile(C // n_groups, TILE)
    tiles = triton.cdiv(N, rows)
    programs = min(tiles, max(1, PROGRAMS // (P * n_groups)))
    _norm_backward_kernel[(programs, n_groups, P)](
        d_summed_ptr=d_summed_PNC, d_out_ptr=d_out_PNC, x_ptr=x_PNC, rstd_ptr=rstd, weight_ptr=weight_PC,
        d_in_ptr=d_in_PNC, d_branch_ptr=d_branch_PNC, weight_parts_ptr=weight_parts(programs),
        N=N, **strides("pn", d_out=d_out_PNC, x=x_PNC), TILES=triton.cdiv(tiles, programs),
        GROUPS=n_groups, WIDTH=C // n_groups, ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _norm_backward_kernel(
    d_summed_ptr, d_out_ptr, x_ptr, rstd_ptr, weight_ptr, d_in_ptr, d_branch_ptr, weight_parts_ptr,
    N, d_out_stride_p, d_out_stride_n, x_stride_p, x_stride_n, TILES: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program takes ``TILES`` tiles. ``d_summed_ptr`` and ``d_branch_ptr`` may be None."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    group, p = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    channels = group * WIDTH + columns
    weight = tl.load(weight_ptr + p * (GROUPS * WIDTH) + channels, columns < WIDTH, other=0.0)
    d_weight = tl.zeros([ROWS, COLUMNS], tl.float32)  # summed over its rows once, at the end
    for tile in range(TILES):
        rows = (tile * programs + program).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (columns < WIDTH)[None, :]
        dense = (p * N + rows)[:, None] * (GROUPS * WIDTH) + channels[None, :]
        x_at = p * x_stride_p + rows[:, None] * x_stride_n + channels[None, :]
        d_out_at = p * d_out_stride_p + rows[:, None] * d_out_stride_n + channels[None, :]
        x = tl.load(x_ptr + x_at, mask, other=0.0).to(tl.float32)
        d_out = tl.load(d_out_ptr + d_out_at, mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + (p * N + rows) * GROUPS + group, rows < N, other=0.0)
        unit = x * rstd[:, None]
        d_unit = d_out * weight[None, :]
        d_weight += d_out * unit
        d_in = (d_unit - unit * (tl.sum(d_unit * unit, 1) / WIDTH)[:, None]) * rstd[:, None]
        if d_summed_ptr is not None:
            d_in += tl.load(d_summed_ptr + dense, mask, other=0.0)
        tl.store(d_in_ptr + dense, d_in, mask)
        if d_branch_ptr is not None:
            tl.store(d_branch_ptr + dense, d_in, mask)
    part_at = (p * programs + program) * (GROUPS * WIDTH) + channels
    tl.store(weight_parts_ptr + part_at, tl.sum(d_weight, 0), columns < WIDTH)

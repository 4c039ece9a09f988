"""RMSNorm kernels: the residual stream's addition with the norm behind it, and the gated norm in groups of channels.

Shape suffixes: P members, N tokens, D d_model, C channels, G groups of channels.

One kernel does both: the residual stream's norm is one group that also adds a branch. Everything is computed
in fp32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.layers import RMS_NORM_EPS

FORWARD_TILE = 4096  # elements a program holds at once, 32 a thread of 4 warps
BACKWARD_TILE = 2048  # half as many: it holds two inputs, and the weight gradient's running sum, more
# Backward programs over all members, about four an SM of a Hopper GPU; each leaves one partial weight
# gradient.
BACKWARD_PROGRAMS = 512

Parts = Callable[[int], Tensor]


def add_norm(
    residual_PND: Tensor, branch_PND: Tensor | None, weight_PD: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """``summed = residual + branch`` and ``normed = summed · rstd · weight`` (RMSNorm, arXiv 1910.07467), in one pass.

    Args:
        residual_PND: fp32, contiguous.
        branch_PND: what a branch adds, in the work dtype, contiguous. None: ``summed`` is ``residual_PND``
        itself.
        weight_PD: fp32.
        dtype: of ``normed``.

    Returns:
        summed [P, N, D] fp32, normed [P, N, D], rstd [P, N] fp32.
    """
    P, N, _ = residual_PND.shape
    summed_PND = residual_PND if branch_PND is None else torch.empty_like(residual_PND)
    normed_PND = torch.empty_like(residual_PND, dtype=dtype)
    rstd_PN = residual_PND.new_empty(P, N)
    _launch_norm(residual_PND, branch_PND, weight_PD, summed_PND, normed_PND, rstd_PN, 1)
    return summed_PND, normed_PND, rstd_PN


def add_norm_backward(
    d_summed_PND: Tensor | None,
    d_normed_PND: Tensor,
    summed_PND: Tensor,
    rstd_PN: Tensor,
    weight_PD: Tensor,
    branch_dtype: torch.dtype | None,
    parts: Parts,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`add_norm`, whose two inputs have the same one.

    Args:
        d_summed_PND: fp32, what reaches ``summed`` by other ways than this norm; None where there is none.
        d_normed_PND: in the work dtype.
        branch_dtype: the branch's dtype; None where there was no branch.
        parts: where the weight's gradient goes, [P, programs, D] fp32 for so many programs, contiguous: each
        its part.

    Returns:
        the residual's gradient [P, N, D] fp32, the branch's in its dtype or None.
    """
    d_in_PND = torch.empty_like(summed_PND)
    d_branch_PND = None if branch_dtype is None else torch.empty_like(summed_PND, dtype=branch_dtype)
    _launch_backward(d_summed_PND, d_normed_PND, summed_PND, rstd_PN, weight_PD, d_in_PND, d_branch_PND, 1, parts)
    return d_in_PND, d_branch_PND


def group_norm(y_PNC: Tensor, weight_PC: Tensor, n_groups: int, out_PNC: Tensor) -> Tensor:
    """RMSNorm over each of ``n_groups`` equal parts of the channels, into ``out_PNC``; returns rstd [P, N, G] fp32.

    Args:
        y_PNC: work dtype; it and ``out_PNC`` may be column slices of wider buffers.
        weight_PC: fp32.
    """
    P, N, _ = y_PNC.shape
    rstd_PNG = weight_PC.new_empty(P, N, n_groups)
    _launch_norm(y_PNC, None, weight_PC, None, out_PNC, rstd_PNG, n_groups)
    return rstd_PNG


def group_norm_backward(
    d_out_PNC: Tensor, y_PNC: Tensor, rstd_PNG: Tensor, weight_PC: Tensor, n_groups: int, parts: Parts
) -> Tensor:
    """Gradient of :func:`group_norm`, [P, N, C] in y's dtype, contiguous; ``parts`` as in :func:`add_norm_backward`."""
    d_y_PNC = torch.empty(y_PNC.shape, dtype=y_PNC.dtype, device=y_PNC.device)
    _launch_backward(None, d_out_PNC, y_PNC, rstd_PNG, weight_PC, d_y_PNC, None, n_groups, parts)
    return d_y_PNC


def _tile(width: int, elements: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps; a row is never split."""
    columns = triton.next_power_of_2(width)
    rows = max(1, elements // columns)
    return rows, columns, max(4, min(16, rows * columns // (elements // 4)))


def _launch_norm(
    x_PNC: Tensor,
    branch_PNC: Tensor | None,
    weight_PC: Tensor,
    summed_PNC: Tensor | None,
    out_PNC: Tensor,
    rstd: Tensor,
    n_groups: int,
) -> None:
    P, N, C = x_PNC.shape
    rows, columns, warps = _tile(C // n_groups, FORWARD_TILE)
    _norm_kernel[(triton.cdiv(N, rows), n_groups, P)](
        x_PNC,
        branch_PNC,
        weight_PC,
        summed_PNC,
        out_PNC,
        rstd,
        N,
        *x_PNC.stride()[:2],
        *out_PNC.stride()[:2],
        EPS=RMS_NORM_EPS,
        GROUPS=n_groups,
        WIDTH=C // n_groups,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )


def _launch_backward(
    d_summed_PNC: Tensor | None,
    d_out_PNC: Tensor,
    x_PNC: Tensor,
    rstd: Tensor,
    weight_PC: Tensor,
    d_in_PNC: Tensor,
    d_branch_PNC: Tensor | None,
    n_groups: int,
    parts: Parts,
) -> None:
    P, N, C = x_PNC.shape
    rows, columns, warps = _tile(C // n_groups, BACKWARD_TILE)
    tiles = triton.cdiv(N, rows)
    programs = min(tiles, max(1, BACKWARD_PROGRAMS // (P * n_groups)))
    _norm_backward_kernel[(programs, n_groups, P)](
        d_summed_PNC,
        d_out_PNC,
        x_PNC,
        rstd,
        weight_PC,
        d_in_PNC,
        d_branch_PNC,
        parts(programs),
        N,
        *d_out_PNC.stride()[:2],
        *x_PNC.stride()[:2],
        TILES=triton.cdiv(tiles, programs),
        GROUPS=n_groups,
        WIDTH=C // n_groups,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )


@triton.jit
def _norm_kernel(
    x_ptr,
    branch_ptr,  # None: nothing is added, and summed_ptr is not written
    weight_ptr,
    summed_ptr,
    out_ptr,
    rstd_ptr,
    N,
    x_member,
    x_row,
    out_member,
    out_row,
    EPS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    group, member = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    channels = group * WIDTH + columns
    mask = (rows < N)[:, None] & (columns < WIDTH)[None, :]
    x = tl.load(x_ptr + member * x_member + rows[:, None] * x_row + channels[None, :], mask, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        dense = (member * N + rows)[:, None] * (GROUPS * WIDTH) + channels[None, :]
        x += tl.load(branch_ptr + dense, mask, other=0.0).to(tl.float32)
        tl.store(summed_ptr + dense, x, mask)
    weight = tl.load(weight_ptr + member * (GROUPS * WIDTH) + channels, columns < WIDTH, other=0.0)
    mean_square = tl.sum(x * x, 1) / WIDTH
    # Squares that overflow would give zeros that look healthy: such a member has diverged.
    rstd = tl.where(mean_square < float("inf"), tl.rsqrt(mean_square + EPS), float("nan"))
    out = x * rstd[:, None] * weight[None, :]
    tl.store(out_ptr + member * out_member + rows[:, None] * out_row + channels[None, :], out, mask)
    tl.store(rstd_ptr + (member * N + rows) * GROUPS + group, rstd, rows < N)


@triton.jit
def _norm_backward_kernel(
    d_summed_ptr,  # or None
    d_out_ptr,
    x_ptr,
    rstd_ptr,
    weight_ptr,
    d_in_ptr,
    d_branch_ptr,  # or None
    partial_ptr,
    N,
    d_out_member,
    d_out_row,
    x_member,
    x_row,
    TILES: tl.constexpr,  # of a program
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    group, member = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    channels = group * WIDTH + columns
    weight = tl.load(weight_ptr + member * (GROUPS * WIDTH) + channels, columns < WIDTH, other=0.0)
    d_weight = tl.zeros([ROWS, COLUMNS], tl.float32)  # summed over its rows once, at the end
    for tile in range(TILES):
        rows = (tile * programs + program).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (columns < WIDTH)[None, :]
        dense = (member * N + rows)[:, None] * (GROUPS * WIDTH) + channels[None, :]
        x_at = member * x_member + rows[:, None] * x_row + channels[None, :]
        d_out_at = member * d_out_member + rows[:, None] * d_out_row + channels[None, :]
        x = tl.load(x_ptr + x_at, mask, other=0.0).to(tl.float32)
        d_out = tl.load(d_out_ptr + d_out_at, mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + (member * N + rows) * GROUPS + group, rows < N, other=0.0)
        unit = x * rstd[:, None]
        d_unit = d_out * weight[None, :]
        d_weight += d_out * unit
        d_in = (d_unit - unit * (tl.sum(d_unit * unit, 1) / WIDTH)[:, None]) * rstd[:, None]
        if d_summed_ptr is not None:
            d_in += tl.load(d_summed_ptr + dense, mask, other=0.0)
        tl.store(d_in_ptr + dense, d_in, mask)
        if d_branch_ptr is not None:
            tl.store(d_branch_ptr + dense, d_in, mask)
    partial_at = (member * programs + program) * (GROUPS * WIDTH) + channels
    tl.store(partial_ptr + partial_at, tl.sum(d_weight, 0), columns < WIDTH)

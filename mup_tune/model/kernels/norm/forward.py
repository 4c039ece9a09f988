"""RMSNorm (arXiv 1910.07467): the residual stream's, after an addition, and the gated norm's in groups.

One kernel does both: the residual stream's norm is one group that also adds a branch. Everything is computed
in fp32.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import strides
from mup_tune.model.layers import RMS_NORM_EPS

TILE = 4096  # elements a program holds at once, 32 a thread of 4 warps


def add_norm(
    residual_PND: Tensor, branch_PND: Tensor | None, weight_PD: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """``summed = residual + branch`` and ``normed = summed · rstd · weight``, in one pass.

    Args:
        residual_PND: fp32, contiguous.
        branch_PND: what a branch adds, in the work dtype, contiguous. None: ``summed`` is the residual.
        weight_PD: fp32.
        dtype: of ``normed``.

    Returns:
        summed [P, N, D] fp32, normed [P, N, D], rstd [P, N] fp32.
    """
    P, N, _ = residual_PND.shape
    summed_PND = residual_PND if branch_PND is None else torch.empty_like(residual_PND)
    normed_PND = torch.empty_like(residual_PND, dtype=dtype)
    rstd_PN = residual_PND.new_empty(P, N)
    _launch(residual_PND, branch_PND, weight_PD, summed_PND, normed_PND, rstd_PN, 1)
    return summed_PND, normed_PND, rstd_PN


def group_norm(y_PNC: Tensor, weight_PC: Tensor, n_groups: int, out_PNC: Tensor) -> Tensor:
    """RMSNorm over each of ``n_groups`` equal parts of the channels, into ``out_PNC``.

    Args:
        y_PNC: work dtype; it and ``out_PNC`` may be column slices of wider buffers.
        weight_PC: fp32.

    Returns:
        rstd [P, N, G] fp32.
    """
    P, N, _ = y_PNC.shape
    rstd_PNG = weight_PC.new_empty(P, N, n_groups)
    _launch(y_PNC, None, weight_PC, None, out_PNC, rstd_PNG, n_groups)
    return rstd_PNG


def plan_tile(width: int, elements: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps; a row is never split."""
    columns = triton.next_power_of_2(width)
    rows = max(1, elements // columns)
    return rows, columns, max(4, min(16, rows * columns // (elements // 4)))


def _launch(
    x_PNC: Tensor,
    branch_PNC: Tensor | None,
    weight_PC: Tensor,
    summed_PNC: Tensor | None,
    out_PNC: Tensor,
    rstd: Tensor,
    n_groups: int,
) -> None:
    P, N, C = x_PNC.shape
    rows, columns, warps = plan_tile(C // n_groups, TILE)
    _norm_kernel[(triton.cdiv(N, rows), n_groups, P)](
        x_ptr=x_PNC, branch_ptr=branch_PNC, weight_ptr=weight_PC, summed_ptr=summed_PNC, out_ptr=out_PNC, rstd_ptr=rstd,
        N=N, **strides("pn", x=x_PNC, out=out_PNC),
        EPS=RMS_NORM_EPS, GROUPS=n_groups, WIDTH=C // n_groups, ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _norm_kernel(
    x_ptr, branch_ptr, weight_ptr, summed_ptr, out_ptr, rstd_ptr,
    N, x_stride_p, x_stride_n, out_stride_p, out_stride_n,
    EPS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``branch_ptr`` None: nothing is added, and ``summed_ptr`` is not written."""
    group, p = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    channels = group * WIDTH + columns
    mask = (rows < N)[:, None] & (columns < WIDTH)[None, :]
    x = tl.load(x_ptr + p * x_stride_p + rows[:, None] * x_stride_n + channels[None, :], mask, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        dense = (p * N + rows)[:, None] * (GROUPS * WIDTH) + channels[None, :]
        x += tl.load(branch_ptr + dense, mask, other=0.0).to(tl.float32)
        tl.store(summed_ptr + dense, x, mask)
    weight = tl.load(weight_ptr + p * (GROUPS * WIDTH) + channels, columns < WIDTH, other=0.0)
    mean_square = tl.sum(x * x, 1) / WIDTH
    # Squares that overflow would give zeros that look healthy: such a member has diverged.
    rstd = tl.where(mean_square < float("inf"), tl.rsqrt(mean_square + EPS), float("nan"))
    out = x * rstd[:, None] * weight[None, :]
    tl.store(out_ptr + p * out_stride_p + rows[:, None] * out_stride_n + channels[None, :], out, mask)
    tl.store(rstd_ptr + (p * N + rows) * GROUPS + group, rstd, rows < N)

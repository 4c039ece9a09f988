"""AdamW of a whole population over flat storage: one launch for all parameters of all members, and one for the norms.

Shape suffixes: P members, R rows of a tile, C columns of a block.

Every parameter is [P, rows, cols] somewhere in a flat buffer. A tile is up to ``ROWS`` of its rows; a program
updates one tile of one member. Rows that no tile names (padding) are never touched. The arithmetic is that of
``train.optimizer.MemberAdamW``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 8
_ROWS = tl.constexpr(ROWS)
_COLS = tl.constexpr(64)  # a block's columns, times the vector width


def make_tiles(parameters: Iterable[tuple[int, int, int, int, int]]) -> tuple[Tensor, int]:
    """The tiles of all parameters, int64 [n_tiles, 6] on the CPU, and the number of table rows.

    A tile is (element offset of its first row for member 0, elements between members, rows, cols, elements
    between rows, index of its first row in the tables). Table rows number the parameters' rows in the order
    given.

    Args:
        parameters: (element offset for member 0, elements between members, rows, cols, elements between rows)
        of each.
    """
    tiles, n_rows = [], 0
    for offset, member_stride, rows, cols, row_stride in parameters:
        row = torch.arange(0, rows, ROWS)
        columns = (
            offset + row * row_stride,
            torch.full_like(row, member_stride),
            (rows - row).clamp(max=ROWS),
            torch.full_like(row, cols),
            torch.full_like(row, row_stride),
            n_rows + row,
        )
        tiles.append(torch.stack(columns, dim=1))
        n_rows += rows
    return torch.cat(tiles), n_rows


@triton.jit
def _tile(tiles_ptr):
    """This program's tile: its start for the member, rows, columns, row stride, and its first row in the tables."""
    tiles_ptr += tl.program_id(0) * 6
    start = tl.load(tiles_ptr) + tl.program_id(1) * tl.load(tiles_ptr + 1)
    rows, cols = tl.load(tiles_ptr + 2).to(tl.int32), tl.load(tiles_ptr + 3).to(tl.int32)
    return start, rows, cols, tl.load(tiles_ptr + 4).to(tl.int32), tl.load(tiles_ptr + 5)


@triton.jit
def _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR: tl.constexpr):
    COLS: tl.constexpr = _COLS * VECTOR
    # changes nothing, tells the compiler
    start, cols, stride = start // VECTOR * VECTOR, cols // VECTOR * VECTOR, stride // VECTOR * VECTOR
    row_R1, col_1C = tl.arange(0, _ROWS)[:, None], tl.arange(0, COLS)[None, :]
    sum_RC = tl.zeros([_ROWS, COLS], dtype=tl.float32)
    left = 0
    while left < cols:
        at_RC, mask_RC = row_R1 * stride + left + col_1C, (row_R1 < rows) & (left + col_1C < cols)
        grad_RC = tl.load(grad_ptr + start + at_RC, mask=mask_RC, other=0.0).to(tl.float32) * scale_R1
        sum_RC += grad_RC * grad_RC
        left += COLS
    return tl.sum(tl.sum(sum_RC, axis=1), axis=0)


@triton.jit
def _square_sums_kernel(grad_ptr, tiles_ptr, scale_ptr, sums_ptr, n_table_rows):
    start, rows, cols, stride, first_row = _tile(tiles_ptr)
    p = tl.program_id(1).to(tl.int64)
    row_R1 = tl.arange(0, _ROWS)[:, None]
    scale_R1 = tl.load(scale_ptr + p * n_table_rows + first_row + row_R1, mask=row_R1 < rows, other=0.0)
    sums_ptr += p * tl.num_programs(0) + tl.program_id(0)
    if (start % 4 == 0) & (cols % 4 == 0) & (stride % 4 == 0):
        tl.store(sums_ptr, _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR=4))
    else:
        tl.store(sums_ptr, _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR=1))


def square_sums(grad: Tensor, tiles: Tensor, scale_table: Tensor, members: int) -> Tensor:
    """Sum over each tile of ``(grad · scale)²``, fp32 [P, n_tiles]: the parts of each member's squared gradient norm.

    Args:
        grad: flat gradients of the work copy, work dtype or fp32.
        tiles: of :func:`make_tiles`, on the device.
        scale_table: work = master · scale, fp32 [P, n_table_rows].
        members: P.
    """
    sums = torch.empty(members, len(tiles), dtype=torch.float32, device=grad.device)
    assert scale_table.is_contiguous()
    _square_sums_kernel[(len(tiles), members)](grad, tiles, scale_table, sums, scale_table.shape[1], num_warps=4)
    return sums


@triton.jit
def _update(
    master_ptr,
    first_ptr,
    second_ptr,
    grad_ptr,
    work_ptr,
    clip,
    correction2,
    step_R1,
    keep_R1,
    eps_R1,
    scale_R1,
    start,
    rows,
    cols,
    stride,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    VECTOR: tl.constexpr,
):
    COLS: tl.constexpr = _COLS * VECTOR
    # changes nothing, tells the compiler
    start, cols, stride = start // VECTOR * VECTOR, cols // VECTOR * VECTOR, stride // VECTOR * VECTOR
    row_R1, col_1C = tl.arange(0, _ROWS)[:, None], tl.arange(0, COLS)[None, :]
    left = 0
    while left < cols:
        at_RC, mask_RC = row_R1 * stride + left + col_1C, (row_R1 < rows) & (left + col_1C < cols)
        grad_RC = tl.load(grad_ptr + start + at_RC, mask=mask_RC, other=0.0).to(tl.float32) * scale_R1 * clip
        first_RC = tl.load(first_ptr + start + at_RC, mask=mask_RC, other=0.0)
        second_RC = tl.load(second_ptr + start + at_RC, mask=mask_RC, other=0.0)
        master_RC = tl.load(master_ptr + start + at_RC, mask=mask_RC, other=0.0)
        first_RC += (grad_RC - first_RC) * (1 - BETA1)
        second_RC = second_RC * BETA2 + grad_RC * grad_RC * (1 - BETA2)
        # the precise root: the fast one would flush the subnormal squares of small gradients
        update_RC = first_RC / (tl.sqrt_rn(second_RC / correction2) + eps_R1)
        master_RC = master_RC * keep_R1 - update_RC * step_R1
        tl.store(first_ptr + start + at_RC, first_RC, mask=mask_RC)
        tl.store(second_ptr + start + at_RC, second_RC, mask=mask_RC)
        tl.store(master_ptr + start + at_RC, master_RC, mask=mask_RC)
        if work_ptr is not None:
            work_RC = (master_RC * scale_R1).to(work_ptr.dtype.element_ty)
            tl.store(work_ptr + start + at_RC, work_RC, mask=mask_RC)
        left += COLS


@triton.jit
def _adamw_kernel(
    master_ptr,
    first_ptr,
    second_ptr,
    grad_ptr,
    work_ptr,
    tiles_ptr,
    tables_ptr,
    factors_ptr,
    norm_ptr,
    alive_ptr,
    n_table_rows,
    clip_norm,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
):
    p = tl.program_id(1).to(tl.int64)
    if tl.load(alive_ptr + p):
        start, rows, cols, stride, first_row = _tile(tiles_ptr)
        row_R1 = tl.arange(0, _ROWS)[:, None]
        rates_ptr = tables_ptr + p * n_table_rows + first_row + row_R1
        table = tl.num_programs(1).to(tl.int64) * n_table_rows
        eta_R1 = tl.load(rates_ptr, mask=row_R1 < rows, other=0.0) * tl.load(factors_ptr)
        lam_R1 = tl.load(rates_ptr + table, mask=row_R1 < rows, other=0.0) * tl.load(factors_ptr + 1)
        eps_R1 = tl.load(rates_ptr + 2 * table, mask=row_R1 < rows, other=1.0)
        scale_R1 = tl.load(rates_ptr + 3 * table, mask=row_R1 < rows, other=0.0)
        correction1, correction2 = tl.load(factors_ptr + 2), tl.load(factors_ptr + 3)
        norm = tl.load(norm_ptr + p)
        clip = tl.where(norm > clip_norm, clip_norm / norm, 1.0)
        step_R1, keep_R1 = eta_R1 / correction1, 1 - eta_R1 * lam_R1
        # fmt: off
        if (start % 4 == 0) & (cols % 4 == 0) & (stride % 4 == 0):
            _update(master_ptr, first_ptr, second_ptr, grad_ptr, work_ptr, clip, correction2, step_R1, keep_R1, eps_R1,
                    scale_R1, start, rows, cols, stride, BETA1=BETA1, BETA2=BETA2, VECTOR=4)
        else:
            _update(master_ptr, first_ptr, second_ptr, grad_ptr, work_ptr, clip, correction2, step_R1, keep_R1, eps_R1,
                    scale_R1, start, rows, cols, stride, BETA1=BETA1, BETA2=BETA2, VECTOR=1)
        # fmt: on


def adamw_(
    master: Tensor,
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    work: Tensor | None,
    tiles: Tensor,
    tables: Tensor,
    factors: Tensor,
    clip_norm: float,
    beta1: float,
    beta2: float,
    norm_P: Tensor,
    alive_P: Tensor,
) -> None:
    """One AdamW step in place (arXiv 1711.05101, clipped by member); a member that is not alive is left as it is.

    Args:
        master, first, second: flat fp32 parameters and moments.
        grad: flat gradients of the work copy, work dtype or fp32; the master's are ``grad · scale``.
        work: flat; gets ``master · scale`` in its dtype.
        tiles: of :func:`make_tiles`, on the device.
        tables: peak η, peak λ, eps and scale of every row, fp32 [4, P, n_table_rows].
        factors: fp32 [4] on the device: η factor, λ factor, 1 − β1^t, 1 − β2^t.
        clip_norm: the largest gradient norm of a member, after which its gradient is scaled down to it.
        norm_P: each member's gradient norm, fp32.
        alive_P: bool.
    """
    assert tables.is_contiguous()
    _adamw_kernel[(len(tiles), tables.shape[1])](
        master,
        first,
        second,
        grad,
        work,
        tiles,
        tables,
        factors,
        norm_P,
        alive_P,
        tables.shape[2],
        clip_norm,
        BETA1=beta1,
        BETA2=beta2,
        num_warps=8,
    )

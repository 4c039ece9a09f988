"""Squares of all parameters' gradients, summed tile by tile.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels.adamw.tiles import LANES, ROWS, load_tile


@triton.jit
def _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR: tl.constexpr):
    COLS: tl.constexpr = LANES * VECTOR
    # changes nothing, tells the compiler
    start, cols, stride = start // VECTOR * VECTOR, cols // VECTOR * VECTOR, stride // VECTOR * VECTOR
    row_R1, col_1C = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    sum_RC = tl.zeros([ROWS, COLS], dtype=tl.float32)
    left = 0
    while left < cols:
        at_RC, mask_RC = row_R1 * stride + left + col_1C, (row_R1 < rows) & (left + col_1C < cols)
        grad_RC = tl.load(grad_ptr + start + at_RC, mask=mask_RC, other=0.0).to(tl.float32) * scale_R1
        sum_RC += grad_RC * grad_RC
        left += COLS
    return tl.sum(tl.sum(sum_RC, axis=1), axis=0)


@triton.jit
def _square_sums_kernel(grad_ptr, tiles_ptr, scale_ptr, sums_ptr, n_table_rows):
    start, rows, cols, stride, first_row = load_tile(tiles_ptr)
    p = tl.program_id(1).to(tl.int64)
    row_R1 = tl.arange(0, ROWS)[:, None]
    scale_R1 = tl.load(scale_ptr + p * n_table_rows + first_row + row_R1, mask=row_R1 < rows, other=0.0)
    sums_ptr += p * tl.num_programs(0) + tl.program_id(0)
    if (start % 4 == 0) & (cols % 4 == 0) & (stride % 4 == 0):
        tl.store(sums_ptr, _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR=4))
    else:
        tl.store(sums_ptr, _square_sum(grad_ptr, scale_R1, start, rows, cols, stride, VECTOR=1))


def square_sums(grad: Tensor, tiles: Tensor, scale_table: Tensor, members: int) -> Tensor:
    """Sum over each tile of ``(grad · scale)²``, fp32 [P, n_tiles]: parts of the squared gradient norms.

    Args:
        grad: flat gradients of the work copy, work dtype or fp32.
        tiles: of :func:`make_tiles`, on the device.
        scale_table: work = master · scale, fp32 [P, n_table_rows].
        members: P.
    """
    sums = torch.empty(members, len(tiles), dtype=torch.float32, device=grad.device)
    assert scale_table.is_contiguous()
    _square_sums_kernel[(len(tiles), members)](
        grad_ptr=grad, tiles_ptr=tiles, scale_ptr=scale_table, sums_ptr=sums, n_table_rows=scale_table.shape[1],
        num_warps=4,
    )  # fmt: skip
    return sums

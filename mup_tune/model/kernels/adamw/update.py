"""AdamW of a whole population over flat storage: one launch for all parameters of all members.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels.adamw.tiles import LANES, ROWS, load_tile


@triton.jit
def _update(
    master_ptr, first_ptr, second_ptr, grad_ptr, work_ptr, clip, correction2, step_R1, keep_R1, eps_R1, scale_R1,
    start, rows, cols, stride, BETA1: tl.constexpr, BETA2: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    COLS: tl.constexpr = LANES * VECTOR
    # changes nothing, tells the compiler
    start, cols, stride = start // VECTOR * VECTOR, cols // VECTOR * VECTOR, stride // VECTOR * VECTOR
    row_R1, col_1C = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
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
    master_ptr, first_ptr, second_ptr, grad_ptr, work_ptr, tiles_ptr, tables_ptr, factors_ptr, norm_ptr, alive_ptr,
    n_table_rows, clip_norm, BETA1: tl.constexpr, BETA2: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(1).to(tl.int64)
    if tl.load(alive_ptr + p):
        start, rows, cols, stride, first_row = load_tile(tiles_ptr)
        row_R1 = tl.arange(0, ROWS)[:, None]
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
    """One AdamW step in place (arXiv 1711.05101), clipped by member; a member not alive is left as it is.

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
        master_ptr=master, first_ptr=first, second_ptr=second, grad_ptr=grad, work_ptr=work, tiles_ptr=tiles,
        tables_ptr=tables, factors_ptr=factors, norm_ptr=norm_P, alive_ptr=alive_P, n_table_rows=tables.shape[2],
        clip_norm=clip_norm, BETA1=beta1, BETA2=beta2, num_warps=8,
    )  # fmt: skip

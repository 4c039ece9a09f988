"""The embedding look-up of all members at once, times each member's embedding multiplier.

Shape suffixes: P members, N tokens (the same for all members), V vocabulary, D d_model.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements a program moves, 32 a thread
COLUMNS = 256


def embed(weight_PVD: Tensor, scale_P: Tensor, tokens_N: Tensor) -> Tensor:
    """``scale[p] · weight[p, tokens]``, fp32 [P, N, D].

    Args:
        weight_PVD: fp32, contiguous.
        scale_P: fp32.
        tokens_N: int64, each in [0, V).
    """
    P, _, D = weight_PVD.shape
    out_PND = weight_PVD.new_empty(P, len(tokens_N), D)
    _launch(weight_PVD, scale_P, tokens_N, out_PND, backward=False)
    return out_PND


def embed_backward_(d_PND: Tensor, scale_P: Tensor, tokens_N: Tensor, grad_PVD: Tensor) -> None:
    """``grad[p, tokens] += scale[p] · d`` in place, by atomic additions: their order, and so the last bits, may vary.

    Args:
        d_PND: fp32, contiguous.
        grad_PVD: fp32, contiguous; the caller has zeroed it.
    """
    _launch(grad_PVD, scale_P, tokens_N, d_PND, backward=True)


def _launch(table_PVD: Tensor, scale_P: Tensor, tokens_N: Tensor, rows_PND: Tensor, *, backward: bool) -> None:
    (P, V, D), N = table_PVD.shape, len(tokens_N)
    columns = min(triton.next_power_of_2(D), COLUMNS)
    rows = TILE // columns
    _embed_kernel[(triton.cdiv(N, rows) * triton.cdiv(D, columns), P)](
        table_PVD, scale_P, tokens_N, rows_PND, N, V, BACKWARD=backward, D=D, ROWS=rows, COLUMNS=columns
    )


@triton.jit
def _embed_kernel(
    table_ptr,
    scale_ptr,
    tokens_ptr,
    rows_ptr,
    N,
    V,
    BACKWARD: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Between rows of the table and rows of activations: one way a copy, the other way an addition."""
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = (program // blocks) * ROWS + tl.arange(0, ROWS)
    columns = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tokens = tl.load(tokens_ptr + rows, rows < N, other=0)
    scale = tl.load(scale_ptr + member)
    table_at = table_ptr + (member * V + tokens)[:, None] * D + columns[None, :]
    rows_at = rows_ptr + (member * N + rows)[:, None] * D + columns[None, :]
    if BACKWARD:
        tl.atomic_add(table_at, scale * tl.load(rows_at, mask, other=0.0), mask, sem="relaxed")
    else:
        tl.store(rows_at, scale * tl.load(table_at, mask, other=0.0), mask)

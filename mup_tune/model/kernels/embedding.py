"""The embedding look-up of all members at once, times each member's embedding multiplier.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def embed_backward(d_out_PND: Tensor, scale_P: Tensor, tokens_N: Tensor, d_weight_PVD: Tensor) -> None:
    """``scale[p] · d_out`` is added to rows ``tokens`` of ``d_weight``, which is the gradient where it was 0.

    The additions are atomic: their order, and so the last bits, may vary.

    Args:
        d_out_PND: fp32, contiguous.
        d_weight_PVD: fp32, contiguous.
    """
    _launch(d_weight_PVD, scale_P, tokens_N, d_out_PND, backward=True)


def embed_reference(weight_PVD: Tensor, scale_P: Tensor, tokens_N: Tensor) -> Tensor:
    """:func:`embed` in PyTorch."""
    P, V, _ = weight_PVD.shape
    rows_PN = tokens_N + V * torch.arange(P, device=tokens_N.device)[:, None]
    return F.embedding(rows_PN, weight_PVD.flatten(0, 1)) * scale_P[:, None, None]


def _launch(table_PVD: Tensor, scale_P: Tensor, tokens_N: Tensor, rows_PND: Tensor, *, backward: bool) -> None:
    (P, V, D), N = table_PVD.shape, len(tokens_N)
    columns = min(triton.next_power_of_2(D), COLUMNS)
    rows = TILE // columns
    _embed_kernel[(triton.cdiv(N, rows) * triton.cdiv(D, columns), P)](
        table_ptr=table_PVD, scale_ptr=scale_P, tokens_ptr=tokens_N, rows_ptr=rows_PND, N=N, V=V, BACKWARD=backward,
        D=D, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip


@triton.jit
def _embed_kernel(
    table_ptr, scale_ptr, tokens_ptr, rows_ptr, N, V,
    BACKWARD: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Between rows of the table and rows of activations: one way a copy, the other way an addition."""
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    pid, p = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = (pid // blocks) * ROWS + tl.arange(0, ROWS)
    columns = (pid % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    tokens = tl.load(tokens_ptr + rows, rows < N, other=0)
    scale = tl.load(scale_ptr + p)
    table_ptrs = table_ptr + (p * V + tokens)[:, None] * D + columns[None, :]
    rows_ptrs = rows_ptr + (p * N + rows)[:, None] * D + columns[None, :]
    if BACKWARD:
        tl.atomic_add(table_ptrs, scale * tl.load(rows_ptrs, mask, other=0.0), mask, sem="relaxed")
    else:
        tl.store(rows_ptrs, scale * tl.load(table_ptrs, mask, other=0.0), mask)

"""Where documents begin and end along a row, made once a pass for all layers.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128


def spans(documents_BT: Tensor) -> Tensor:
    """Where every token's document starts, and where it ends (exclusive), int32 [2, B, T].

    Args:
        documents_BT: int32, contiguous; from 0 and not decreasing along a row.
    """
    B, T = documents_BT.shape
    spans_2BT = torch.empty(2, B, T, dtype=torch.int32, device=documents_BT.device)
    _spans_kernel[(B, triton.cdiv(T, BLOCK))](documents_ptr=documents_BT, spans_ptr=spans_2BT, B=B, T=T, BLOCK_N=BLOCK)
    return spans_2BT


@triton.jit
def _first_at_least(documents_ptr, document_N, T):
    """Where each document number, or the next greater one, first stands in a row; binary search."""
    low_N, high_N = tl.zeros_like(document_N), tl.zeros_like(document_N) + T
    width = T
    while width > 0:
        middle_N = (low_N + high_N) // 2
        # Where low has met high, both stay: the token there is the answer, or past the row.
        less_N = tl.load(documents_ptr + middle_N, mask=low_N < high_N, other=2147483647) < document_N
        low_N, high_N = tl.where(less_N, middle_N + 1, low_N), tl.where(less_N, high_N, middle_N)
        width = width // 2
    return low_N


@triton.jit(do_not_specialize=["B", "T"])
def _spans_kernel(documents_ptr, spans_ptr, B, T, BLOCK_N: tl.constexpr):
    b = tl.program_id(0)
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    documents_ptr += b * T
    document_N = tl.load(documents_ptr + n_N, mask=n_N < T, other=0)
    tl.store(spans_ptr + b * T + n_N, _first_at_least(documents_ptr, document_N, T), mask=n_N < T)
    tl.store(spans_ptr + (B + b) * T + n_N, _first_at_least(documents_ptr, document_N + 1, T), mask=n_N < T)

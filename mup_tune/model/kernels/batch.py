"""One step's batch out of those that were fed: what a CUDA graph reads in place of arguments.

``fed_SW`` holds a step a row, int32: N tokens, N targets, N document numbers, then the bits of ``FACTORS``
fp32 numbers. ``cursor`` is int32 [2]: the step that is taken next, and the one that is in training. They are
two, so that no launch writes the one that it reads.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FACTORS = 4
BLOCK = 1024  # ids a program

_FACTORS = tl.constexpr(FACTORS)


def width(tokens: int) -> int:
    """W, of a step of N ``tokens``."""
    return 3 * tokens + FACTORS


def take_(
    fed_SW: Tensor, cursor: Tensor, tokens_N: Tensor, targets_N: Tensor, documents_N: Tensor, factors: Tensor
) -> None:
    """Fill ``tokens``, ``targets`` (int64), ``documents`` (int32) and ``factors`` (fp32 [4]) with a step's.

    That step is then the one in training.
    """
    N = len(tokens_N)
    assert fed_SW.shape[1] == width(N)
    assert all(each.is_contiguous() for each in (fed_SW, tokens_N, targets_N, documents_N))
    _take_kernel[(triton.cdiv(N, BLOCK),)](
        fed_ptr=fed_SW, cursor_ptr=cursor, tokens_ptr=tokens_N, targets_ptr=targets_N, documents_ptr=documents_N,
        factors_ptr=factors, N=N, BLOCK=BLOCK,
    )  # fmt: skip


def take_reference(fed_SW: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`take_` fills of one step, in PyTorch."""
    ids, factors = fed_SW[step, :-FACTORS], fed_SW[step, -FACTORS:]
    tokens_N, targets_N, documents_N = ids.view(3, -1)
    return tokens_N.long(), targets_N.long(), documents_N, factors.view(torch.float32)


@triton.jit
def _take_kernel(fed_ptr, cursor_ptr, tokens_ptr, targets_ptr, documents_ptr, factors_ptr, N, BLOCK: tl.constexpr):
    pid, step = tl.program_id(0), tl.load(cursor_ptr)
    fed_ptr += step * (3 * N + _FACTORS)
    n = pid * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    tl.store(tokens_ptr + n, tl.load(fed_ptr + n, mask).to(tl.int64), mask)
    tl.store(targets_ptr + n, tl.load(fed_ptr + N + n, mask).to(tl.int64), mask)
    tl.store(documents_ptr + n, tl.load(fed_ptr + 2 * N + n, mask), mask)
    if pid == 0:
        factor = tl.arange(0, _FACTORS)
        tl.store(factors_ptr + factor, tl.load(fed_ptr + 3 * N + factor).to(tl.float32, bitcast=True))
        tl.store(cursor_ptr + 1, step)

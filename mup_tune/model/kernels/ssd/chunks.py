"""What all kernels of the scan share: tiles, decays within a chunk, sizes and launch options.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BF16_CHUNK, FP32_CHUNK = 64, 32  # tokens of a chunk


@triton.jit
def load_tile(ptr, stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """The first ``rows`` rows and ``columns`` columns from ``ptr`` on, and zeros. EVEN: all of the tile."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if EVEN:
        return tl.load(ptr + (row * stride + column))
    else:
        return tl.load(ptr + (row * stride + column), mask=(row < rows) & (column < columns), other=0.0)


@triton.jit
def store_tile(ptr, stride, rows, columns, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """As :func:`load_tile`, in the dtype of ``ptr``."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if EVEN:
        tl.store(ptr + (row * stride + column), tile.to(ptr.dtype.element_ty))
    else:
        mask = (row < rows) & (column < columns)
        tl.store(ptr + (row * stride + column), tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_tokens(ptr, stride_t, chunk, T, L: tl.constexpr):
    """One number of every token of a chunk, which may lie outside the row; 0 outside."""
    t_L = chunk * L + tl.arange(0, L)
    at_L = tl.cast(chunk, tl.int64) * L * stride_t + tl.arange(0, L) * stride_t
    return tl.load(ptr + at_L, mask=(t_L >= 0) & (t_L < T), other=0)


@triton.jit
def crosses(start_ptr, chunk, T, L: tl.constexpr):
    """Whether a chunk's last document began before the chunk, so that a state passes through."""
    last = tl.minimum(chunk * L + L, T) - 1
    inside = (chunk >= 0) & (last >= chunk * L)
    return tl.load(start_ptr + last, mask=inside, other=2147483647) < chunk * L


@triton.jit
def from_start(start_L, log_L, chunk, L: tl.constexpr):
    """Decay from a chunk's start to each of its tokens; 0 where a document began since."""
    return tl.where(start_L < chunk * L, tl.exp2(log_L), 0.0)


@triton.jit
def to_end(end_L, key_L, total, chunk, T, L: tl.constexpr):
    """Decay from each token to its chunk's end, times dt; 0 where the document ends before."""
    return tl.where(end_L >= tl.minimum(chunk * L + L, T), tl.exp2(total - key_L), 0.0)


@triton.jit
def decay(spans_ptr, log_ptr, key_ptr, chunk, B, T, L: tl.constexpr, BY_READER: tl.constexpr):
    """Decay from token j to token i of a chunk, times dt_j; 0 where j is later or in another document.

    Rows are the readers i, or the givers j. It loads what it needs: loads hit the cache, where vectors kept
    for a second use would cost registers. Along columns a product's layout holds a register for every column
    and vector, so there is one vector alone: documents are bounds of the columns' numbers.
    """
    row_L1, column_1L = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    log_L, key_L = load_tokens(log_ptr, 1, chunk, T, L), load_tokens(key_ptr, 1, chunk, T, L)
    if BY_READER:
        in_row_L = tl.arange(0, L) < T - chunk * L
        start_L = tl.where(in_row_L, load_tokens(spans_ptr, 1, chunk, T, L) - chunk * L, L)
        seen_LL = (column_1L <= row_L1) & (column_1L >= start_L[:, None])
        return tl.where(seen_LL, tl.exp2(log_L[:, None] - key_L[None, :]), 0.0)
    else:
        end_L = load_tokens(spans_ptr + B * T, 1, chunk, T, L) - chunk * L
        seen_LL = (column_1L >= row_L1) & (column_1L < end_L[:, None])
        return tl.where(seen_LL, tl.exp2(log_L[None, :] - key_L[:, None]), 0.0)


def plan_sizes(n_heads: int, n_groups: int, d_state: int, head_dim: int, T: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of all kernels.

    A bf16 chunk has the 64 rows of a warp group's product. Channels are taken 32 at a time: what a program
    then holds fits its registers up to d_state = 64, and from there with twice the warps. Blocks narrower
    than 32, or one pipeline stage, read shared memory out of bounds on sm_90: ptxas makes a wrong address
    (``benchmarks/compiled.py`` finds it).
    """
    length = BF16_CHUNK if dtype == torch.bfloat16 else FP32_CHUNK
    block_s, block_k = max(32, triton.next_power_of_2(d_state)), 32
    return {
        "H": n_heads,
        "G": n_groups,
        "S": d_state,
        "K": head_dim,
        "L": length,
        "BLOCK_S": block_s,
        "BLOCK_K": block_k,
        "EVEN": T % length == 0 and head_dim % block_k == 0 and d_state == block_s,
    }


def plan_schedule(
    sizes: dict[str, int], n_stages: int, registers: int | None = None, most_states: int = 64
) -> dict[str, int]:
    """Launch options.

    Args:
        registers: of a thread at most, for bf16 and up to 64 states, which fit. The compiler would take a few
            more, and then one program less runs on an SM. None: what the compiler takes.
        most_states: what four warps hold.
    """
    schedule = {"num_warps": 4 if sizes["BLOCK_S"] <= most_states else 8, "num_stages": n_stages}
    if registers is not None and sizes["L"] == BF16_CHUNK and sizes["BLOCK_S"] <= 64:
        schedule["maxnreg"] = registers
    return schedule


def token_stride(view: Tensor) -> int:
    """Elements from token to token of a [P, B, T, ...] tensor whose tokens are evenly spaced.

    Raises:
        ValueError: they are not; the kernels number tokens P · B · T in one go.
    """
    step = view.stride(2)
    steps = (step * view.shape[1] * view.shape[2], step * view.shape[2], step, 1)
    if any(
        size > 1 and stride != wanted for size, stride, wanted in zip(view.shape, view.stride(), steps, strict=True)
    ):
        raise ValueError(f"strides {view.stride()} of shape {tuple(view.shape)} are not those of columns of a buffer")
    return step

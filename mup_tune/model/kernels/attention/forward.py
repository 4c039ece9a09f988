"""Causal grouped-query attention with rotary embedding and document masks: forward, and what backward shares.

Softmax runs online over key blocks (arXiv 2205.14135, §3.1; 2307.08691, §3.1). Documents do not decrease
along a row, so a query block begins at its first document's first token, and a pair of blocks inside one
document needs no mask below the diagonal. Queries and keys are rotated in place by a pass of their own: every
kernel then takes them from memory straight to shared memory. Computed in the kernel, an operand lies in
registers, and what defines it there while another product is under way makes ptxas run all products of the
loop one after another (its remark C7513).

Scores are in units of log2: queries are rotated, scaled by LOG2E and head_dim^-0.5, then rounded.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import LOG2E, strides

ROTATED = 8192  # elements that a program rotates, 64 a thread


@triton.jit
def load_rows(x_ptr, stride, first, stop, ROWS: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr):
    """Rows from ``first`` on, [ROWS, K]; zeros from row ``stop`` and column WIDTH on."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, K)[None, :]
    x_ptrs = x_ptr + tl.cast(first, tl.int64) * stride + row * stride + column
    return tl.load(x_ptrs, mask=(first + row < stop) & (column < WIDTH), other=0.0)


@triton.jit
def load_pairs(x_ptr, stride, first, stop, ROWS: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """As :func:`load_rows`, with pairs (i, i + R) as (i, i + K/2), and zeros from pair R on."""
    if K == 2 * R:
        return load_rows(x_ptr, stride, first, stop, ROWS, K, K)
    else:
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, K)[None, :]
        pair = column % (K // 2)
        x_ptrs = x_ptr + tl.cast(first, tl.int64) * stride + row * stride + column // (K // 2) * R + pair
        return tl.load(x_ptrs, mask=(first + row < stop) & (pair < R), other=0.0)


@triton.jit
def key_range(m0, T, starts_ptr, BLOCK_M: tl.constexpr):
    """Keys [start, stop) that a query block sees; key blocks that reach ``edge`` or beyond need a mask."""
    stop = tl.minimum(m0 + BLOCK_M, T)
    start = tl.load(starts_ptr + m0)
    return start, tl.where(start == tl.load(starts_ptr + stop - 1), m0 + 1, start), stop


@triton.jit(do_not_specialize=["B", "T"])
def _rotate_kernel(
    qkv_ptr, cos_ptr, sin_ptr, B, T, scale, qkv_stride_p, qkv_stride_b, qkv_stride_t,
    Q: tl.constexpr, J: tl.constexpr, R: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: all heads of some tokens, so that all loads are under way before the first store."""
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    m0, row = pid % n_blocks * BLOCK_M, (pid // n_blocks).to(tl.int64)
    p = row // B
    cos = load_rows(cos_ptr + p * T * R, R, m0, T, BLOCK_M, R, K // 2)[:, None, :]
    sin = load_rows(sin_ptr + p * T * R, R, m0, T, BLOCK_M, R, K // 2)[:, None, :]
    row_M = tl.arange(0, BLOCK_M)[:, None, None]
    head, column_R = tl.arange(0, HEADS)[None, :, None], tl.arange(0, K // 2)[None, None, :]
    in_range = (m0 + row_M < T) & (head < Q + J) & (column_R < R)
    qkv_ptr += p * qkv_stride_p + row % B * qkv_stride_b + m0.to(tl.int64) * qkv_stride_t
    a_ptrs = qkv_ptr + (row_M * qkv_stride_t + head * (2 * R) + column_R)
    factor = tl.where(head < Q, scale * LOG2E, 1.0)
    a = tl.load(a_ptrs, mask=in_range, other=0.0).to(tl.float32) * factor
    b = tl.load(a_ptrs + R, mask=in_range, other=0.0).to(tl.float32) * factor
    tl.store(a_ptrs, (a * cos - b * sin).to(qkv_ptr.dtype.element_ty), mask=in_range)
    tl.store(a_ptrs + R, (b * cos + a * sin).to(qkv_ptr.dtype.element_ty), mask=in_range)


@triton.jit(do_not_specialize=["B", "T"])
def _forward_kernel(
    qkv_ptr, spans_ptr, out_ptr, lse_ptr, B, T, J,
    qkv_stride_p, qkv_stride_b, qkv_stride_t, out_stride_p, out_stride_b, out_stride_t,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    # The longest programs of a head, its last query blocks, come first.
    m0, q, row = (n_blocks - 1 - pid % n_blocks) * BLOCK_M, pid // n_blocks % Q, (pid // n_blocks // Q).to(tl.int64)
    p, b, j = row // B, row % B, q // (Q // J)
    qkv_ptr += p * qkv_stride_p + b * qkv_stride_b
    keys_ptr = qkv_ptr + (Q + j) * (2 * R)
    values_ptr = keys_ptr + J * (2 * R)
    start, edge, stop = key_range(m0, T, spans_ptr + b * T, BLOCK_M)

    m_M = m0 + tl.arange(0, BLOCK_M)
    start_M = tl.load(spans_ptr + b * T + m_M, mask=m_M < T, other=T)
    q_MK = load_pairs(qkv_ptr + q * (2 * R), qkv_stride_t, m0, T, BLOCK_M, R, K)
    acc_MK = tl.zeros((BLOCK_M, K), tl.float32)
    peak_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total_M = tl.zeros((BLOCK_M,), tl.float32)
    for n0 in range(start, stop, BLOCK_N):
        k_NK = load_pairs(keys_ptr, qkv_stride_t, n0, stop, BLOCK_N, R, K)
        v_NK = load_rows(values_ptr, qkv_stride_t, n0, stop, BLOCK_N, 2 * R, K)
        score_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision="ieee")
        if n0 + BLOCK_N > edge:
            n_N = n0 + tl.arange(0, BLOCK_N)
            visible_MN = (n_N[None, :] >= start_M[:, None]) & (n_N[None, :] <= m_M[:, None])
            score_MN = tl.where(visible_MN, score_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(score_MN, 1))
        # A row that has seen no key yet has the peak -inf; -inf - -inf would be NaN, -inf - 0 is weight 0.
        origin_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        weight_MN = tl.math.exp2(score_MN - origin_M[:, None])
        decay_M = tl.math.exp2(peak_M - origin_M)
        total_M = total_M * decay_M + tl.sum(weight_MN, 1)
        acc_MK = tl.dot(weight_MN.to(v_NK.dtype), v_NK, acc_MK * decay_M[:, None], input_precision="ieee")
        peak_M = new_peak_M

    lse_ptr += (row * Q + q) * T
    tl.store(lse_ptr + m_M, (peak_M + tl.math.log2(total_M)) / LOG2E, mask=m_M < T)
    out_ptr += p * out_stride_p + b * out_stride_b + m0.to(tl.int64) * out_stride_t + q * (2 * R)
    row_M, column_K = tl.arange(0, BLOCK_M), tl.arange(0, K)
    out_MK = (acc_MK / total_M[:, None]).to(out_ptr.dtype.element_ty)
    in_range = (m_M < T)[:, None] & (column_K < 2 * R)[None, :]
    tl.store(out_ptr + row_M[:, None] * out_stride_t + column_K[None, :], out_MK, mask=in_range)


def padded_head_dim(head_dim: int) -> int:
    """Twice the power of two, 16 at least (a tensor core's depth), that holds half a head."""
    return 2 * max(8, 1 << (head_dim // 2 - 1).bit_length())


def launch(block_m: int, block_n: int, num_warps: int, num_stages: int, **options: int) -> dict[str, int]:
    """A kernel's tile and pipeline, as its launch takes them."""
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": num_warps, "num_stages": num_stages, **options}


def forward_launch(K: int, dtype: torch.dtype) -> dict[str, int]:
    """The fastest of seven measured on an H200 at K = 64; elsewhere by registers and spills of compiles."""
    if dtype == torch.float32:
        return launch(32, 32, 4, 2)
    if K <= 64:
        return launch(64, 64, 4, 3, maxnreg=128)
    return launch(128, 64, 8, 3) if K <= 128 else launch(64, 32, 8, 2)


def attention_(
    qkv_PBTC: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos_PTR: Tensor,
    sin_PTR: Tensor,
    spans_2BT: Tensor,
    out_PBTE: Tensor,
) -> Tensor:
    """Causal softmax attention of every member within documents.

    Args:
        qkv_PBTC: a view with the last stride 1: query, key and value heads side by side, not yet rotated.
            Afterwards queries and keys are rotated, and queries scaled, as the backward pass reads them.
        cos_PTR, sin_PTR: fp32, contiguous; the rotary table, pairs are (i, i + R).
        spans_2BT: of :func:`~mup_tune.model.kernels.spans.spans`.
        out_PBTE: a view with the last stride 1 that is written.

    Returns:
        The natural logarithm of the softmax denominators, for the backward pass; fp32 [P, B, Q, T].
    """
    P, B, T, _ = qkv_PBTC.shape
    R = cos_PTR.shape[-1]
    K = padded_head_dim(2 * R)
    heads = triton.next_power_of_2(n_heads + n_kv_heads)
    block = max(1, ROTATED // (heads * K))
    _rotate_kernel[(P * B * triton.cdiv(T, block),)](
        qkv_ptr=qkv_PBTC, cos_ptr=cos_PTR, sin_ptr=sin_PTR, B=B, T=T, scale=(2 * R) ** -0.5,
        **strides("pbt", qkv=qkv_PBTC), Q=n_heads, J=n_kv_heads, R=R, K=K,
        HEADS=heads, BLOCK_M=block,
    )  # fmt: skip
    tile = forward_launch(K, qkv_PBTC.dtype)
    lse_PBQT = torch.empty(P, B, n_heads, T, dtype=torch.float32, device=qkv_PBTC.device)
    _forward_kernel[(P * B * n_heads * triton.cdiv(T, tile["BLOCK_M"]),)](
        qkv_ptr=qkv_PBTC, spans_ptr=spans_2BT, out_ptr=out_PBTE, lse_ptr=lse_PBQT, B=B, T=T, J=n_kv_heads,
        **strides("pbt", qkv=qkv_PBTC, out=out_PBTE), Q=n_heads, R=R, K=K, **tile,
    )  # fmt: skip
    return lse_PBQT

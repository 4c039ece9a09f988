"""Causal grouped-query attention with rotary embedding and document masks: the forward pass, and what backward shares.

Softmax runs online over key blocks (arXiv 2205.14135, §3.1; 2307.08691, §3.1). Documents do not decrease along a row,
so a query block begins at its first document's first token, and a pair of blocks inside one document needs no mask
below the diagonal. A small pre-pass rotates keys, which several query blocks read, and finds where each token's
document starts and ends; a query is rotated where it is used.

Shape suffixes: P members, B rows, T tokens, C columns of q, k and v, E columns of q, Q query heads, J key/value heads,
R = head_dim/2; K is head_dim padded to 2 · (R padded), so that a rotary pair keeps its distance.
In the kernels: M rows of a query block, N rows of a key block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Scores are in units of log2 from the dot on: queries are rotated, scaled by this and head_dim^-0.5, then rounded.
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(x_ptr, stride, first, stop, ROWS: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr):
    """Rows from ``first`` on, [ROWS, K]; zeros from row ``stop`` and column WIDTH on."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, K)[None, :]
    x_ptrs = x_ptr + tl.cast(first, tl.int64) * stride + row * stride + column
    return tl.load(x_ptrs, mask=(first + row < stop) & (column < WIDTH), other=0.0)


@triton.jit
def load_rotated(
    x_ptr, stride, cos_ptr, sin_ptr, first, T, scale, ROWS: tl.constexpr, R: tl.constexpr, K: tl.constexpr
):
    """Rows from ``first`` on, rotated and scaled in fp32 and rounded to their dtype, [ROWS, K]."""
    a = load_rows(x_ptr, stride, first, T, ROWS, R, K // 2).to(tl.float32)
    b = load_rows(x_ptr + R, stride, first, T, ROWS, R, K // 2).to(tl.float32)
    cos = load_rows(cos_ptr, R, first, T, ROWS, R, K // 2) * scale
    sin = load_rows(sin_ptr, R, first, T, ROWS, R, K // 2) * scale
    pairs = tl.join(a * cos - b * sin, b * cos + a * sin)
    return tl.reshape(tl.permute(pairs, (0, 2, 1)), (ROWS, K)).to(x_ptr.dtype.element_ty)


@triton.jit
def key_range(m0, T, starts_ptr, BLOCK_M: tl.constexpr):
    """Keys [start, stop) that a query block sees; its key blocks that reach ``edge`` or beyond need a mask."""
    stop = tl.minimum(m0 + BLOCK_M, T)
    start = tl.load(starts_ptr + m0)
    return start, tl.where(start == tl.load(starts_ptr + stop - 1), m0 + 1, start), stop


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
def _prepare_kernel(
    qkv_ptr, cos_ptr, sin_ptr, documents_ptr, keys_ptr, spans_ptr, B, T, J, stride_p, stride_b, stride_t,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    n0, j, row = pid % n_blocks * BLOCK_N, pid // n_blocks % J, (pid // n_blocks // J).to(tl.int64)
    p, b = row // B, row % B
    key_ptr = qkv_ptr + p * stride_p + b * stride_b + (Q + j) * (2 * R)
    k_NK = load_rotated(key_ptr, stride_t, cos_ptr + p * T * R, sin_ptr + p * T * R, n0, T, 1.0, BLOCK_N, R, K)
    n_N = n0 + tl.arange(0, BLOCK_N)
    tl.store(
        keys_ptr + (row * J + j) * T * K + n_N[:, None] * K + tl.arange(0, K)[None, :], k_NK, mask=n_N[:, None] < T
    )
    if (p == 0) & (j == 0):
        document_N = tl.load(documents_ptr + b * T + n_N, mask=n_N < T, other=0)
        tl.store(spans_ptr + b * T + n_N, _first_at_least(documents_ptr + b * T, document_N, T), mask=n_N < T)
        end_N = _first_at_least(documents_ptr + b * T, document_N + 1, T)
        tl.store(spans_ptr + (B + b) * T + n_N, end_N, mask=n_N < T)


@triton.jit(do_not_specialize=["B", "T"])
def _forward_kernel(
    qkv_ptr, keys_ptr, spans_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, B, T, J, scale,
    stride_p, stride_b, stride_t, out_stride_p, out_stride_b, out_stride_t,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    # The longest programs of a head, its last query blocks, come first.
    m0, q, row = (n_blocks - 1 - pid % n_blocks) * BLOCK_M, pid // n_blocks % Q, (pid // n_blocks // Q).to(tl.int64)
    p, b, j = row // B, row % B, q // (Q // J)
    qkv_ptr += p * stride_p + b * stride_b
    keys_ptr += (row * J + j) * T * K
    values_ptr = qkv_ptr + (Q + J + j) * (2 * R)
    start, edge, stop = key_range(m0, T, spans_ptr + b * T, BLOCK_M)

    m_M = m0 + tl.arange(0, BLOCK_M)
    start_M = tl.load(spans_ptr + b * T + m_M, mask=m_M < T, other=T)
    cos_ptr, sin_ptr = cos_ptr + p * T * R, sin_ptr + p * T * R
    q_MK = load_rotated(qkv_ptr + q * (2 * R), stride_t, cos_ptr, sin_ptr, m0, T, scale * LOG2_E, BLOCK_M, R, K)
    acc_MK = tl.zeros((BLOCK_M, K), tl.float32)
    peak_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total_M = tl.zeros((BLOCK_M,), tl.float32)
    for n0 in range(start, stop, BLOCK_N):
        k_NK = load_rows(keys_ptr, K, n0, stop, BLOCK_N, K, K)
        v_NK = load_rows(values_ptr, stride_t, n0, stop, BLOCK_N, 2 * R, K)
        score_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision="ieee")
        if n0 + BLOCK_N > edge:
            n_N = n0 + tl.arange(0, BLOCK_N)
            visible_MN = (n_N[None, :] >= start_M[:, None]) & (n_N[None, :] <= m_M[:, None])
            score_MN = tl.where(visible_MN, score_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(score_MN, 1))
        # A row that has seen no key yet has the peak -inf; -inf - 0 gives it the weights 0 where -inf - -inf is NaN.
        origin_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        weight_MN = tl.math.exp2(score_MN - origin_M[:, None])
        decay_M = tl.math.exp2(peak_M - origin_M)
        total_M = total_M * decay_M + tl.sum(weight_MN, 1)
        acc_MK = tl.dot(weight_MN.to(v_NK.dtype), v_NK, acc_MK * decay_M[:, None], input_precision="ieee")
        peak_M = new_peak_M

    lse_ptr += (row * Q + q) * T
    tl.store(lse_ptr + m_M, (peak_M + tl.math.log2(total_M)) / LOG2_E, mask=m_M < T)
    out_ptr += p * out_stride_p + b * out_stride_b + m0.to(tl.int64) * out_stride_t + q * (2 * R)
    row_M, column_K = tl.arange(0, BLOCK_M), tl.arange(0, K)
    out_MK = (acc_MK / total_M[:, None]).to(out_ptr.dtype.element_ty)
    in_range = (m_M < T)[:, None] & (column_K < 2 * R)[None, :]
    tl.store(out_ptr + row_M[:, None] * out_stride_t + column_K[None, :], out_MK, mask=in_range)


def padded_head_dim(head_dim: int) -> int:
    """Twice the power of two, 16 at least (a tensor core's depth), that holds half a head."""
    return 2 * max(8, 1 << (head_dim // 2 - 1).bit_length())


def launch(block_m: int, block_n: int, num_warps: int, num_stages: int) -> dict[str, int]:
    """A kernel's tile and pipeline, as its launch takes them."""
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": num_warps, "num_stages": num_stages}


def forward_launch(K: int, dtype: torch.dtype) -> dict[str, int]:
    """The fastest of seven measured on an H200 at K = 64; elsewhere by registers and spills of compiles for sm_90."""
    if dtype == torch.float32:
        return launch(32, 32, 4, 2)
    if K <= 64:
        return launch(64, 64, 4, 3)
    return launch(128, 64, 8, 3) if K <= 128 else launch(64, 32, 8, 2)


def prepare(
    qkv_PBTC: Tensor, n_heads: int, n_kv_heads: int, cos_PTR: Tensor, sin_PTR: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """What both passes read many times.

    Returns:
        Keys after the rotary embedding, [P, B, J, T, K] in the work dtype, zero in the padding; and where every token's
        document starts, and where it ends (exclusive), int32 [2, B, T].
    """
    P, B, T, _ = qkv_PBTC.shape
    R = cos_PTR.shape[-1]
    K = padded_head_dim(2 * R)
    keys = torch.empty(P, B, n_kv_heads, T, K, dtype=qkv_PBTC.dtype, device=qkv_PBTC.device)
    spans = torch.empty(2, B, T, dtype=torch.int32, device=qkv_PBTC.device)
    block = 64
    _prepare_kernel[(P * B * n_kv_heads * triton.cdiv(T, block),)](
        qkv_PBTC, cos_PTR, sin_PTR, documents_BT, keys, spans, B, T, n_kv_heads, *qkv_PBTC.stride()[:3],
        Q=n_heads, R=R, K=K, BLOCK_N=block,
    )  # fmt: skip
    return keys, spans


def attention(
    qkv_PBTC: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos_PTR: Tensor,
    sin_PTR: Tensor,
    documents_BT: Tensor,
    out_PBTE: Tensor,
) -> Tensor:
    """Causal softmax attention within documents, of every member; twin of :func:`mup_tune.model.attention.attention`.

    Args:
        qkv_PBTC: a view with the last stride 1: query, key and value heads side by side, not yet rotated.
        cos_PTR, sin_PTR: fp32, contiguous; the rotary table, pairs are (i, i + R).
        documents_BT: int32, contiguous; from 0 and not decreasing along a row.
        out_PBTE: a view with the last stride 1 that is written.

    Returns:
        The natural logarithm of the softmax denominators, for the backward pass; fp32 [P, B, Q, T].
    """
    P, B, T, _ = qkv_PBTC.shape
    R = cos_PTR.shape[-1]
    K = padded_head_dim(2 * R)
    tile = forward_launch(K, qkv_PBTC.dtype)
    keys, spans = prepare(qkv_PBTC, n_heads, n_kv_heads, cos_PTR, sin_PTR, documents_BT)
    lse = torch.empty(P, B, n_heads, T, dtype=torch.float32, device=qkv_PBTC.device)
    _forward_kernel[(P * B * n_heads * triton.cdiv(T, tile["BLOCK_M"]),)](
        qkv_PBTC, keys, spans, cos_PTR, sin_PTR, out_PBTE, lse, B, T, n_kv_heads, (2 * R) ** -0.5,
        *qkv_PBTC.stride()[:3], *out_PBTE.stride()[:3], Q=n_heads, R=R, K=K, **tile,
    )  # fmt: skip
    return lse

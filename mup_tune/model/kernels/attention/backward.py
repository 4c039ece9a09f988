"""Backward pass of the attention kernels: one kernel for queries, then one for keys and values; no atomics.

With S = QKᵀ, W = softmax(S), δ = rowsum(dout · out): dV = Wᵀ dout, dS = W ∘ (dout Vᵀ - δ), dQ = dS K, dK =
dSᵀ Q (arXiv 2307.08691, §3.1.2). W is recomputed from the saved denominators. The kernel for queries leaves δ
behind for the other, which walks every query head of a key's group and so sums over them itself. Both read
what the forward pass rotated, and turn their gradients back.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import LOG2E, strides
from mup_tune.model.kernels.attention.forward import key_range, launch, load_pairs, load_rows, padded_head_dim


@triton.jit
def _store_unrotated(
    dx_ptr, stride, cos_ptr, sin_ptr, first, T, d_rotated, ROWS: tl.constexpr, R: tl.constexpr, K: tl.constexpr
):
    """Turn a gradient [ROWS, K] back by the rotary angles and store its first 2 · R columns."""
    pairs = tl.permute(tl.reshape(d_rotated, (ROWS, 2, K // 2)), (0, 2, 1))
    a, b = tl.split(pairs)
    cos = load_rows(cos_ptr, R, first, T, ROWS, R, K // 2)
    sin = load_rows(sin_ptr, R, first, T, ROWS, R, K // 2)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, K // 2)[None, :]
    dx_ptrs = dx_ptr + tl.cast(first, tl.int64) * stride + row * stride + column
    in_range = (first + row < T) & (column < R)
    tl.store(dx_ptrs, (a * cos + b * sin).to(dx_ptr.dtype.element_ty), mask=in_range)
    tl.store(dx_ptrs + R, (b * cos - a * sin).to(dx_ptr.dtype.element_ty), mask=in_range)


@triton.jit(do_not_specialize=["B", "T"])
def _queries_kernel(
    qkv_ptr, spans_ptr, cos_ptr, sin_ptr, out_ptr, d_out_ptr, lse_ptr, stats_ptr, d_qkv_ptr,
    B, T, J, scale, qkv_stride_p, qkv_stride_b, qkv_stride_t, out_stride_p, out_stride_b, out_stride_t,
    d_out_stride_p, d_out_stride_b, d_out_stride_t, d_qkv_stride_p, d_qkv_stride_b, d_qkv_stride_t,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    m0, q, row = (n_blocks - 1 - pid % n_blocks) * BLOCK_M, pid // n_blocks % Q, (pid // n_blocks // Q).to(tl.int64)
    p, b, j = row // B, row % B, q // (Q // J)
    qkv_ptr += p * qkv_stride_p + b * qkv_stride_b
    keys_ptr = qkv_ptr + (Q + j) * (2 * R)
    values_ptr = keys_ptr + J * (2 * R)
    start, edge, stop = key_range(m0, T, spans_ptr + b * T, BLOCK_M)

    m_M = m0 + tl.arange(0, BLOCK_M)
    start_M = tl.load(spans_ptr + b * T + m_M, mask=m_M < T, other=T)
    head = row * Q + q
    out_ptr += p * out_stride_p + b * out_stride_b + q * (2 * R)
    d_out_ptr += p * d_out_stride_p + b * d_out_stride_b + q * (2 * R)
    # All loads come before the first use of one.
    q_MK = load_pairs(qkv_ptr + q * (2 * R), qkv_stride_t, m0, T, BLOCK_M, R, K)
    do_MK = load_rows(d_out_ptr, d_out_stride_t, m0, T, BLOCK_M, 2 * R, K)
    out_MK = load_rows(out_ptr, out_stride_t, m0, T, BLOCK_M, 2 * R, K)
    lse_M = tl.load(lse_ptr + head * T + m_M, mask=m_M < T, other=0.0) * LOG2E
    delta_M = tl.sum(do_MK.to(tl.float32) * out_MK.to(tl.float32), 1)
    stats_ptrs = stats_ptr + head * T * 2 + m_M * 2
    tl.store(stats_ptrs, lse_M, mask=m_M < T)
    tl.store(stats_ptrs + 1, delta_M, mask=m_M < T)
    dq_MK = tl.zeros((BLOCK_M, K), tl.float32)
    for n0 in range(start, stop, BLOCK_N):
        k_NK = load_pairs(keys_ptr, qkv_stride_t, n0, stop, BLOCK_N, R, K)
        v_NK = load_rows(values_ptr, qkv_stride_t, n0, stop, BLOCK_N, 2 * R, K)
        score_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision="ieee")
        weight_MN = tl.math.exp2(score_MN - lse_M[:, None])
        if n0 + BLOCK_N > edge:
            n_N = n0 + tl.arange(0, BLOCK_N)
            visible_MN = (n_N[None, :] >= start_M[:, None]) & (n_N[None, :] <= m_M[:, None])
            weight_MN = tl.where(visible_MN, weight_MN, 0.0)
        d_weight_MN = tl.dot(do_MK, tl.trans(v_NK), input_precision="ieee")
        d_score_MN = weight_MN * (d_weight_MN - delta_M[:, None])
        dq_MK = tl.dot(d_score_MN.to(k_NK.dtype), k_NK, dq_MK, input_precision="ieee")
    d_qkv_ptr += p * d_qkv_stride_p + b * d_qkv_stride_b + q * (2 * R)
    cos_ptr, sin_ptr = cos_ptr + p * T * R, sin_ptr + p * T * R
    _store_unrotated(d_qkv_ptr, d_qkv_stride_t, cos_ptr, sin_ptr, m0, T, dq_MK * scale, BLOCK_M, R, K)


@triton.jit(do_not_specialize=["B", "T"])
def _keys_kernel(
    qkv_ptr, spans_ptr, cos_ptr, sin_ptr, d_out_ptr, stats_ptr, d_qkv_ptr,
    B, T, J, qkv_stride_p, qkv_stride_b, qkv_stride_t, d_out_stride_p, d_out_stride_b, d_out_stride_t,
    d_qkv_stride_p, d_qkv_stride_b, d_qkv_stride_t,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    # The longest programs of a head, its first key blocks, come first.
    n0, j, row = pid % n_blocks * BLOCK_N, pid // n_blocks % J, (pid // n_blocks // J).to(tl.int64)
    p, b, group = row // B, row % B, Q // J
    ends_ptr = spans_ptr + (B + b) * T
    # Queries [n0, stop) see the block. A query block needs a mask if it starts before ``edge`` or ends past
    # ``stop``.
    stop = tl.load(ends_ptr + tl.minimum(n0 + BLOCK_N, T) - 1)
    edge = tl.where(stop == tl.load(ends_ptr + n0), n0 + BLOCK_N, stop)

    qkv_ptr += p * qkv_stride_p + b * qkv_stride_b
    keys_ptr = qkv_ptr + (Q + j) * (2 * R)
    k_NK = load_pairs(keys_ptr, qkv_stride_t, n0, T, BLOCK_N, R, K)
    v_NK = load_rows(keys_ptr + J * (2 * R), qkv_stride_t, n0, T, BLOCK_N, 2 * R, K)
    n_N = n0 + tl.arange(0, BLOCK_N)
    end_N = tl.load(ends_ptr + n_N, mask=n_N < T, other=0)
    dk_NK, dv_NK = tl.zeros((BLOCK_N, K), tl.float32), tl.zeros((BLOCK_N, K), tl.float32)
    d_out_ptr += p * d_out_stride_p + b * d_out_stride_b
    for q in range(j * group, (j + 1) * group):
        head = row * Q + q
        for m0 in range(n0, stop, BLOCK_M):
            q_MK = load_pairs(qkv_ptr + q * (2 * R), qkv_stride_t, m0, stop, BLOCK_M, R, K)
            do_MK = load_rows(d_out_ptr + q * (2 * R), d_out_stride_t, m0, stop, BLOCK_M, 2 * R, K)
            # One load for both: so short a vector alone is loaded in the dot's layout, a register an element.
            pair = 2 * m0 + tl.arange(0, 2 * BLOCK_M)
            stats = tl.load(stats_ptr + head * T * 2 + pair, mask=pair < 2 * stop, other=0.0)
            lse_M, delta_M = tl.split(tl.reshape(stats, (BLOCK_M, 2)))
            score_NM = tl.dot(k_NK, tl.trans(q_MK), input_precision="ieee")
            weight_NM = tl.math.exp2(score_NM - lse_M[None, :])
            if (m0 < edge) | (m0 + BLOCK_M > stop):
                m_M = m0 + tl.arange(0, BLOCK_M)
                visible_NM = (m_M[None, :] >= n_N[:, None]) & (m_M[None, :] < end_N[:, None])
                weight_NM = tl.where(visible_NM, weight_NM, 0.0)
            dv_NK = tl.dot(weight_NM.to(do_MK.dtype), do_MK, dv_NK, input_precision="ieee")
            d_weight_NM = tl.dot(v_NK, tl.trans(do_MK), input_precision="ieee")
            d_score_NM = weight_NM * (d_weight_NM - delta_M[None, :])
            dk_NK = tl.dot(d_score_NM.to(q_MK.dtype), q_MK, dk_NK, input_precision="ieee")

    d_qkv_ptr += p * d_qkv_stride_p + b * d_qkv_stride_b + (Q + j) * (2 * R)
    cos_ptr, sin_ptr = cos_ptr + p * T * R, sin_ptr + p * T * R
    # Rotated queries carry the scale and log2(e): dividing by the latter leaves the scale.
    _store_unrotated(d_qkv_ptr, d_qkv_stride_t, cos_ptr, sin_ptr, n0, T, dk_NK / LOG2E, BLOCK_N, R, K)
    row_N, column_K = tl.arange(0, BLOCK_N), tl.arange(0, K)
    dv_ptrs = (
        d_qkv_ptr + J * (2 * R) + n0.to(tl.int64) * d_qkv_stride_t + row_N[:, None] * d_qkv_stride_t + column_K[None, :]
    )
    in_range = (n_N < T)[:, None] & (column_K < 2 * R)[None, :]
    tl.store(dv_ptrs, dv_NK.to(d_qkv_ptr.dtype.element_ty), mask=in_range)


def queries_launch(K: int, dtype: torch.dtype) -> dict[str, int]:
    """As ``forward_launch``; four programs on an SM up to K = 64."""
    if dtype == torch.float32:
        return launch(32, 32, 4, 2)
    if K <= 64:
        return launch(64, 32, 4, 3)
    return launch(64, 64, 4, 2) if K <= 128 else launch(64, 32, 8, 1)


def keys_launch(K: int, dtype: torch.dtype) -> dict[str, int]:
    """As ``forward_launch``; two programs on an SM up to K = 64."""
    if dtype == torch.float32:
        return launch(16, 32, 4, 1)
    if K <= 64:
        return launch(64, 64, 4, 3)
    return launch(32, 128, 8, 2) if K <= 128 else launch(32, 32, 8, 1)


def attention_backward(
    d_out_PBTE: Tensor,
    out_PBTE: Tensor,
    lse_PBQT: Tensor,
    qkv_PBTC: Tensor,
    n_heads: int,
    n_kv_heads: int,
    cos_PTR: Tensor,
    sin_PTR: Tensor,
    spans_2BT: Tensor,
    d_qkv_PBTC: Tensor,
) -> None:
    """The gradient of :func:`~mup_tune.model.kernels.attention.attention_`, written to ``d_qkv_PBTC``.

    Args:
        d_out_PBTE, out_PBTE: views with the last stride 1; ``out`` is what the forward pass wrote.
        lse_PBQT: what the forward pass returned.
        qkv_PBTC: as the forward pass left it.
        cos_PTR, sin_PTR, spans_2BT: what the forward pass read.
        d_qkv_PBTC: a view with the last stride 1; the gradients of q, k and v before the rotary embedding.
    """
    P, B, T, _ = qkv_PBTC.shape
    R = cos_PTR.shape[-1]
    K = padded_head_dim(2 * R)
    stats = torch.empty(*lse_PBQT.shape, 2, dtype=torch.float32, device=qkv_PBTC.device)  # denominator (log2), delta
    tile = queries_launch(K, qkv_PBTC.dtype)
    _queries_kernel[(P * B * n_heads * triton.cdiv(T, tile["BLOCK_M"]),)](
        qkv_ptr=qkv_PBTC, spans_ptr=spans_2BT, cos_ptr=cos_PTR, sin_ptr=sin_PTR, out_ptr=out_PBTE, d_out_ptr=d_out_PBTE,
        lse_ptr=lse_PBQT, stats_ptr=stats, d_qkv_ptr=d_qkv_PBTC, B=B, T=T, J=n_kv_heads, scale=(2 * R) ** -0.5,
        **strides("pbt", qkv=qkv_PBTC, out=out_PBTE, d_out=d_out_PBTE, d_qkv=d_qkv_PBTC),
        Q=n_heads, R=R, K=K, **tile,
    )  # fmt: skip
    tile = keys_launch(K, qkv_PBTC.dtype)
    _keys_kernel[(P * B * n_kv_heads * triton.cdiv(T, tile["BLOCK_N"]),)](
        qkv_ptr=qkv_PBTC, spans_ptr=spans_2BT, cos_ptr=cos_PTR, sin_ptr=sin_PTR, d_out_ptr=d_out_PBTE, stats_ptr=stats,
        d_qkv_ptr=d_qkv_PBTC, B=B, T=T, J=n_kv_heads,
        **strides("pbt", qkv=qkv_PBTC, d_out=d_out_PBTE, d_qkv=d_qkv_PBTC), Q=n_heads, R=R, K=K, **tile,
    )  # fmt: skip

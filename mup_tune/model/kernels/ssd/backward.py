"""Backward pass of the scan: one walk over the chunks, then all gradients in a chunk at once.

The walk leaves dy = d_out · silu(z) in the columns where d_x goes, d_out · silu'(z) where d_z goes, and
the gradients of the states at every chunk's end.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import LOG2E, Parts
from mup_tune.model.kernels.ssd.states import (
    decay,
    load_documents,
    load_tokens,
    plan_schedule,
    plan_sizes,
    states_kernel,
    token_stride,
)


@triton.jit
def _softplus_slope(dt_L):
    """The derivative of dt = softplus(u), sigmoid(u) = 1 − exp(−dt), over dt, which may be 0."""
    series_L = 1 - dt_L * (0.5 - dt_L * (1 / 6 - dt_L * (1 / 24 - dt_L * (1 / 120))))
    return tl.where(dt_L < 0.125, series_L, (1 - tl.exp2(-dt_L * LOG2E)) / tl.maximum(dt_L, 0.125))


@triton.jit
def _edge_decays(chunk, documents_ptr, dt_ptr, log_ptr, T, L: tl.constexpr):
    """Decays from a chunk's start, to its end (times dt) and over all of it; 0 across documents."""
    documents_L, before, last = load_documents(chunk, documents_ptr, T, L)
    dt_L, log_L = load_tokens(dt_ptr, 1, chunk, T, L), load_tokens(log_ptr, 1, chunk, T, L)
    total = tl.min(log_L, 0)
    from_start_L = tl.where(documents_L == before, tl.exp2(log_L), 0.0)
    to_end_L = tl.where(documents_L == last, tl.exp2(total - log_L) * dt_L, 0.0)
    return from_start_L, to_end_L, tl.where(before == last, tl.exp2(total), 0.0)


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _group_gradients_kernel(
    xBC_ptr, documents_ptr, dt_ptr, log_ptr, states_ptr, d_states_ptr, d_xBC_ptr, xBC_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C. One program: one chunk and group, whose heads are summed in registers."""
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    group, chunk, row = pid % G, pid // G % n_chunks, pid // (G * n_chunks)
    first_token = row.to(tl.int64) * T + chunk * L
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    in_row_L = l_L < T - chunk * L
    documents_ptr += (row % B).to(tl.int64) * T
    xBC_ptr += first_token * xBC_stride_t
    d_xBC_ptr += first_token * xBC_stride_t
    d_scores_LL = tl.zeros((L, L), tl.float32)
    d_B_LS = tl.zeros((L, BLOCK_S), tl.float32)
    d_C_LS = tl.zeros((L, BLOCK_S), tl.float32)
    for i in range(H // G):
        head = group * (H // G) + i
        steps_at = (row.to(tl.int64) * H + head) * T
        from_start_L, to_end_L, _ = _edge_decays(chunk, documents_ptr, dt_ptr + steps_at, log_ptr + steps_at, T, L)
        state_at = ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
        d_mixing_LL = tl.zeros((L, L), tl.float32)
        for part in range((K + BLOCK_K - 1) // BLOCK_K):
            channel_K = part * BLOCK_K + k_K
            head_LK = l_L[:, None] * xBC_stride_t + head * K + channel_K[None, :]
            in_head_LK = in_row_L[:, None] & (channel_K < K)[None, :]
            state_SK = s_S[:, None] * K + channel_K[None, :]
            in_state_SK = (s_S < S)[:, None] & (channel_K < K)[None, :]
            x_LK = tl.load(xBC_ptr + head_LK, mask=in_head_LK, other=0.0)
            dy_LK = tl.load(d_xBC_ptr + head_LK, mask=in_head_LK, other=0.0)
            d_mixing_LL = tl.dot(dy_LK, tl.trans(x_LK), d_mixing_LL, input_precision="ieee")
            first_SK = tl.load(states_ptr + state_at + state_SK, mask=in_state_SK, other=0.0)
            read_LK = (dy_LK.to(tl.float32) * from_start_L[:, None]).to(dtype)
            d_C_LS = tl.dot(read_LK, tl.trans(first_SK), d_C_LS, input_precision="ieee")
            d_end_SK = tl.load(d_states_ptr + state_at + state_SK, mask=in_state_SK, other=0.0)
            given_LK = (x_LK.to(tl.float32) * to_end_L[:, None]).to(dtype)
            d_B_LS = tl.dot(given_LK, tl.trans(d_end_SK), d_B_LS, input_precision="ieee")
        d_scores_LL += d_mixing_LL * decay(chunk, documents_ptr, dt_ptr + steps_at, log_ptr + steps_at, T, L)

    group_LS = l_L[:, None] * xBC_stride_t + H * K + group * S + s_S[None, :]
    in_group_LS = in_row_L[:, None] & (s_S < S)[None, :]
    d_scores_LL = d_scores_LL.to(dtype)
    B_LS = tl.load(xBC_ptr + group_LS, mask=in_group_LS, other=0.0)
    d_C_LS = tl.dot(d_scores_LL, B_LS, d_C_LS, input_precision="ieee")
    tl.store(d_xBC_ptr + G * S + group_LS, d_C_LS.to(dtype), mask=in_group_LS)
    C_LS = tl.load(xBC_ptr + G * S + group_LS, mask=in_group_LS, other=0.0)
    d_B_LS = tl.dot(tl.trans(d_scores_LL), C_LS, d_B_LS, input_precision="ieee")
    tl.store(d_xBC_ptr + group_LS, d_B_LS.to(dtype), mask=in_group_LS)


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _head_gradients_kernel(
    xBC_ptr, A_log_ptr, D_ptr, documents_ptr, dt_ptr, log_ptr, states_ptr, d_states_ptr, d_xBC_ptr, d_z_ptr, d_raw_ptr,
    dt_bias_parts_ptr, A_log_parts_ptr, D_parts_ptr, xBC_stride_t, d_z_stride_t, d_raw_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All gradients but those of B and C. One program: one chunk and head.

    A log decay's gradient needs no pass over [L, L]: what token i reads sums to dy_i · y_i, what token j
    gives to x_j · dx_j (skip left out of both), and both are summed over the same rounded factors, so that
    they cancel.
    """
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    head, chunk, row = pid % H, pid // H % n_chunks, pid // (H * n_chunks)
    p, first_token = row // B, row.to(tl.int64) * T + chunk * L
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    in_row_L = l_L < T - chunk * L
    documents_ptr += (row % B).to(tl.int64) * T
    xBC_ptr += first_token * xBC_stride_t
    d_xBC_ptr += first_token * xBC_stride_t + head * K
    d_z_ptr += first_token * d_z_stride_t + head * K
    d_raw_ptr += first_token * d_raw_stride_t + head
    dt_ptr += (row.to(tl.int64) * H + head) * T
    log_ptr += (row.to(tl.int64) * H + head) * T
    state_at = ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
    A, D = -tl.exp(tl.load(A_log_ptr + p * H + head)), tl.load(D_ptr + p * H + head)

    group_LS = l_L[:, None] * xBC_stride_t + H * K + head // (H // G) * S + s_S[None, :]
    in_group_LS = in_row_L[:, None] & (s_S < S)[None, :]
    B_LS = tl.load(xBC_ptr + group_LS, mask=in_group_LS, other=0.0)
    C_LS = tl.load(xBC_ptr + G * S + group_LS, mask=in_group_LS, other=0.0)
    scores_LL = tl.dot(C_LS, tl.trans(B_LS), input_precision="ieee")
    mixing_LL = (scores_LL * decay(chunk, documents_ptr, dt_ptr, log_ptr, T, L)).to(dtype)
    from_start_L, to_end_L, kept = _edge_decays(chunk, documents_ptr, dt_ptr, log_ptr, T, L)
    read_L, given_L = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    ended_L, skipped_L = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    kept_S = tl.zeros((BLOCK_S,), tl.float32)
    for part in range((K + BLOCK_K - 1) // BLOCK_K):
        channel_K = part * BLOCK_K + k_K
        in_head_LK = in_row_L[:, None] & (channel_K < K)[None, :]
        at_LK = l_L[:, None] * xBC_stride_t + channel_K[None, :]
        state_SK = s_S[:, None] * K + channel_K[None, :]
        in_state_SK = (s_S < S)[:, None] & (channel_K < K)[None, :]
        x_LK = tl.load(xBC_ptr + head * K + at_LK, mask=in_head_LK, other=0.0)
        dy_LK = tl.load(d_xBC_ptr + at_LK, mask=in_head_LK, other=0.0)
        skipped_L += tl.sum(dy_LK.to(tl.float32) * x_LK.to(tl.float32), 1)
        first_SK = tl.load(states_ptr + state_at + state_SK, mask=in_state_SK, other=0.0)
        y_LK = tl.dot(C_LS, first_SK, input_precision="ieee") * from_start_L[:, None]
        y_LK = tl.dot(mixing_LL, x_LK, y_LK, input_precision="ieee")
        read_L += tl.sum(dy_LK.to(tl.float32) * y_LK, 1)
        d_z_at_LK = l_L[:, None] * d_z_stride_t + channel_K[None, :]
        d_z_LK = tl.load(d_z_ptr + d_z_at_LK, mask=in_head_LK, other=0.0)
        d_z_LK = (d_z_LK.to(tl.float32) * (y_LK + D * x_LK.to(tl.float32))).to(dtype)
        tl.store(d_z_ptr + d_z_at_LK, d_z_LK, mask=in_head_LK)

        d_end_SK = tl.load(d_states_ptr + state_at + state_SK, mask=in_state_SK, other=0.0)
        kept_S += tl.sum(first_SK.to(tl.float32) * d_end_SK.to(tl.float32), 1)
        d_x_LK = tl.dot(B_LS, d_end_SK, input_precision="ieee") * to_end_L[:, None]
        ended_L += tl.sum(d_x_LK * x_LK.to(tl.float32), 1)
        d_x_LK = tl.dot(tl.trans(mixing_LL), dy_LK, d_x_LK, input_precision="ieee")
        given_L += tl.sum(d_x_LK * x_LK.to(tl.float32), 1)
        d_x_LK = (d_x_LK + D * dy_LK.to(tl.float32)).to(dtype)
        tl.store(d_xBC_ptr + at_LK, d_x_LK, mask=in_head_LK)

    dt_L = load_tokens(dt_ptr, 1, chunk, T, L)
    d_log_L = tl.cumsum(read_L - given_L, 0, reverse=True) + tl.sum(ended_L, 0) + kept * tl.sum(kept_S, 0)
    # given / dt is the direct gradient of dt.
    d_raw_L = tl.where(in_row_L, (A * d_log_L * dt_L + given_L) * _softplus_slope(dt_L), 0.0)
    tl.store(d_raw_ptr + l_L * d_raw_stride_t, d_raw_L.to(dtype), mask=in_row_L)
    part_at = (row * n_chunks + chunk) * H + head
    tl.store(dt_bias_parts_ptr + part_at, tl.sum(d_raw_L, 0))
    tl.store(A_log_parts_ptr + part_at, A * tl.sum(d_log_L * dt_L, 0))
    tl.store(D_parts_ptr + part_at, tl.sum(skipped_L, 0))


def ssd_backward(
    d_out_PBTX: Tensor,
    dt_PBHT: Tensor,
    log_PBHT: Tensor,
    states_PBHcSK: Tensor,
    xBC_PBTC: Tensor,
    raw_PBTH: Tensor,
    z_PBTX: Tensor,
    dt_bias_PH: Tensor,
    A_log_PH: Tensor,
    D_PH: Tensor,
    n_heads: int,
    n_groups: int,
    d_state: int,
    documents_BT: Tensor,
    d_raw_PBTH: Tensor,
    d_z_PBTX: Tensor,
    dt_bias_parts: Parts,
    A_log_parts: Parts,
    D_parts: Parts,
) -> Tensor:
    """Gradients of :func:`~mup_tune.model.kernels.ssd.ssd`; those of raw and z are written.

    Args:
        d_raw_PBTH, d_z_PBTX: may be columns of a wider buffer.
        dt_bias_parts: of width H, as are the others.

    Returns:
        the gradient of xBC, contiguous, in the work dtype.
    """
    P, B, T, X = z_PBTX.shape
    sizes = plan_sizes(n_heads, n_groups, d_state, X // n_heads, xBC_PBTC.dtype)
    chunks = states_PBHcSK.shape[3]
    d_xBC_PBTC, d_states_PBHcSK = torch.empty_like(xBC_PBTC), torch.empty_like(states_PBHcSK)
    states_kernel[(P * B * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        value_ptr=d_out_PBTX, z_ptr=z_PBTX, d_z_ptr=d_z_PBTX, dy_ptr=d_xBC_PBTC,
        key_ptr=xBC_PBTC[..., X + n_groups * d_state :], raw_ptr=None, dt_bias_ptr=None, A_log_ptr=None,
        documents_ptr=documents_BT, dt_ptr=None, log_ptr=log_PBHT, states_ptr=d_states_PBHcSK,
        value_stride_t=token_stride(d_out_PBTX), z_stride_t=token_stride(z_PBTX), d_z_stride_t=token_stride(d_z_PBTX),
        key_stride_t=token_stride(xBC_PBTC), raw_stride_t=None, B=B, T=T, n_chunks=chunks,
        **sizes, BACKWARD=True, **plan_schedule(sizes, 3, 128),
    )  # fmt: skip
    # Before d_x takes the place of dy.
    _group_gradients_kernel[(P * B * chunks * n_groups,)](
        xBC_ptr=xBC_PBTC, documents_ptr=documents_BT, dt_ptr=dt_PBHT, log_ptr=log_PBHT, states_ptr=states_PBHcSK,
        d_states_ptr=d_states_PBHcSK, d_xBC_ptr=d_xBC_PBTC, xBC_stride_t=token_stride(xBC_PBTC),
        B=B, T=T, n_chunks=chunks, **sizes, **plan_schedule(sizes, 2),
    )  # fmt: skip
    _head_gradients_kernel[(P * B * chunks * n_heads,)](
        xBC_ptr=xBC_PBTC, A_log_ptr=A_log_PH, D_ptr=D_PH, documents_ptr=documents_BT, dt_ptr=dt_PBHT, log_ptr=log_PBHT,
        states_ptr=states_PBHcSK, d_states_ptr=d_states_PBHcSK, d_xBC_ptr=d_xBC_PBTC, d_z_ptr=d_z_PBTX,
        d_raw_ptr=d_raw_PBTH, dt_bias_parts_ptr=dt_bias_parts(B * chunks), A_log_parts_ptr=A_log_parts(B * chunks),
        D_parts_ptr=D_parts(B * chunks), xBC_stride_t=token_stride(xBC_PBTC), d_z_stride_t=token_stride(d_z_PBTX),
        d_raw_stride_t=token_stride(d_raw_PBTH), B=B, T=T, n_chunks=chunks, **sizes, **plan_schedule(sizes, 2),
    )  # fmt: skip
    return d_xBC_PBTC

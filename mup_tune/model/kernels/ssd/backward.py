"""Backward pass of the scan: a walk over the chunks, then all gradients within chunks, then those of steps.

The walk leaves dy = d_out · silu(z), d_out · silu'(z) where d_z goes, and the gradients of the states at
every chunk's end. Within a chunk a program takes one head in one of two roles. One holds the tokens that read
the state, and so finishes d_z. The other holds the tokens that give to it, and so has d_x. Neither needs what
the other finds, and each fits half the registers of both together. They run side by side, so that memory is
read once for both.

Three pipeline stages where roles branch: with one or two, ptxas (of CUDA 12.8, with Triton 3.6) makes a
product's shared-memory address of a register that is not the address.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import LOG2E, Parts
from mup_tune.model.kernels.ssd.chunks import (
    crosses,
    decay,
    from_start,
    load_tile,
    load_tokens,
    plan_schedule,
    plan_sizes,
    store_tile,
    to_end,
    token_stride,
)
from mup_tune.model.kernels.ssd.states import states_kernel


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _heads_kernel(
    xBC_ptr, dy_ptr, D_ptr, spans_ptr, log_ptr, key_ptr, states_ptr, d_states_ptr, d_xBC_ptr, d_z_ptr,
    read_ptr, given_ptr, ended_ptr, D_parts_ptr, xBC_stride_t, dy_stride_t, d_z_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of x, z and D, and what steps need. One program: one role in one chunk of one head.

    Of a reader it leaves dy_i · y_i, of a giver x_j · dx_j, both without the skip. Of a chunk it leaves the
    state at its end times that state's gradient: what tokens gave to it and what passed through.
    """
    role, pid = tl.program_id(0) % 2, tl.program_id(0) // 2
    head, chunk, row = pid % H, pid // H % n_chunks, pid // (H * n_chunks)
    first_token, left = row.to(tl.int64) * T + chunk * L, T - chunk * L
    l_L = tl.arange(0, L)
    dtype = xBC_ptr.dtype.element_ty
    spans_ptr += (row % B).to(tl.int64) * T
    group_ptr = xBC_ptr + first_token * xBC_stride_t + H * K + head // (H // G) * S
    xBC_ptr += first_token * xBC_stride_t + head * K
    dy_ptr += first_token * dy_stride_t + head * K
    steps_at = (row.to(tl.int64) * H + head) * T
    log_ptr += steps_at
    key_ptr += steps_at
    state_at = ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
    D = tl.load(D_ptr + row // B * H + head)
    B_LS = load_tile(group_ptr, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    C_LS = load_tile(group_ptr + G * S, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    log_L = load_tokens(log_ptr, 1, chunk, T, L)
    if role == 0:
        d_z_ptr += first_token * d_z_stride_t + head * K
        scores_LL = tl.dot(C_LS, tl.trans(B_LS), input_precision="ieee")
        mixing_LL = (scores_LL * decay(spans_ptr, log_ptr, key_ptr, chunk, B, T, L, BY_READER=True)).to(dtype)
        from_start_L = from_start(load_tokens(spans_ptr, 1, chunk, T, L), log_L, chunk, L)
        read_L = tl.zeros((L,), tl.float32)
        for k0 in range(0, K, BLOCK_K):
            x_LK = load_tile(xBC_ptr + k0, xBC_stride_t, left, K - k0, L, BLOCK_K, EVEN)
            dy_LK = load_tile(dy_ptr + k0, dy_stride_t, left, K - k0, L, BLOCK_K, EVEN).to(tl.float32)
            d_z_LK = load_tile(d_z_ptr + k0, d_z_stride_t, left, K - k0, L, BLOCK_K, EVEN).to(tl.float32)
            first_SK = load_tile(states_ptr + state_at + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
            y_LK = tl.dot(C_LS, first_SK, input_precision="ieee") * from_start_L[:, None]
            y_LK = tl.dot(mixing_LL, x_LK, y_LK, input_precision="ieee")
            read_L += tl.sum(dy_LK * y_LK, 1)
            d_z_LK *= y_LK + D * x_LK.to(tl.float32)
            store_tile(d_z_ptr + k0, d_z_stride_t, left, K - k0, d_z_LK, L, BLOCK_K, EVEN)
        tl.store(read_ptr + steps_at + chunk * L + l_L, read_L, mask=l_L < left)
    else:
        d_xBC_ptr += first_token * xBC_stride_t + head * K
        scores_LL = tl.dot(B_LS, tl.trans(C_LS), input_precision="ieee")
        mixing_LL = (scores_LL * decay(spans_ptr, log_ptr, key_ptr, chunk, B, T, L, BY_READER=False)).to(dtype)
        total = tl.min(log_L, 0)
        end_L, key_L = load_tokens(spans_ptr + B * T, 1, chunk, T, L), load_tokens(key_ptr, 1, chunk, T, L)
        to_end_L = to_end(end_L, key_L, total, chunk, T, L)
        given_L, ended_L = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
        passed, skipped = 0.0, 0.0
        for k0 in range(0, K, BLOCK_K):
            x_LK = load_tile(xBC_ptr + k0, xBC_stride_t, left, K - k0, L, BLOCK_K, EVEN).to(tl.float32)
            dy_LK = load_tile(dy_ptr + k0, dy_stride_t, left, K - k0, L, BLOCK_K, EVEN)
            first_SK = load_tile(states_ptr + state_at + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
            d_end_SK = load_tile(d_states_ptr + state_at + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
            passed += tl.sum(tl.sum(first_SK.to(tl.float32) * d_end_SK.to(tl.float32), 1), 0)
            skipped += tl.sum(tl.sum(dy_LK.to(tl.float32) * x_LK, 1), 0)
            d_x_LK = tl.dot(B_LS, d_end_SK, input_precision="ieee") * to_end_L[:, None]
            ended_L += tl.sum(d_x_LK * x_LK, 1)
            d_x_LK = tl.dot(mixing_LL, dy_LK, d_x_LK, input_precision="ieee")
            given_L += tl.sum(d_x_LK * x_LK, 1)
            d_x_LK += D * dy_LK.to(tl.float32)
            store_tile(d_xBC_ptr + k0, xBC_stride_t, left, K - k0, d_x_LK, L, BLOCK_K, EVEN)
        tl.store(given_ptr + steps_at + chunk * L + l_L, given_L, mask=l_L < left)
        kept = tl.where(crosses(spans_ptr, chunk, T, L), tl.exp2(total), 0.0)
        part_at = (row * n_chunks + chunk) * H + head
        tl.store(ended_ptr + part_at, tl.sum(ended_L, 0) + kept * passed)
        tl.store(D_parts_ptr + part_at, skipped)


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _groups_kernel(
    xBC_ptr, dy_ptr, spans_ptr, log_ptr, key_ptr, states_ptr, d_states_ptr, d_xBC_ptr,
    xBC_stride_t, dy_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C. One program: one chunk and group, whose heads are summed in registers."""
    HEADS: tl.constexpr = H // G
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    group, chunk, row = pid % G, pid // G % n_chunks, pid // (G * n_chunks)
    first_token, left = row.to(tl.int64) * T + chunk * L, T - chunk * L
    spans_ptr += (row % B).to(tl.int64) * T
    group_at = first_token * xBC_stride_t + H * K + group * S
    d_group_ptr, group_ptr = d_xBC_ptr + group_at, xBC_ptr + group_at
    xBC_ptr += first_token * xBC_stride_t
    dy_ptr += first_token * dy_stride_t
    d_scores_LL = tl.zeros((L, L), tl.float32)
    d_B_LS, d_C_LS = tl.zeros((L, BLOCK_S), tl.float32), tl.zeros((L, BLOCK_S), tl.float32)
    start_L = load_tokens(spans_ptr, 1, chunk, T, L)
    end_L = load_tokens(spans_ptr + B * T, 1, chunk, T, L)
    for i in range(HEADS):
        head = group * HEADS + i
        steps_at = (row.to(tl.int64) * H + head) * T
        state_at = ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
        log_L = load_tokens(log_ptr + steps_at, 1, chunk, T, L)
        key_L = load_tokens(key_ptr + steps_at, 1, chunk, T, L)
        from_start_L = from_start(start_L, log_L, chunk, L)
        to_end_L = to_end(end_L, key_L, tl.min(log_L, 0), chunk, T, L)
        d_mixing_LL = tl.zeros((L, L), tl.float32)
        for k0 in range(0, K, BLOCK_K):
            x_LK = load_tile(xBC_ptr + head * K + k0, xBC_stride_t, left, K - k0, L, BLOCK_K, EVEN)
            dy_LK = load_tile(dy_ptr + head * K + k0, dy_stride_t, left, K - k0, L, BLOCK_K, EVEN)
            first_SK = load_tile(states_ptr + state_at + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
            d_end_SK = load_tile(d_states_ptr + state_at + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
            d_mixing_LL = tl.dot(dy_LK, tl.trans(x_LK), d_mixing_LL, input_precision="ieee")
            read_LK = (dy_LK.to(tl.float32) * from_start_L[:, None]).to(dtype)
            d_C_LS = tl.dot(read_LK, tl.trans(first_SK), d_C_LS, input_precision="ieee")
            given_LK = (x_LK.to(tl.float32) * to_end_L[:, None]).to(dtype)
            d_B_LS = tl.dot(given_LK, tl.trans(d_end_SK), d_B_LS, input_precision="ieee")
        decay_LL = decay(spans_ptr, log_ptr + steps_at, key_ptr + steps_at, chunk, B, T, L, BY_READER=True)
        d_scores_LL += d_mixing_LL * decay_LL

    d_scores_LL = d_scores_LL.to(dtype)
    B_LS = load_tile(group_ptr, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    d_C_LS = tl.dot(d_scores_LL, B_LS, d_C_LS, input_precision="ieee")
    store_tile(d_group_ptr + G * S, xBC_stride_t, left, S, d_C_LS, L, BLOCK_S, EVEN)
    C_LS = load_tile(group_ptr + G * S, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    d_B_LS = tl.dot(tl.trans(d_scores_LL), C_LS, d_B_LS, input_precision="ieee")
    store_tile(d_group_ptr, xBC_stride_t, left, S, d_B_LS, L, BLOCK_S, EVEN)


@triton.jit
def _softplus_slope(dt):
    """The derivative of dt = softplus(u), sigmoid(u) = 1 − exp(−dt), over dt, which may be 0."""
    series = 1 - dt * (0.5 - dt * (1 / 6 - dt * (1 / 24 - dt * (1 / 120))))
    return tl.where(dt < 0.125, series, (1 - tl.exp2(-dt * LOG2E)) / tl.maximum(dt, 0.125))


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _steps_kernel(
    A_log_ptr, dt_ptr, read_ptr, given_ptr, ended_ptr, d_raw_ptr, dt_bias_parts_ptr, A_log_parts_ptr,
    d_raw_stride_t, B, T, n_chunks, H: tl.constexpr, L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients of dt's parts and of A_log. One program: one chunk, all heads.

    A log decay's gradient needs no pass over [L, L]: what token i reads sums to dy_i · y_i, what token j
    gives to x_j · dx_j, and both are summed over the same rounded factors, so that they cancel. What passes
    the chunk's end sums to the state there times its gradient.
    """
    pid = tl.program_id(0)
    chunk, row = pid % n_chunks, pid // n_chunks
    h_H1, l_1L = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, L)[None, :]
    h_H = tl.arange(0, BLOCK_H)
    in_row_HL = (h_H1 < H) & (l_1L < T - chunk * L)
    steps_at_HL = (row.to(tl.int64) * H + h_H1) * T + chunk * L + l_1L
    part_at_H = (row * n_chunks + chunk) * H + h_H
    dt_HL = tl.load(dt_ptr + steps_at_HL, mask=in_row_HL, other=0.0)
    read_HL = tl.load(read_ptr + steps_at_HL, mask=in_row_HL, other=0.0)
    given_HL = tl.load(given_ptr + steps_at_HL, mask=in_row_HL, other=0.0)
    ended_H = tl.load(ended_ptr + part_at_H, mask=h_H < H, other=0.0)
    A_H = -tl.exp(tl.load(A_log_ptr + row // B * H + h_H, mask=h_H < H, other=0.0))
    d_log_HL = tl.cumsum(read_HL - given_HL, 1, reverse=True) + ended_H[:, None]
    # given / dt is the direct gradient of dt.
    d_raw_HL = tl.where(in_row_HL, (A_H[:, None] * d_log_HL * dt_HL + given_HL) * _softplus_slope(dt_HL), 0.0)
    d_raw_ptrs = d_raw_ptr + (row.to(tl.int64) * T + chunk * L) * d_raw_stride_t + l_1L * d_raw_stride_t + h_H1
    tl.store(d_raw_ptrs, d_raw_HL.to(d_raw_ptr.dtype.element_ty), mask=in_row_HL)
    tl.store(dt_bias_parts_ptr + part_at_H, tl.sum(d_raw_HL, 1), mask=h_H < H)
    tl.store(A_log_parts_ptr + part_at_H, A_H * tl.sum(d_log_HL * dt_HL, 1), mask=h_H < H)


def ssd_backward(
    d_out_PBTX: Tensor,
    dt_PBHT: Tensor,
    log_PBHT: Tensor,
    key_PBHT: Tensor,
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
    spans_2BT: Tensor,
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
    sizes = plan_sizes(n_heads, n_groups, d_state, X // n_heads, T, xBC_PBTC.dtype)
    chunks = states_PBHcSK.shape[3]
    d_xBC_PBTC, d_states_PBHcSK = torch.empty_like(xBC_PBTC), torch.empty_like(states_PBHcSK)
    dy_PBTX = torch.empty_like(z_PBTX, memory_format=torch.contiguous_format)
    read_PBHT, given_PBHT = torch.empty_like(dt_PBHT), torch.empty_like(dt_PBHT)
    ended_PBcH = dt_PBHT.new_empty(P, B, chunks, n_heads)
    states_kernel[(P * B * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        value_ptr=d_out_PBTX, z_ptr=z_PBTX, d_z_ptr=d_z_PBTX, dy_ptr=dy_PBTX,
        direction_ptr=xBC_PBTC[..., X + n_groups * d_state :], raw_ptr=None, dt_bias_ptr=None, A_log_ptr=None,
        spans_ptr=spans_2BT, dt_ptr=None, log_ptr=log_PBHT, key_ptr=None, states_ptr=d_states_PBHcSK,
        value_stride_t=token_stride(d_out_PBTX), z_stride_t=token_stride(z_PBTX), d_z_stride_t=token_stride(d_z_PBTX),
        dy_stride_t=X, direction_stride_t=token_stride(xBC_PBTC), raw_stride_t=None, B=B, T=T, n_chunks=chunks,
        **sizes, BACKWARD=True, **plan_schedule(sizes, 3, 128, most_states=128),
    )  # fmt: skip
    _groups_kernel[(P * B * chunks * n_groups,)](
        xBC_ptr=xBC_PBTC, dy_ptr=dy_PBTX, spans_ptr=spans_2BT, log_ptr=log_PBHT, key_ptr=key_PBHT,
        states_ptr=states_PBHcSK, d_states_ptr=d_states_PBHcSK, d_xBC_ptr=d_xBC_PBTC,
        xBC_stride_t=token_stride(xBC_PBTC), dy_stride_t=X, B=B, T=T, n_chunks=chunks,
        **sizes, **plan_schedule(sizes, 2),
    )  # fmt: skip
    _heads_kernel[(2 * P * B * chunks * n_heads,)](
        xBC_ptr=xBC_PBTC, dy_ptr=dy_PBTX, D_ptr=D_PH, spans_ptr=spans_2BT, log_ptr=log_PBHT, key_ptr=key_PBHT,
        states_ptr=states_PBHcSK, d_states_ptr=d_states_PBHcSK, d_xBC_ptr=d_xBC_PBTC, d_z_ptr=d_z_PBTX,
        read_ptr=read_PBHT, given_ptr=given_PBHT, ended_ptr=ended_PBcH, D_parts_ptr=D_parts(B * chunks),
        xBC_stride_t=token_stride(xBC_PBTC), dy_stride_t=X, d_z_stride_t=token_stride(d_z_PBTX),
        B=B, T=T, n_chunks=chunks, **sizes, **plan_schedule(sizes, 3, 128),
    )  # fmt: skip
    _steps_kernel[(P * B * chunks,)](
        A_log_ptr=A_log_PH, dt_ptr=dt_PBHT, read_ptr=read_PBHT, given_ptr=given_PBHT, ended_ptr=ended_PBcH,
        d_raw_ptr=d_raw_PBTH, dt_bias_parts_ptr=dt_bias_parts(B * chunks), A_log_parts_ptr=A_log_parts(B * chunks),
        d_raw_stride_t=token_stride(d_raw_PBTH), B=B, T=T, n_chunks=chunks,
        H=n_heads, L=sizes["L"], BLOCK_H=triton.next_power_of_2(n_heads), num_warps=1,
    )  # fmt: skip
    return d_xBC_PBTC

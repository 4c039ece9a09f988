"""The state-space scan of Mamba-2 with its step sizes, skip and gate (SSD; arXiv 2405.21060, §6).

A row's chunks are walked in order for the state at every chunk's edge alone (``states``); then all chunks run
at once. So only one small product a chunk waits for the chunk before, which is what counts where few heads
run.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels.ssd.states import (
    decay,
    load_documents,
    load_tokens,
    plan_schedule,
    plan_sizes,
    states_kernel,
    token_stride,
)


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _outputs_kernel(
    xBC_ptr, z_ptr, D_ptr, documents_ptr, dt_ptr, log_ptr, states_ptr, out_ptr,
    xBC_stride_t, z_stride_t, out_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one head of one chunk. Reads the state at the chunk's start, writes the gated output."""
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    head, chunk, row = pid % H, pid // H % n_chunks, pid // (H * n_chunks)
    first_token = row.to(tl.int64) * T + chunk * L
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    in_row_L = l_L < T - chunk * L
    documents_ptr += (row % B).to(tl.int64) * T
    xBC_ptr += first_token * xBC_stride_t
    z_ptr += first_token * z_stride_t + head * K
    out_ptr += first_token * out_stride_t + head * K
    dt_ptr += (row.to(tl.int64) * H + head) * T
    log_ptr += (row.to(tl.int64) * H + head) * T
    states_ptr += ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
    D = tl.load(D_ptr + row // B * H + head)

    group_LS = l_L[:, None] * xBC_stride_t + H * K + head // (H // G) * S + s_S[None, :]
    in_group_LS = in_row_L[:, None] & (s_S < S)[None, :]
    B_LS = tl.load(xBC_ptr + group_LS, mask=in_group_LS, other=0.0)
    C_LS = tl.load(xBC_ptr + G * S + group_LS, mask=in_group_LS, other=0.0)
    scores_LL = tl.dot(C_LS, tl.trans(B_LS), input_precision="ieee")
    mixing_LL = (scores_LL * decay(chunk, documents_ptr, dt_ptr, log_ptr, T, L)).to(dtype)
    documents_L, before, _ = load_documents(chunk, documents_ptr, T, L)
    from_start_L = tl.where(documents_L == before, tl.exp2(load_tokens(log_ptr, 1, chunk, T, L)), 0.0)
    for part in range((K + BLOCK_K - 1) // BLOCK_K):
        channel_K = part * BLOCK_K + k_K
        in_head_LK = in_row_L[:, None] & (channel_K < K)[None, :]
        in_state_SK = (s_S < S)[:, None] & (channel_K < K)[None, :]
        x_at_LK = l_L[:, None] * xBC_stride_t + head * K + channel_K[None, :]
        x_LK = tl.load(xBC_ptr + x_at_LK, mask=in_head_LK, other=0.0)
        z_at_LK = l_L[:, None] * z_stride_t + channel_K[None, :]
        z_LK = tl.load(z_ptr + z_at_LK, mask=in_head_LK, other=0.0).to(tl.float32)
        state_SK = tl.load(states_ptr + (s_S[:, None] * K + channel_K[None, :]), mask=in_state_SK, other=0.0)
        y_LK = tl.dot(C_LS, state_SK, input_precision="ieee") * from_start_L[:, None]
        y_LK = tl.dot(mixing_LL, x_LK, y_LK, input_precision="ieee") + D * x_LK.to(tl.float32)
        out_LK = (y_LK * (z_LK * tl.sigmoid(z_LK))).to(dtype)
        tl.store(out_ptr + (l_L[:, None] * out_stride_t + channel_K[None, :]), out_LK, mask=in_head_LK)


def ssd(
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
    out_PBTX: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``out = silu(z) · (C_t h_t + D x_t)``, ``h_t = exp(−exp(A_log) dt_t) h_{t-1} + dt_t x_t ⊗ B_t``.

    ``dt = softplus(raw + dt_bias)``; h = 0 where a document starts. Decays, sums and states are fp32, factors
    of matrix products in the work dtype.

    Args:
        xBC_PBTC: x, B and C after convolution and silu, contiguous, in the work dtype as z, raw and out,
            which may be columns of a wider buffer.
        dt_bias_PH: fp32, as A_log and D.
        documents_BT: int32, non-decreasing in a row from 0.
        out_PBTX: written.

    Returns:
        What the backward pass needs: dt [P, B, H, T], log2 decays summed in every chunk [P, B, H, T], and
        the state at every chunk's start [P, B, H, c, S, K].
    """
    P, B, T, X = z_PBTX.shape
    sizes = plan_sizes(n_heads, n_groups, d_state, X // n_heads, xBC_PBTC.dtype)
    chunks = triton.cdiv(T, sizes["L"])
    dt_PBHT, log_PBHT = torch.empty(2, P, B, n_heads, T, device=z_PBTX.device, dtype=torch.float32)
    states_PBHcSK = xBC_PBTC.new_empty(P, B, n_heads, chunks, d_state, sizes["K"])
    states_kernel[(P * B * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        value_ptr=xBC_PBTC, z_ptr=None, d_z_ptr=None, dy_ptr=None, key_ptr=xBC_PBTC[..., X:], raw_ptr=raw_PBTH,
        dt_bias_ptr=dt_bias_PH, A_log_ptr=A_log_PH, documents_ptr=documents_BT, dt_ptr=dt_PBHT, log_ptr=log_PBHT,
        states_ptr=states_PBHcSK, value_stride_t=token_stride(xBC_PBTC), z_stride_t=None, d_z_stride_t=None,
        key_stride_t=token_stride(xBC_PBTC), raw_stride_t=token_stride(raw_PBTH), B=B, T=T, n_chunks=chunks,
        **sizes, BACKWARD=False, **plan_schedule(sizes, 3, 128),
    )  # fmt: skip
    _outputs_kernel[(P * B * chunks * n_heads,)](
        xBC_ptr=xBC_PBTC, z_ptr=z_PBTX, D_ptr=D_PH, documents_ptr=documents_BT, dt_ptr=dt_PBHT, log_ptr=log_PBHT,
        states_ptr=states_PBHcSK, out_ptr=out_PBTX, xBC_stride_t=token_stride(xBC_PBTC),
        z_stride_t=token_stride(z_PBTX), out_stride_t=token_stride(out_PBTX), B=B, T=T, n_chunks=chunks,
        **sizes, **plan_schedule(sizes, 2),
    )  # fmt: skip
    return dt_PBHT, log_PBHT, states_PBHcSK

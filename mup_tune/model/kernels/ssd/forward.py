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

from mup_tune.model.kernels import sigmoid
from mup_tune.model.kernels.ssd.chunks import (
    decay,
    from_start,
    load_tile,
    load_tokens,
    plan_schedule,
    plan_sizes,
    store_tile,
    token_stride,
)
from mup_tune.model.kernels.ssd.states import states_kernel


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def _outputs_kernel(
    xBC_ptr, z_ptr, D_ptr, spans_ptr, log_ptr, key_ptr, states_ptr, out_ptr,
    xBC_stride_t, z_stride_t, out_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One program: one head of one chunk. Reads the state at the chunk's start, writes the gated output."""
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    head, chunk, row = pid % H, pid // H % n_chunks, pid // (H * n_chunks)
    first_token = row.to(tl.int64) * T + chunk * L
    left = T - chunk * L
    spans_ptr += (row % B).to(tl.int64) * T
    group_ptr = xBC_ptr + first_token * xBC_stride_t + H * K + head // (H // G) * S
    xBC_ptr += first_token * xBC_stride_t + head * K
    z_ptr += first_token * z_stride_t + head * K
    out_ptr += first_token * out_stride_t + head * K
    log_ptr += (row.to(tl.int64) * H + head) * T
    key_ptr += (row.to(tl.int64) * H + head) * T
    states_ptr += ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
    D = tl.load(D_ptr + row // B * H + head)

    B_LS = load_tile(group_ptr, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    C_LS = load_tile(group_ptr + G * S, xBC_stride_t, left, S, L, BLOCK_S, EVEN)
    scores_LL = tl.dot(C_LS, tl.trans(B_LS), input_precision="ieee")
    mixing_LL = (scores_LL * decay(spans_ptr, log_ptr, key_ptr, chunk, B, T, L, BY_READER=True)).to(dtype)
    start_L, log_L = load_tokens(spans_ptr, 1, chunk, T, L), load_tokens(log_ptr, 1, chunk, T, L)
    from_start_L = from_start(start_L, log_L, chunk, L)
    for part in range((K + BLOCK_K - 1) // BLOCK_K):
        k0 = part * BLOCK_K
        x_LK = load_tile(xBC_ptr + k0, xBC_stride_t, left, K - k0, L, BLOCK_K, EVEN)
        z_LK = load_tile(z_ptr + k0, z_stride_t, left, K - k0, L, BLOCK_K, EVEN).to(tl.float32)
        state_SK = load_tile(states_ptr + k0, K, S, K - k0, BLOCK_S, BLOCK_K, EVEN)
        y_LK = tl.dot(C_LS, state_SK, input_precision="ieee") * from_start_L[:, None]
        y_LK = tl.dot(mixing_LL, x_LK, y_LK, input_precision="ieee") + D * x_LK.to(tl.float32)
        out_LK = y_LK * (z_LK * sigmoid(z_LK))
        store_tile(out_ptr + k0, out_stride_t, left, K - k0, out_LK, L, BLOCK_K, EVEN)


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
    spans_2BT: Tensor,
    out_PBTX: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``out = silu(z) · (C_t h_t + D x_t)``, ``h_t = exp(−exp(A_log) dt_t) h_{t-1} + dt_t x_t ⊗ B_t``.

    ``dt = softplus(raw + dt_bias)``; h = 0 where a document starts. Decays, sums and states are fp32, factors
    of matrix products in the work dtype.

    Args:
        xBC_PBTC: x, B and C after convolution and silu, contiguous, in the work dtype as z, raw and out,
            which may be columns of a wider buffer.
        dt_bias_PH: fp32, as A_log and D.
        spans_2BT: of :func:`~mup_tune.model.kernels.spans.spans`.
        out_PBTX: written.

    Returns:
        What the backward pass needs: dt, log2 decays summed in every chunk, and these less log2(dt), each
        [P, B, H, T]; the state at every chunk's start [P, B, H, c, S, K].
    """
    P, B, T, X = z_PBTX.shape
    sizes = plan_sizes(n_heads, n_groups, d_state, X // n_heads, T, xBC_PBTC.dtype)
    chunks = triton.cdiv(T, sizes["L"])
    dt_PBHT, log_PBHT, key_PBHT = torch.empty(3, P, B, n_heads, T, device=z_PBTX.device, dtype=torch.float32)
    states_PBHcSK = xBC_PBTC.new_empty(P, B, n_heads, chunks, d_state, sizes["K"])
    states_kernel[(P * B * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        value_ptr=xBC_PBTC, z_ptr=None, d_z_ptr=None, dy_ptr=None, direction_ptr=xBC_PBTC[..., X:], raw_ptr=raw_PBTH,
        dt_bias_ptr=dt_bias_PH, A_log_ptr=A_log_PH, spans_ptr=spans_2BT, dt_ptr=dt_PBHT, log_ptr=log_PBHT,
        key_ptr=key_PBHT, states_ptr=states_PBHcSK, value_stride_t=token_stride(xBC_PBTC), z_stride_t=None,
        d_z_stride_t=None, dy_stride_t=None, direction_stride_t=token_stride(xBC_PBTC),
        raw_stride_t=token_stride(raw_PBTH), B=B, T=T, n_chunks=chunks,
        **sizes, BACKWARD=False, **plan_schedule(sizes, 3, 128, most_states=128),
    )  # fmt: skip
    _outputs_kernel[(P * B * chunks * n_heads,)](
        xBC_ptr=xBC_PBTC, z_ptr=z_PBTX, D_ptr=D_PH, spans_ptr=spans_2BT, log_ptr=log_PBHT, key_ptr=key_PBHT,
        states_ptr=states_PBHcSK, out_ptr=out_PBTX, xBC_stride_t=token_stride(xBC_PBTC),
        z_stride_t=token_stride(z_PBTX), out_stride_t=token_stride(out_PBTX), B=B, T=T, n_chunks=chunks,
        **sizes, **plan_schedule(sizes, 2, 96),
    )  # fmt: skip
    return dt_PBHT, log_PBHT, key_PBHT, states_PBHcSK

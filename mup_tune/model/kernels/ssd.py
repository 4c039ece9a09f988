"""The state-space scan of Mamba-2 with its step sizes, skip and gate, forward and backward (SSD; arXiv 2405.21060, §6).

A row's chunks are walked in order for the state at every chunk's edge alone (ssd_states.py); then all chunks
run at once. So only one small product a chunk waits for the chunk before, which is what counts where few
heads run.

Shape suffixes: P members, B rows, T tokens of a row, C convolution channels (x, then B, then C), X = H · K, H
heads, K channels of a head, G groups, S d_state, c chunks, L tokens of a chunk. Heads of a group are
adjacent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels.ssd_backward import group_gradients_kernel, head_gradients_kernel
from mup_tune.model.kernels.ssd_states import decay, load_documents, load_tokens, states_kernel


@triton.jit(do_not_specialize=["n_rows", "T", "n_chunks"])
def _outputs_kernel(
    xBC_ptr,
    z_ptr,
    D_ptr,
    documents_ptr,
    dt_ptr,
    log_ptr,
    states_ptr,
    out_ptr,
    xBC_stride,
    z_stride,
    out_stride,
    n_rows,
    T,
    n_chunks,
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: one head of one chunk. Reads the state at the chunk's start, writes the gated output."""
    dtype = xBC_ptr.dtype.element_ty
    pid = tl.program_id(0)
    head, chunk, row = pid % H, pid // H % n_chunks, pid // (H * n_chunks)
    first_token = row.to(tl.int64) * T + chunk * L
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    in_row_L = l_L < T - chunk * L
    documents_ptr += (row % n_rows).to(tl.int64) * T
    xBC_ptr += first_token * xBC_stride
    z_ptr += first_token * z_stride + head * K
    out_ptr += first_token * out_stride + head * K
    dt_ptr += (row.to(tl.int64) * H + head) * T
    log_ptr += (row.to(tl.int64) * H + head) * T
    states_ptr += ((row.to(tl.int64) * H + head) * n_chunks + chunk) * (S * K)
    D = tl.load(D_ptr + row // n_rows * H + head)

    group_LS = l_L[:, None] * xBC_stride + H * K + head // (H // G) * S + s_S[None, :]
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
        x_at_LK = l_L[:, None] * xBC_stride + head * K + channel_K[None, :]
        x_LK = tl.load(xBC_ptr + x_at_LK, mask=in_head_LK, other=0.0)
        z_at_LK = l_L[:, None] * z_stride + channel_K[None, :]
        z_LK = tl.load(z_ptr + z_at_LK, mask=in_head_LK, other=0.0).to(tl.float32)
        state_SK = tl.load(states_ptr + (s_S[:, None] * K + channel_K[None, :]), mask=in_state_SK, other=0.0)
        y_LK = tl.dot(C_LS, state_SK, input_precision="ieee") * from_start_L[:, None]
        y_LK = tl.dot(mixing_LL, x_LK, y_LK, input_precision="ieee") + D * x_LK.to(tl.float32)
        out_LK = (y_LK * (z_LK * tl.sigmoid(z_LK))).to(dtype)
        tl.store(out_ptr + (l_L[:, None] * out_stride + channel_K[None, :]), out_LK, mask=in_head_LK)


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
) -> tuple[Tensor, ...]:
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
        What :func:`ssd_backward` needs: dt [P, B, H, T], log2 decays summed in every chunk [P, B, H, T], and
        the state at every chunk's start [P, B, H, c, S, K].
    """
    P, rows, T, X = z_PBTX.shape
    sizes = _sizes(n_heads, n_groups, d_state, X // n_heads, xBC_PBTC.dtype)
    chunks = triton.cdiv(T, sizes["L"])
    dt_PBHT, log_PBHT = torch.empty(2, P, rows, n_heads, T, device=z_PBTX.device, dtype=torch.float32)
    states = xBC_PBTC.new_empty(P, rows, n_heads, chunks, d_state, sizes["K"])
    states_kernel[(P * rows * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        xBC_PBTC,
        z_PBTX,
        z_PBTX,
        z_PBTX,
        xBC_PBTC[..., X:],
        raw_PBTH,
        dt_bias_PH,
        A_log_PH,
        documents_BT,
        dt_PBHT,
        log_PBHT,
        states,
        _row_stride(xBC_PBTC),
        0,
        0,
        _row_stride(xBC_PBTC),
        _row_stride(raw_PBTH),
        rows,
        T,
        chunks,
        **sizes,
        BACKWARD=False,
        **_schedule(sizes, 3, 128),
    )
    _outputs_kernel[(P * rows * chunks * n_heads,)](
        xBC_PBTC,
        z_PBTX,
        D_PH,
        documents_BT,
        dt_PBHT,
        log_PBHT,
        states,
        out_PBTX,
        _row_stride(xBC_PBTC),
        _row_stride(z_PBTX),
        _row_stride(out_PBTX),
        rows,
        T,
        chunks,
        **sizes,
        **_schedule(sizes, 2),
    )
    return dt_PBHT, log_PBHT, states


def ssd_backward(
    d_out_PBTX: Tensor,
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
    saved: tuple[Tensor, ...],
    d_z_PBTX: Tensor,
    d_raw_PBTH: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`ssd`; those of z and raw are written into the last two arguments.

    Returns:
        Gradients of xBC (contiguous, work dtype), dt_bias, A_log and D (fp32).
    """
    P, rows, T, X = z_PBTX.shape
    sizes = _sizes(n_heads, n_groups, d_state, X // n_heads, xBC_PBTC.dtype)
    dt_PBHT, log_PBHT, states = saved
    chunks = states.shape[3]
    d_xBC_PBTC, d_states = torch.empty_like(xBC_PBTC), torch.empty_like(states)
    sums = torch.empty(3, P, n_heads, rows * chunks, device=z_PBTX.device, dtype=torch.float32)
    states_kernel[(P * rows * n_heads * triton.cdiv(sizes["K"], sizes["BLOCK_K"]),)](
        d_out_PBTX,
        z_PBTX,
        d_z_PBTX,
        d_xBC_PBTC,
        xBC_PBTC[..., X + n_groups * d_state :],
        raw_PBTH,
        dt_bias_PH,
        A_log_PH,
        documents_BT,
        dt_PBHT,
        log_PBHT,
        d_states,
        _row_stride(d_out_PBTX),
        _row_stride(z_PBTX),
        _row_stride(d_z_PBTX),
        _row_stride(xBC_PBTC),
        _row_stride(raw_PBTH),
        rows,
        T,
        chunks,
        **sizes,
        BACKWARD=True,
        **_schedule(sizes, 3, 128),
    )
    # Before d_x takes the place of dy.
    group_gradients_kernel[(P * rows * chunks * n_groups,)](
        xBC_PBTC,
        documents_BT,
        dt_PBHT,
        log_PBHT,
        states,
        d_states,
        d_xBC_PBTC,
        _row_stride(xBC_PBTC),
        rows,
        T,
        chunks,
        **sizes,
        **_schedule(sizes, 2),
    )
    head_gradients_kernel[(P * rows * chunks * n_heads,)](
        xBC_PBTC,
        A_log_PH,
        D_PH,
        documents_BT,
        dt_PBHT,
        log_PBHT,
        states,
        d_states,
        d_xBC_PBTC,
        d_z_PBTX,
        d_raw_PBTH,
        sums,
        _row_stride(xBC_PBTC),
        _row_stride(d_z_PBTX),
        _row_stride(d_raw_PBTH),
        rows,
        T,
        chunks,
        sums.stride(0),
        **sizes,
        **_schedule(sizes, 2),
    )
    d_dt_bias_PH, d_A_log_PH, d_D_PH = sums.sum(-1)
    return d_xBC_PBTC, d_dt_bias_PH, d_A_log_PH, d_D_PH


def _sizes(n_heads: int, n_groups: int, d_state: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of all kernels. A bf16 chunk has the 64 rows of a warp group's product, and channels are
    taken 32 at a time: what a program then holds fits its registers up to d_state = 64, and from there with
    twice the warps. Blocks narrower than 32, or one pipeline stage, have Triton 3.6 read shared memory out of
    bounds on sm_90."""
    return {
        "H": n_heads,
        "G": n_groups,
        "S": d_state,
        "K": head_dim,
        "L": 64 if dtype == torch.bfloat16 else 32,
        "BLOCK_S": max(32, triton.next_power_of_2(d_state)),
        "BLOCK_K": 32,
    }


def _schedule(sizes: dict[str, int], n_stages: int, most_states: int = 64) -> dict[str, int]:
    """Launch options; ``most_states``: what four warps hold."""
    return {"num_warps": 4 if sizes["BLOCK_S"] <= most_states else 8, "num_stages": n_stages}


def _row_stride(view: Tensor) -> int:
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

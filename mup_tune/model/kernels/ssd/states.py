"""The walk over the chunks of a row, which leaves the scan's state, or its gradient, at every chunk's edge.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import LOG2E


@triton.jit
def _softplus(u_L):
    v_L = tl.exp2(-tl.abs(u_L) * LOG2E)
    # log(1 + v) loses a small v: its series there.
    series_L = v_L * (1 - v_L * (0.5 - v_L * (1 / 3 - v_L * (0.25 - v_L * 0.2))))
    return tl.maximum(u_L, 0.0) + tl.where(v_L < 0.0625, series_L, tl.log(1 + v_L))


@triton.jit
def load_documents(chunk, documents_ptr, T, L: tl.constexpr):
    """A chunk's documents, the one before it and its last token's; the chunk may lie outside the row."""
    t_L = chunk * L + tl.arange(0, L)
    documents_L = tl.load(documents_ptr + t_L, mask=(t_L >= 0) & (t_L < T), other=-1)
    end = tl.minimum(chunk * L + L, T)
    inside = (chunk >= 0) & (end > chunk * L)
    before = tl.load(documents_ptr + chunk * L - 1, mask=inside & (chunk > 0), other=-1)
    last = tl.load(documents_ptr + end - 1, mask=inside, other=-1)
    return documents_L, before, last


@triton.jit
def load_tokens(ptr, stride_t, chunk, T, L: tl.constexpr):
    """One number of every token of a chunk, which may lie outside the row."""
    t_L = chunk * L + tl.arange(0, L)
    return tl.load(
        ptr + tl.cast(chunk, tl.int64) * L * stride_t + tl.arange(0, L) * stride_t,
        mask=(t_L >= 0) & (t_L < T),
        other=0.0,
    )


@triton.jit
def decay(chunk, documents_ptr, dt_ptr, log_ptr, T, L: tl.constexpr):
    """Decay from token j to token i of a chunk, times dt_j; 0 where j is later or in another document.

    It loads what it needs: loads hit the cache, where masks and vectors kept for a second use would cost
    registers.
    """
    l_L = tl.arange(0, L)
    documents_L, _, _ = load_documents(chunk, documents_ptr, T, L)
    dt_L = load_tokens(dt_ptr, 1, chunk, T, L)
    log_L = load_tokens(log_ptr, 1, chunk, T, L)
    seen_LL = (l_L[:, None] >= l_L[None, :]) & (documents_L[:, None] == documents_L[None, :])
    return tl.where(seen_LL, tl.exp2(log_L[:, None] - log_L[None, :]) * dt_L[None, :], 0.0)


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def states_kernel(
    value_ptr, z_ptr, d_z_ptr, dy_ptr, key_ptr, raw_ptr, dt_bias_ptr, A_log_ptr, documents_ptr, dt_ptr, log_ptr,
    states_ptr, value_stride_t, z_stride_t, d_z_stride_t, key_stride_t, raw_stride_t, B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """One program walks one head (or a slice of its channels) of one row.

    Forward it leaves the state at every chunk's start: value is x, key is B. It also leaves dt, and log, the
    running sum of log2 decays in a chunk, [P, B, H, T] both. Pointers to z, d_z and dy are None.

    Backward it leaves the gradient of the state at every chunk's end: value is d_out, key is C. It also
    leaves dy = d_out · silu(z) in columns of d_xBC, and d_z short of its factor y. Pointers to dt and to what
    it is made of are None.
    """
    SLICES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    head, row, part = (pid // SLICES) % H, pid // (SLICES * H), pid % SLICES
    p, first_row = row // B, row.to(tl.int64) * T
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), part * BLOCK_K + tl.arange(0, BLOCK_K)
    key_ptr += first_row * key_stride_t + head // (H // G) * S
    value_ptr += first_row * value_stride_t + head * K
    if BACKWARD:
        z_ptr += first_row * z_stride_t + head * K
        d_z_ptr += first_row * d_z_stride_t + head * K
        dy_ptr += first_row * key_stride_t + head * K
    else:
        raw_ptr += first_row * raw_stride_t + head
        dt_ptr += (row.to(tl.int64) * H + head) * T
        bias = tl.load(dt_bias_ptr + p * H + head)
        rate = -tl.exp(tl.load(A_log_ptr + p * H + head)) * LOG2E
    log_ptr += (row.to(tl.int64) * H + head) * T
    documents_ptr += (row % B).to(tl.int64) * T
    states_ptr += (row.to(tl.int64) * H + head) * n_chunks * (S * K)
    state_at_SK = s_S[:, None] * K + k_K[None, :]
    in_state_SK = (s_S < S)[:, None] & (k_K < K)[None, :]

    state_SK = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    # Small loads are made one chunk ahead: the pipeliner leaves them where they are.
    chunk = n_chunks - 1 if BACKWARD else n_chunks * 0
    step_L = load_tokens(log_ptr, 1, chunk, T, L) if BACKWARD else load_tokens(raw_ptr, raw_stride_t, chunk, T, L)
    documents_L, before, last = load_documents(chunk, documents_ptr, T, L)
    for i in range(n_chunks):
        chunk = n_chunks - 1 - i if BACKWARD else i
        first_token = tl.cast(chunk, tl.int64) * L
        in_row_L = l_L < T - chunk * L
        key_at_LS = l_L[:, None] * key_stride_t + s_S[None, :]
        in_key_LS = in_row_L[:, None] & (s_S < S)[None, :]
        key_LS = tl.load(key_ptr + first_token * key_stride_t + key_at_LS, mask=in_key_LS, other=0.0)
        value_at_LK = l_L[:, None] * value_stride_t + k_K[None, :]
        in_head_LK = in_row_L[:, None] & (k_K < K)[None, :]
        value_LK = tl.load(value_ptr + first_token * value_stride_t + value_at_LK, mask=in_head_LK, other=0.0)
        if BACKWARD:
            z_at_LK = l_L[:, None] * z_stride_t + k_K[None, :]
            z_LK = tl.load(z_ptr + first_token * z_stride_t + z_at_LK, mask=in_head_LK, other=0.0).to(tl.float32)
            gate_LK, d_out_LK = tl.sigmoid(z_LK), value_LK.to(tl.float32)
            d_z_LK = (d_out_LK * (gate_LK * (1 + z_LK * (1 - gate_LK)))).to(value_ptr.dtype.element_ty)
            d_z_at_LK = l_L[:, None] * d_z_stride_t + k_K[None, :]
            tl.store(d_z_ptr + first_token * d_z_stride_t + d_z_at_LK, d_z_LK, mask=in_head_LK)
            value_LK = (d_out_LK * (z_LK * gate_LK)).to(value_ptr.dtype.element_ty)
            dy_at_LK = l_L[:, None] * key_stride_t + k_K[None, :]
            tl.store(dy_ptr + first_token * key_stride_t + dy_at_LK, value_LK, mask=in_head_LK)
        following = chunk - 1 if BACKWARD else chunk + 1
        next_step_L = (
            load_tokens(log_ptr, 1, following, T, L)
            if BACKWARD
            else load_tokens(raw_ptr, raw_stride_t, following, T, L)
        )
        next_documents_L, next_before, next_last = load_documents(following, documents_ptr, T, L)
        state_ptr = states_ptr + tl.cast(chunk, tl.int64) * (S * K)
        tl.store(state_ptr + state_at_SK, state_SK.to(states_ptr.dtype.element_ty), mask=in_state_SK)

        if BACKWARD:
            log_L = step_L
            total = tl.min(log_L, 0)
            weight_L = tl.where(documents_L == before, tl.exp2(log_L), 0.0)
        else:
            dt_L = tl.where(in_row_L, _softplus(step_L.to(tl.float32) + bias), 0.0)
            log_L = tl.cumsum(dt_L * rate, 0)
            total = tl.min(log_L, 0)
            weight_L = tl.where(documents_L == last, tl.exp2(total - log_L) * dt_L, 0.0)
            if part == 0:
                tl.store(dt_ptr + first_token + l_L, dt_L, mask=in_row_L)
                tl.store(log_ptr + first_token + l_L, log_L, mask=in_row_L)
        kept = tl.where(before == last, tl.exp2(total), 0.0)
        key_LS = (key_LS.to(tl.float32) * weight_L[:, None]).to(key_ptr.dtype.element_ty)
        state_SK = tl.dot(tl.trans(key_LS), value_LK, state_SK * kept, input_precision="ieee")
        step_L, documents_L, before, last = next_step_L, next_documents_L, next_before, next_last


def plan_sizes(n_heads: int, n_groups: int, d_state: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of all kernels.

    A bf16 chunk has the 64 rows of a warp group's product. Channels are taken 32 at a time: what a program
    then holds fits its registers up to d_state = 64, and from there with twice the warps. Blocks narrower
    than 32, or one pipeline stage, have Triton 3.6 read shared memory out of bounds on sm_90.
    """
    return {
        "H": n_heads,
        "G": n_groups,
        "S": d_state,
        "K": head_dim,
        "L": 64 if dtype == torch.bfloat16 else 32,
        "BLOCK_S": max(32, triton.next_power_of_2(d_state)),
        "BLOCK_K": 32,
    }


def plan_schedule(sizes: dict[str, int], n_stages: int, most_states: int = 64) -> dict[str, int]:
    """Launch options; ``most_states``: what four warps hold."""
    return {"num_warps": 4 if sizes["BLOCK_S"] <= most_states else 8, "num_stages": n_stages}


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

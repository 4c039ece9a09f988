"""The walk over the chunks of a row, which leaves the scan's state, or its gradient, at every chunk's edge; see ssd.py.

Shape suffixes: P members, B rows, T tokens of a row, C convolution channels (x, then B, then C), X = H · K, H
heads, K channels of a head, G groups, S d_state, c chunks, L tokens of a chunk. Heads of a group are
adjacent.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(u_L):
    v_L = tl.exp2(-tl.abs(u_L) * LOG2E)
    # log(1 + v) loses a small v: its series there.
    series_L = v_L * (1 - v_L * (0.5 - v_L * (1 / 3 - v_L * (0.25 - v_L * 0.2))))
    return tl.maximum(u_L, 0.0) + tl.where(v_L < 0.0625, series_L, tl.log(1 + v_L))


@triton.jit
def load_documents(chunk, documents_ptr, T, L: tl.constexpr):
    """A chunk's documents, the one before it and that of its last token; the chunk may lie outside the row."""
    t_L = chunk * L + tl.arange(0, L)
    documents_L = tl.load(documents_ptr + t_L, mask=(t_L >= 0) & (t_L < T), other=-1)
    end = tl.minimum(chunk * L + L, T)
    inside = (chunk >= 0) & (end > chunk * L)
    before = tl.load(documents_ptr + chunk * L - 1, mask=inside & (chunk > 0), other=-1)
    last = tl.load(documents_ptr + end - 1, mask=inside, other=-1)
    return documents_L, before, last


@triton.jit
def load_tokens(ptr, stride, chunk, T, L: tl.constexpr):
    """One number of every token of a chunk, which may lie outside the row."""
    t_L = chunk * L + tl.arange(0, L)
    return tl.load(
        ptr + tl.cast(chunk, tl.int64) * L * stride + tl.arange(0, L) * stride, mask=(t_L >= 0) & (t_L < T), other=0.0
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


@triton.jit(do_not_specialize=["n_rows", "T", "n_chunks"])
def states_kernel(
    value_ptr,  # x; backward: d_out
    z_ptr,  # this and the next two: backward only
    d_z_ptr,  # left: d_out · silu'(z), short of the factor y
    dy_ptr,  # left: d_out · silu(z), in columns of d_xBC
    key_ptr,  # B; backward: C
    raw_ptr,  # forward only
    dt_bias_ptr,
    A_log_ptr,
    documents_ptr,
    dt_ptr,  # [P, B, H, T], written by the forward pass
    log_ptr,  # [P, B, H, T]: running sum of log2 decays in a chunk; likewise
    states_ptr,  # [P, B, H, c, S, K]
    value_stride,
    z_stride,
    d_z_stride,
    key_stride,
    raw_stride,
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
    BACKWARD: tl.constexpr,
):
    """One program walks one head (or a slice of its channels) of one row.

    Forward it leaves the state at every chunk's start, backward the gradient of the state at every chunk's
    end.
    """
    SLICES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    head, row, part = (pid // SLICES) % H, pid // (SLICES * H), pid % SLICES
    p, first_row = row // n_rows, row.to(tl.int64) * T
    l_L, s_S, k_K = tl.arange(0, L), tl.arange(0, BLOCK_S), part * BLOCK_K + tl.arange(0, BLOCK_K)
    key_ptr += first_row * key_stride + head // (H // G) * S
    value_ptr += first_row * value_stride + head * K
    z_ptr += first_row * z_stride + head * K
    d_z_ptr += first_row * d_z_stride + head * K
    dy_ptr += first_row * key_stride + head * K
    raw_ptr += first_row * raw_stride + head
    dt_ptr += (row.to(tl.int64) * H + head) * T
    log_ptr += (row.to(tl.int64) * H + head) * T
    documents_ptr += (row % n_rows).to(tl.int64) * T
    states_ptr += (row.to(tl.int64) * H + head) * n_chunks * (S * K)
    bias = tl.load(dt_bias_ptr + p * H + head)
    rate = -tl.exp(tl.load(A_log_ptr + p * H + head)) * LOG2E
    state_at_SK = s_S[:, None] * K + k_K[None, :]
    in_state_SK = (s_S < S)[:, None] & (k_K < K)[None, :]

    state_SK = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    # Small loads are made one chunk ahead: the pipeliner leaves them where they are.
    chunk = n_chunks - 1 if BACKWARD else n_chunks * 0
    step_L = load_tokens(log_ptr, 1, chunk, T, L) if BACKWARD else load_tokens(raw_ptr, raw_stride, chunk, T, L)
    documents_L, before, last = load_documents(chunk, documents_ptr, T, L)
    for i in range(n_chunks):
        chunk = n_chunks - 1 - i if BACKWARD else i
        first_token = tl.cast(chunk, tl.int64) * L
        in_row_L = l_L < T - chunk * L
        key_at_LS = l_L[:, None] * key_stride + s_S[None, :]
        in_key_LS = in_row_L[:, None] & (s_S < S)[None, :]
        key_LS = tl.load(key_ptr + first_token * key_stride + key_at_LS, mask=in_key_LS, other=0.0)
        value_at_LK = l_L[:, None] * value_stride + k_K[None, :]
        in_head_LK = in_row_L[:, None] & (k_K < K)[None, :]
        value_LK = tl.load(value_ptr + first_token * value_stride + value_at_LK, mask=in_head_LK, other=0.0)
        if BACKWARD:
            z_at_LK = l_L[:, None] * z_stride + k_K[None, :]
            z_LK = tl.load(z_ptr + first_token * z_stride + z_at_LK, mask=in_head_LK, other=0.0).to(tl.float32)
            gate_LK, d_out_LK = tl.sigmoid(z_LK), value_LK.to(tl.float32)
            d_z_LK = (d_out_LK * (gate_LK * (1 + z_LK * (1 - gate_LK)))).to(value_ptr.dtype.element_ty)
            d_z_at_LK = l_L[:, None] * d_z_stride + k_K[None, :]
            tl.store(d_z_ptr + first_token * d_z_stride + d_z_at_LK, d_z_LK, mask=in_head_LK)
            value_LK = (d_out_LK * (z_LK * gate_LK)).to(value_ptr.dtype.element_ty)
            dy_at_LK = l_L[:, None] * key_stride + k_K[None, :]
            tl.store(dy_ptr + first_token * key_stride + dy_at_LK, value_LK, mask=in_head_LK)
        following = chunk - 1 if BACKWARD else chunk + 1
        next_step_L = (
            load_tokens(log_ptr, 1, following, T, L) if BACKWARD else load_tokens(raw_ptr, raw_stride, following, T, L)
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

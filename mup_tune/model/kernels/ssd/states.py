"""The walk over the chunks of a row, which leaves the scan's state, or its gradient, at every chunk's edge.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mup_tune.model.kernels import LOG2E, sigmoid
from mup_tune.model.kernels.ssd.chunks import crosses, from_start, load_tile, load_tokens, store_tile, to_end


@triton.jit
def _softplus(u_L):
    v_L = tl.exp2(-tl.abs(u_L) * LOG2E)
    # log(1 + v) loses a small v: its series there.
    series_L = v_L * (1 - v_L * (0.5 - v_L * (1 / 3 - v_L * (0.25 - v_L * 0.2))))
    return tl.maximum(u_L, 0.0) + tl.where(v_L < 0.0625, series_L, tl.log(1 + v_L))


@triton.jit(do_not_specialize=["B", "T", "n_chunks"])
def states_kernel(
    value_ptr, z_ptr, d_z_ptr, dy_ptr, direction_ptr, raw_ptr, dt_bias_ptr, A_log_ptr, spans_ptr, dt_ptr, log_ptr,
    key_ptr, states_ptr, value_stride_t, z_stride_t, d_z_stride_t, dy_stride_t, direction_stride_t, raw_stride_t,
    B, T, n_chunks,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """One program walks one head (or a slice of its channels) of one row.

    Forward it leaves the state at every chunk's start: value is x, direction is B. It also leaves dt, then
    log, the running sum of log2 decays in a chunk, and key, log less log2(dt), each [P, B, H, T]. Pointers to
    z, d_z and dy are None.

    Backward it leaves the gradient of the state at every chunk's end: value is d_out, direction is C. It also
    leaves dy = d_out · silu(z), and d_z short of its factor y. Pointers to dt, key and to what they are made
    of are None.
    """
    SLICES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    pid = tl.program_id(0)
    head, row, part = (pid // SLICES) % H, pid // (SLICES * H), pid % SLICES
    p, first_row = row // B, row.to(tl.int64) * T
    l_L, k0 = tl.arange(0, L), part * BLOCK_K
    direction_ptr += first_row * direction_stride_t + head // (H // G) * S
    value_ptr += first_row * value_stride_t + head * K + k0
    if BACKWARD:
        z_ptr += first_row * z_stride_t + head * K + k0
        d_z_ptr += first_row * d_z_stride_t + head * K + k0
        dy_ptr += first_row * dy_stride_t + head * K + k0
    else:
        raw_ptr += first_row * raw_stride_t + head
        dt_ptr += (row.to(tl.int64) * H + head) * T
        key_ptr += (row.to(tl.int64) * H + head) * T
        bias = tl.load(dt_bias_ptr + p * H + head)
        rate = -tl.exp(tl.load(A_log_ptr + p * H + head)) * LOG2E
    log_ptr += (row.to(tl.int64) * H + head) * T
    start_ptr = spans_ptr + (row % B).to(tl.int64) * T
    edges_ptr = start_ptr if BACKWARD else start_ptr + B * T
    steps_ptr = log_ptr if BACKWARD else raw_ptr
    steps_stride_t = 1 if BACKWARD else raw_stride_t
    states_ptr += (row.to(tl.int64) * H + head) * n_chunks * (S * K) + k0

    state_SK = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    # Small loads are made one chunk ahead: the pipeliner leaves them where they are.
    chunk = n_chunks - 1 if BACKWARD else n_chunks * 0
    step_L = load_tokens(steps_ptr, steps_stride_t, chunk, T, L)
    edges_L, passes = load_tokens(edges_ptr, 1, chunk, T, L), crosses(start_ptr, chunk, T, L)
    for i in range(n_chunks):
        chunk = n_chunks - 1 - i if BACKWARD else i
        first_token, left = tl.cast(chunk, tl.int64) * L, T - chunk * L
        direction_at = direction_ptr + first_token * direction_stride_t
        direction_LS = load_tile(direction_at, direction_stride_t, left, S, L, BLOCK_S, EVEN)
        value_LK = load_tile(value_ptr + first_token * value_stride_t, value_stride_t, left, K - k0, L, BLOCK_K, EVEN)
        if BACKWARD:
            z_at = z_ptr + first_token * z_stride_t
            z_LK = load_tile(z_at, z_stride_t, left, K - k0, L, BLOCK_K, EVEN).to(tl.float32)
            gate_LK, d_out_LK = sigmoid(z_LK), value_LK.to(tl.float32)
            d_z_LK = d_out_LK * (gate_LK * (1 + z_LK * (1 - gate_LK)))
            store_tile(d_z_ptr + first_token * d_z_stride_t, d_z_stride_t, left, K - k0, d_z_LK, L, BLOCK_K, EVEN)
            value_LK = (d_out_LK * (z_LK * gate_LK)).to(value_LK.dtype)
            store_tile(dy_ptr + first_token * dy_stride_t, dy_stride_t, left, K - k0, value_LK, L, BLOCK_K, EVEN)
        following = chunk - 1 if BACKWARD else chunk + 1
        next_step_L = load_tokens(steps_ptr, steps_stride_t, following, T, L)
        next_edges_L, next_passes = load_tokens(edges_ptr, 1, following, T, L), crosses(start_ptr, following, T, L)
        store_tile(states_ptr + tl.cast(chunk, tl.int64) * (S * K), K, S, K - k0, state_SK, BLOCK_S, BLOCK_K, EVEN)

        if BACKWARD:
            log_L = step_L
            total = tl.min(log_L, 0)
            weight_L = from_start(edges_L, log_L, chunk, L)
        else:
            dt_L = tl.where(l_L < left, _softplus(step_L.to(tl.float32) + bias), 0.0)
            log_L = tl.cumsum(dt_L * rate, 0)
            total = tl.min(log_L, 0)
            key_L = log_L - tl.log2(dt_L)  # dt may be 0: the key is then infinite
            weight_L = to_end(edges_L, key_L, total, chunk, T, L)
            if part == 0:
                tl.store(dt_ptr + first_token + l_L, dt_L, mask=l_L < left)
                tl.store(log_ptr + first_token + l_L, log_L, mask=l_L < left)
                tl.store(key_ptr + first_token + l_L, key_L, mask=l_L < left)
        kept = tl.where(passes, tl.exp2(total), 0.0)
        weighted_LS = (direction_LS.to(tl.float32) * weight_L[:, None]).to(direction_LS.dtype)
        state_SK = tl.dot(tl.trans(weighted_LS), value_LK, state_SK * kept, input_precision="ieee")
        step_L, edges_L, passes = next_step_L, next_edges_L, next_passes

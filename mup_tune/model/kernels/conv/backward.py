"""Backward pass of the convolution: the gradients of inputs, weights and bias in one walk.

It walks as the forward pass does. Beside the inputs of the taps - 1 tokens before, a program carries those
tokens' unfinished input gradients. It goes on taps - 1 tokens past its run, to finish the gradients of the
run's last ones.

Legend: :mod:`mup_tune.model.kernels`.
"""

# Triton builds tuples by addition only.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import Parts, strides
from mup_tune.model.kernels.conv.forward import (
    activate,
    load_before,
    load_documents,
    load_parameters,
    load_tokens,
    place,
    plan_runs,
    seen,
    shift,
)

CHUNK = 4  # tokens whose loads are under way together


def conv_silu_backward(
    d_y_PBTC: Tensor,
    x_PBTC: Tensor,
    weight_PCk: Tensor,
    bias_PC: Tensor,
    documents_BT: Tensor,
    d_x_PBTC: Tensor,
    zeroed_PBTz: Tensor,
    weight_parts: Parts,
    bias_parts: Parts,
) -> None:
    """Gradients of :func:`~mup_tune.model.kernels.conv.conv_silu`; x's is written to ``d_x_PBTC``.

    Args:
        d_y_PBTC: work dtype; it, ``x_PBTC`` and ``d_x_PBTC`` may be column slices of wider buffers.
        zeroed_PBTz: more columns of ``d_x_PBTC``'s buffer, perhaps none, which get zeros in the same launch.
        weight_parts: of width C · k.
        bias_parts: of width C.
    """
    (P, B, T, C), taps = x_PBTC.shape, weight_PCk.shape[2]
    channels, length, runs = plan_runs(x_PBTC.shape)
    _conv_silu_backward_kernel[(triton.cdiv(C, channels) * runs * B, P)](
        d_y_ptr=d_y_PBTC, x_ptr=x_PBTC, weight_ptr=weight_PCk, bias_ptr=bias_PC, documents_ptr=documents_BT,
        d_x_ptr=d_x_PBTC, zeroed_ptr=zeroed_PBTz,
        weight_parts_ptr=weight_parts(B * runs), bias_parts_ptr=bias_parts(B * runs),
        B=B, T=T, C=C, runs=runs, **strides("pbt", d_y=d_y_PBTC, x=x_PBTC, d_x=d_x_PBTC),
        TAPS=taps, LENGTH=length, CHUNK=CHUNK, CHANNELS=channels, ZEROED=zeroed_PBTz.shape[3],
        EVEN=T % length == 0 and C % channels == 0, num_warps=1,
        maxnreg=128,  # 16 programs an SM; the compiler would take 255 and leave room for 8
    )  # fmt: skip


@triton.jit
def _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS: tl.constexpr, MASKED: tl.constexpr):
    """One token further.

    Args:
        past_x, past_document, past_d_x: of the TAPS - 1 tokens before, the nearest first.

    Returns:
        the gradient by the pre-activation; x by lag, 0 where it is another document's; the input gradients by
        lag with this token's part added, so that the last one is finished.
    """
    seen_x = seen(x, document, past_x, past_document, TAPS, MASKED)
    pre, on = activate(seen_x, weights, bias, TAPS)
    d_pre = d_y * (on + pre * on * (1.0 - on))
    d_x = (weights[0] * d_pre,)
    for lag in tl.static_range(1, TAPS):
        seen_d = tl.where(document == past_document[lag - 1], d_pre, 0.0) if MASKED else d_pre
        d_x = d_x + (past_d_x[lag - 1] + weights[lag] * seen_d,)
    return d_pre, seen_x, d_x


@triton.jit
def _backward_chunk(
    xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr, d_x_stride_t,
    offset, left, inside, TAPS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Stores the gradients that a chunk finishes; returns the unfinished ones, and the sums with its own."""
    for i in tl.static_range(CHUNK):
        x, d_y, document = xs[i].to(tl.float32), d_ys[i].to(tl.float32), documents[i]
        d_pre, seen_x, d_x = _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS, MASKED)
        d_bias += d_pre
        new_sums = ()
        for lag in tl.static_range(TAPS):
            new_sums = new_sums + (sums[lag] + d_pre * seen_x[lag],)
        sums = new_sums
        own = offset + i >= TAPS - 1
        if not EVEN:
            own = own & (i - (TAPS - 1) < left)
        tl.store(d_x_ptr + i * d_x_stride_t, d_x[TAPS - 1], inside & own)
        past_x, past_d_x = shift(x, past_x, TAPS), shift(d_x[0], d_x[1:], TAPS)
        past_document = shift(document, past_document, TAPS)
    return past_d_x, sums, d_bias


@triton.jit
def _conv_silu_backward_kernel(
    d_y_ptr, x_ptr, weight_ptr, bias_ptr, documents_ptr, d_x_ptr, zeroed_ptr, weight_parts_ptr, bias_parts_ptr,
    B, T, C, runs, d_y_stride_p, d_y_stride_b, d_y_stride_t, x_stride_p, x_stride_b, x_stride_t,
    d_x_stride_p, d_x_stride_b, d_x_stride_t, TAPS: tl.constexpr, LENGTH: tl.constexpr, CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr, ZEROED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    run, b, p, channels = place(C, runs, CHANNELS)
    weights, bias = load_parameters(weight_ptr, bias_ptr, p, channels, C, TAPS)
    inside, start = channels < C, run * LENGTH
    first_token = start.to(tl.int64)
    d_y_ptr += p * d_y_stride_p + b.to(tl.int64) * d_y_stride_b + first_token * d_y_stride_t + channels
    x_ptr += p * x_stride_p + b.to(tl.int64) * x_stride_b + first_token * x_stride_t + channels
    row_at = p * d_x_stride_p + b.to(tl.int64) * d_x_stride_b
    if ZEROED > 0 and tl.program_id(0) % tl.cdiv(C, CHANNELS) == 0:
        columns = tl.arange(0, triton.next_power_of_2(ZEROED))
        for offset in range(0, LENGTH, 32):
            tokens = start + offset + tl.arange(0, 32)
            zeroed_at = row_at + tokens.to(tl.int64)[:, None] * d_x_stride_t + columns[None, :]
            tl.store(zeroed_ptr + zeroed_at, 0.0, (tokens < T)[:, None] & (columns < ZEROED)[None, :])
    # What a step finishes is the gradient of the token TAPS - 1 before.
    d_x_ptr += row_at + (first_token - (TAPS - 1)) * d_x_stride_t + channels
    documents_ptr += b.to(tl.int64) * T
    past_x, past_document = load_before(x_ptr, x_stride_t, documents_ptr, start, inside, TAPS)
    documents_ptr += start
    past_d_x, sums, d_bias = (), (), tl.zeros([CHANNELS], tl.float32)
    for _ in tl.static_range(1, TAPS):
        past_d_x = past_d_x + (tl.zeros([CHANNELS], tl.float32),)
    for _ in tl.static_range(TAPS):
        sums = sums + (tl.zeros([CHANNELS], tl.float32),)

    for offset in range(0, LENGTH, CHUNK):
        left = T - start - offset
        # all before the first store, which the compiler moves no load over
        xs = load_tokens(x_ptr, x_stride_t, left, inside, CHUNK, EVEN)
        d_ys = load_tokens(d_y_ptr, d_y_stride_t, left, inside, CHUNK, EVEN)
        documents = load_documents(documents_ptr + offset, left, CHUNK)
        first = documents[0] if TAPS == 1 else past_document[TAPS - 2]
        # fmt: off
        if first == documents[CHUNK - 1]:  # they never decrease
            past_d_x, sums, d_bias = _backward_chunk(
                xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr,
                d_x_stride_t, offset, left, inside, TAPS, CHUNK, EVEN, MASKED=False)
        else:
            past_d_x, sums, d_bias = _backward_chunk(
                xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr,
                d_x_stride_t, offset, left, inside, TAPS, CHUNK, EVEN, MASKED=True)
        # fmt: on
        for i in tl.static_range(CHUNK):
            past_x = shift(xs[i].to(tl.float32), past_x, TAPS)
            past_document = shift(documents[i], past_document, TAPS)
        x_ptr += CHUNK * x_stride_t
        d_y_ptr += CHUNK * d_y_stride_t
        d_x_ptr += CHUNK * d_x_stride_t

    left = T - start - LENGTH
    documents_ptr += LENGTH
    for i in tl.static_range(TAPS - 1):
        x = tl.load(x_ptr + i * x_stride_t, inside & (i < left), other=0.0).to(tl.float32)
        d_y = tl.load(d_y_ptr + i * d_y_stride_t, inside & (i < left), other=0.0).to(tl.float32)
        document = tl.load(documents_ptr + i, i < left, other=-2)
        _, _, d_x = _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS, MASKED=True)
        tl.store(d_x_ptr + i * d_x_stride_t, d_x[TAPS - 1], inside & (i - (TAPS - 1) < left))
        past_x, past_d_x = shift(x, past_x, TAPS), shift(d_x[0], d_x[1:], TAPS)
        past_document = shift(document, past_document, TAPS)

    part_at = ((p * B + b) * runs + run) * C + channels
    for lag in tl.static_range(TAPS):
        tl.store(weight_parts_ptr + part_at * TAPS + (TAPS - 1 - lag), sums[lag], inside)
    tl.store(bias_parts_ptr + part_at, d_bias, inside)

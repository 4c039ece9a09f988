"""The causal depthwise convolution of Mamba-2 with bias and SiLU: forward, and what backward shares.

A program is one warp that walks along a run of tokens, so that documents are scalars: where no document
starts, which a chunk of tokens asks once, nothing is masked. It carries the inputs of the taps - 1 tokens
before in registers, so nothing but the inputs and the result meets memory.

Legend: :mod:`mup_tune.model.kernels`.
"""

# Triton builds tuples by addition only.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import sigmoid, strides

CHANNELS = 128  # of a program, 4 a thread: 8 would double the registers, which hold 15 values a channel backward
CHUNK = 8  # tokens whose loads are under way together
# Tokens of a run. Backward, each repeats taps - 1 tokens and leaves parts of the weights' gradients: the
# longest that leaves this many programs, twice what a Hopper GPU runs at once.
RUNS = (128, 64, 32)
PROGRAMS = 4096


def plan_runs(size: torch.Size) -> tuple[int, int, int]:
    """Channels of a program, tokens of a run, and runs of a row."""
    P, B, T, C = size
    channels = min(triton.next_power_of_2(C), CHANNELS)
    walks = P * B * triton.cdiv(C, channels)
    length = next((each for each in RUNS if walks * triton.cdiv(T, each) >= PROGRAMS), RUNS[-1])
    return channels, length, triton.cdiv(T, length)


def conv_silu(x_PBTC: Tensor, weight_PCk: Tensor, bias_PC: Tensor, documents_BT: Tensor) -> Tensor:
    """``silu(causal_conv(x) + bias)`` that does not look across a document's start (arXiv 2405.21060, §7).

    Args:
        x_PBTC: work dtype; may be a column slice of a wider buffer.
        weight_PCk: fp32, contiguous, as is ``bias_PC``; the last tap is the token itself.
        documents_BT: int32, contiguous, non-decreasing within a row.

    Returns:
        [P, B, T, C], contiguous.
    """
    P, B, T, C = x_PBTC.shape
    y_PBTC = torch.empty(P, B, T, C, dtype=x_PBTC.dtype, device=x_PBTC.device)
    channels, length, runs = plan_runs(x_PBTC.shape)
    _conv_silu_kernel[(triton.cdiv(C, channels) * runs * B, P)](
        x_ptr=x_PBTC, weight_ptr=weight_PCk, bias_ptr=bias_PC, documents_ptr=documents_BT, y_ptr=y_PBTC,
        B=B, T=T, C=C, runs=runs, **strides("pbt", x=x_PBTC),
        TAPS=weight_PCk.shape[2], LENGTH=length, CHUNK=CHUNK, CHANNELS=channels,
        EVEN=T % length == 0 and C % channels == 0, num_warps=1,
    )  # fmt: skip
    return y_PBTC


@triton.jit
def place(C, runs, CHANNELS: tl.constexpr):
    """This program's run in a row, its row, its member and its channels, which change the fastest."""
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_blocks
    return program % runs, program // runs, tl.program_id(1).to(tl.int64), channels


@triton.jit
def load_parameters(weight_ptr, bias_ptr, p, channels, C, TAPS: tl.constexpr):
    """The weights by lag, [0] for the token itself, and the bias; [CHANNELS] each."""
    at, inside = p * C + channels, channels < C
    by_lag = ()
    for lag in tl.static_range(TAPS):
        by_lag = by_lag + (tl.load(weight_ptr + at * TAPS + (TAPS - 1 - lag), inside, other=0.0),)
    return by_lag, tl.load(bias_ptr + at, inside, other=0.0)


@triton.jit
def load_before(x_ptr, x_stride_t, documents_ptr, start, inside, TAPS: tl.constexpr):
    """Inputs and documents of the TAPS - 1 tokens before a run, nearest first; document -1 before a row."""
    past_x, past_document = (), ()
    for lag in tl.static_range(1, TAPS):
        there = start >= lag
        past_x = past_x + (tl.load(x_ptr - lag * x_stride_t, inside & there, other=0.0).to(tl.float32),)
        past_document = past_document + (tl.load(documents_ptr + start - lag, there, other=-1),)
    return past_x, past_document


@triton.jit
def load_tokens(ptr, stride_t, left, inside, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """A chunk's tokens, of which ``left`` are in the row."""
    values = ()
    for i in tl.static_range(CHUNK):
        if EVEN:
            values = values + (tl.load(ptr + i * stride_t),)
        else:
            values = values + (tl.load(ptr + i * stride_t, inside & (i < left), other=0.0),)
    return values


@triton.jit
def load_documents(documents_ptr, left, CHUNK: tl.constexpr):
    """A chunk's documents, -2 past the row's end."""
    documents = ()
    for i in tl.static_range(CHUNK):
        documents = documents + (tl.load(documents_ptr + i, i < left, other=-2),)
    return documents


@triton.jit
def shift(newest, past, TAPS: tl.constexpr):
    """The TAPS - 1 nearest of what is now past."""
    shifted = ()
    for lag in tl.static_range(TAPS - 1):
        shifted = shifted + ((newest if lag == 0 else past[lag - 1]),)
    return shifted


@triton.jit
def seen(x, document, past_x, past_document, TAPS: tl.constexpr, MASKED: tl.constexpr):
    """Inputs by lag, 0 where they are another document's."""
    seen_x = (x,)
    for lag in tl.static_range(1, TAPS):
        if MASKED:
            seen_x = seen_x + (tl.where(document == past_document[lag - 1], past_x[lag - 1], 0.0),)
        else:
            seen_x = seen_x + (past_x[lag - 1],)
    return seen_x


@triton.jit
def activate(seen_x, weights, bias, TAPS: tl.constexpr):
    """The pre-activation and its sigmoid."""
    pre = bias + weights[0] * seen_x[0]
    for lag in tl.static_range(1, TAPS):
        pre += weights[lag] * seen_x[lag]
    return pre, sigmoid(pre)


@triton.jit
def _forward_chunk(
    xs, documents, past_x, past_document, weights, bias, y_ptr, C, left, inside,
    TAPS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for i in tl.static_range(CHUNK):
        x = xs[i].to(tl.float32)
        pre, on = activate(seen(x, documents[i], past_x, past_document, TAPS, MASKED), weights, bias, TAPS)
        if EVEN:
            tl.store(y_ptr + i * C, pre * on)
        else:
            tl.store(y_ptr + i * C, pre * on, inside & (i < left))
        past_x, past_document = shift(x, past_x, TAPS), shift(documents[i], past_document, TAPS)


@triton.jit
def _conv_silu_kernel(
    x_ptr, weight_ptr, bias_ptr, documents_ptr, y_ptr, B, T, C, runs, x_stride_p, x_stride_b, x_stride_t,
    TAPS: tl.constexpr, LENGTH: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    run, b, p, channels = place(C, runs, CHANNELS)
    weights, bias = load_parameters(weight_ptr, bias_ptr, p, channels, C, TAPS)
    inside, start = channels < C, run * LENGTH
    x_ptr += p * x_stride_p + b.to(tl.int64) * x_stride_b + start.to(tl.int64) * x_stride_t + channels
    y_ptr += ((p * B + b) * T + start) * C + channels
    documents_ptr += b.to(tl.int64) * T
    past_x, past_document = load_before(x_ptr, x_stride_t, documents_ptr, start, inside, TAPS)
    documents_ptr += start
    for offset in range(0, LENGTH, CHUNK):
        left = T - start - offset
        xs = load_tokens(x_ptr, x_stride_t, left, inside, CHUNK, EVEN)
        documents = load_documents(documents_ptr + offset, left, CHUNK)
        first = documents[0] if TAPS == 1 else past_document[TAPS - 2]
        # fmt: off
        if first == documents[CHUNK - 1]:  # they never decrease
            _forward_chunk(xs, documents, past_x, past_document, weights, bias, y_ptr, C, left, inside,
                           TAPS, CHUNK, EVEN, MASKED=False)
        else:
            _forward_chunk(xs, documents, past_x, past_document, weights, bias, y_ptr, C, left, inside,
                           TAPS, CHUNK, EVEN, MASKED=True)
        # fmt: on
        for i in tl.static_range(CHUNK):
            past_x = shift(xs[i].to(tl.float32), past_x, TAPS)
            past_document = shift(documents[i], past_document, TAPS)
        x_ptr += CHUNK * x_stride_t
        y_ptr += CHUNK * C

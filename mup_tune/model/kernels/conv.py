"""The causal depthwise convolution of the Mamba-2 branch with its bias and SiLU (arXiv 2405.21060, §7).

Shape suffixes: P members, B rows, T tokens of a row, C channels, k kernel taps (the last one is the token itself).

Forward, a program reads a tile of tokens once per tap; all but the first reading hit the cache. Backward, a thread
walks along a run of tokens and carries what neighbours need in registers: the inputs of the taps - 1 tokens before, for
the pre-activation, and the unfinished input gradients of those tokens. So nothing but the inputs and the result meets
memory. A walk goes on taps - 1 tokens past its run, to finish the gradients of the run's last ones.
"""

# Triton builds tuples by addition only.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 128  # of a program
FORWARD_TILE = 2048  # elements of one step of a program, 16 a thread
FORWARD_STEPS = 4
BACKWARD_TILE = 512  # 4 channels a thread; 8 would double the registers, which hold 15 values a channel
CHUNK = 4  # tokens whose loads are under way together
RUN = 32  # tokens of a run: 1 member of 16k tokens x 384 channels is 384 programs, and a tenth of the work is repeated


def conv_silu(x_PBTC: Tensor, weight_PCk: Tensor, bias_PC: Tensor, documents_BT: Tensor) -> Tensor:
    """``silu(causal_conv(x) + bias)`` that does not look across a document's start; [P, B, T, C], contiguous.

    Args:
        x_PBTC: work dtype; may be a column slice of a wider buffer.
        weight_PCk: fp32, contiguous, as is ``bias_PC``.
        documents_BT: int32, contiguous, non-decreasing within a row.
    """
    P, B, T, C = x_PBTC.shape
    y_PBTC = torch.empty(P, B, T, C, dtype=x_PBTC.dtype, device=x_PBTC.device)
    channels = min(triton.next_power_of_2(C), CHANNELS)
    tokens = FORWARD_TILE // channels
    blocks = triton.cdiv(T, tokens * FORWARD_STEPS)
    _conv_silu_kernel[(triton.cdiv(C, channels) * blocks * B, P)](
        x_PBTC,
        weight_PCk,
        bias_PC,
        documents_BT,
        y_PBTC,
        B,
        T,
        C,
        blocks,
        *x_PBTC.stride()[:3],
        TAPS=weight_PCk.shape[2],
        TOKENS=tokens,
        STEPS=FORWARD_STEPS,
        CHANNELS=channels,
    )
    return y_PBTC


def conv_silu_backward(
    d_y_PBTC: Tensor,
    x_PBTC: Tensor,
    weight_PCk: Tensor,
    bias_PC: Tensor,
    documents_BT: Tensor,
    d_x_PBTC: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`conv_silu`: x's goes to ``d_x_PBTC``, the weight's [P, C, k] and bias' [P, C] are returned.

    Args:
        d_y_PBTC: work dtype; it, ``x_PBTC`` and ``d_x_PBTC`` may be column slices of wider buffers.

    Returns:
        two fp32 views, not contiguous, of one sum over programs.
    """
    (P, B, T, C), taps = x_PBTC.shape, weight_PCk.shape[2]
    channels = min(triton.next_power_of_2(C), CHANNELS)
    runs = BACKWARD_TILE // channels
    blocks = triton.cdiv(T, runs * RUN)
    partial = weight_PCk.new_empty(P, B * blocks, taps + 1, C)
    _conv_silu_backward_kernel[(triton.cdiv(C, channels) * blocks * B, P)](
        d_y_PBTC,
        x_PBTC,
        weight_PCk,
        bias_PC,
        documents_BT,
        d_x_PBTC,
        partial,
        B,
        T,
        C,
        blocks,
        *d_y_PBTC.stride()[:3],
        *x_PBTC.stride()[:3],
        *d_x_PBTC.stride()[:3],
        TAPS=taps,
        RUNS=runs,
        LENGTH=RUN,
        CHUNK=CHUNK,
        CHANNELS=channels,
        maxnreg=128,  # four programs an SM; the compiler would take 188 and leave room for two
    )
    sums = partial.sum(1)
    return sums[:, :taps].transpose(1, 2), sums[:, taps]


@triton.jit
def _place(C, blocks, CHANNELS: tl.constexpr):
    """This program's block of tokens in a row, its row, its member and its channels; neighbours differ in channels."""
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_blocks
    return program % blocks, program // blocks, tl.program_id(1).to(tl.int64), channels


@triton.jit
def _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS: tl.constexpr):
    """The weights by lag, [0] for the token itself, and the bias; [1, CHANNELS] each."""
    at, inside = (member * C + channels)[None, :], (channels < C)[None, :]
    by_lag = ()
    for lag in tl.static_range(TAPS):
        by_lag = by_lag + (tl.load(weight_ptr + at * TAPS + (TAPS - 1 - lag), inside, other=0.0),)
    return by_lag, tl.load(bias_ptr + at, inside, other=0.0)


@triton.jit
def _conv_silu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    documents_ptr,
    y_ptr,
    B,
    T,
    C,
    blocks,
    x_member,
    x_row,
    x_token,
    TAPS: tl.constexpr,
    TOKENS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    block, row, member, channels = _place(C, blocks, CHANNELS)
    weights, bias = _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS)
    inside = (channels < C)[None, :]
    x_ptr += member * x_member + row.to(tl.int64) * x_row
    documents_ptr += row.to(tl.int64) * T
    y_ptr += (member * B + row) * T * C
    for step in range(STEPS):
        tokens = (block * STEPS + step) * TOKENS + tl.arange(0, TOKENS)
        document = tl.load(documents_ptr + tokens, tokens < T, other=-1)
        pre = tl.zeros([TOKENS, CHANNELS], tl.float32) + bias
        for lag in tl.static_range(TAPS):
            seen = (tokens >= lag) & (tokens < T)
            if lag > 0:
                seen &= tl.load(documents_ptr + tokens - lag, seen, other=-1) == document
            x_at = (tokens - lag).to(tl.int64)[:, None] * x_token + channels[None, :]
            pre += weights[lag] * tl.load(x_ptr + x_at, seen[:, None] & inside, other=0.0).to(tl.float32)
        y_at = tokens.to(tl.int64)[:, None] * C + channels[None, :]
        tl.store(y_ptr + y_at, pre * tl.sigmoid(pre), (tokens < T)[:, None] & inside)


@triton.jit
def _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS: tl.constexpr):
    """One token further.

    Args:
        past_x, past_document, past_d_x: of the TAPS - 1 tokens before, the nearest first.

    Returns:
        the gradient by the pre-activation; x by lag, 0 where it is another document's; the input gradients by lag with
        this token's part added, so that the last one is finished.
    """
    pre = bias + weights[0] * x
    seen_x = (x,)
    for lag in tl.static_range(1, TAPS):
        seen_x = seen_x + (tl.where((document == past_document[lag - 1])[:, None], past_x[lag - 1], 0.0),)
        pre += weights[lag] * seen_x[lag]
    on = tl.sigmoid(pre)
    d_pre = d_y * on * (1.0 + pre * (1.0 - on))
    d_x = (weights[0] * d_pre,)
    for lag in tl.static_range(1, TAPS):
        seen_d = tl.where((document == past_document[lag - 1])[:, None], d_pre, 0.0)
        d_x = d_x + (past_d_x[lag - 1] + weights[lag] * seen_d,)
    return d_pre, seen_x, d_x


@triton.jit
def _shift(newest, past, TAPS: tl.constexpr):
    """The TAPS - 1 nearest of what is now past."""
    shifted = ()
    for lag in tl.static_range(TAPS - 1):
        shifted = shifted + ((newest if lag == 0 else past[lag - 1]),)
    return shifted


@triton.jit
def _conv_silu_backward_kernel(
    d_y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    documents_ptr,
    d_x_ptr,
    partial_ptr,
    B,
    T,
    C,
    blocks,
    d_y_member,
    d_y_row,
    d_y_token,
    x_member,
    x_row,
    x_token,
    d_x_member,
    d_x_row,
    d_x_token,
    TAPS: tl.constexpr,
    RUNS: tl.constexpr,
    LENGTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    block, row, member, channels = _place(C, blocks, CHANNELS)
    weights, bias = _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS)
    inside = (channels < C)[None, :]
    d_y_ptr += member * d_y_member + row.to(tl.int64) * d_y_row
    x_ptr += member * x_member + row.to(tl.int64) * x_row
    d_x_ptr += member * d_x_member + row.to(tl.int64) * d_x_row
    documents_ptr += row.to(tl.int64) * T
    starts = (block * RUNS + tl.arange(0, RUNS)) * LENGTH  # each run's first token
    documents_at = documents_ptr + starts
    d_y_at = d_y_ptr + starts.to(tl.int64)[:, None] * d_y_token + channels[None, :]
    x_at = x_ptr + starts.to(tl.int64)[:, None] * x_token + channels[None, :]
    # What a step finishes is the gradient of the token TAPS - 1 before.
    d_x_at = d_x_ptr + (starts - (TAPS - 1)).to(tl.int64)[:, None] * d_x_token + channels[None, :]

    past_x, past_document, past_d_x, sums = (), (), (), (tl.zeros([RUNS, CHANNELS], tl.float32),)
    for lag in tl.static_range(1, TAPS):
        there = (starts >= lag) & (starts - lag < T)
        past_x = past_x + (tl.load(x_at - lag * x_token, there[:, None] & inside, other=0.0).to(tl.float32),)
        past_document = past_document + (tl.load(documents_at - lag, there, other=-1),)
        past_d_x = past_d_x + (tl.zeros([RUNS, CHANNELS], tl.float32),)
        sums = sums + (tl.zeros([RUNS, CHANNELS], tl.float32),)
    d_bias = tl.zeros([RUNS, CHANNELS], tl.float32)

    for offset in range(0, LENGTH, CHUNK):
        xs, d_ys, documents = (), (), ()
        for i in tl.static_range(CHUNK):  # all before the first store, which the compiler moves no load over
            there = starts + (offset + i) < T
            xs = xs + (tl.load(x_at + (offset + i) * x_token, there[:, None] & inside, other=0.0),)
            d_ys = d_ys + (tl.load(d_y_at + (offset + i) * d_y_token, there[:, None] & inside, other=0.0),)
            documents = documents + (tl.load(documents_at + (offset + i), there, other=-2),)
        for i in tl.static_range(CHUNK):
            x, d_y, document = xs[i].to(tl.float32), d_ys[i].to(tl.float32), documents[i]
            d_pre, seen_x, d_x = _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS)
            d_bias += d_pre
            new_sums = ()
            for lag in tl.static_range(TAPS):
                new_sums = new_sums + (sums[lag] + d_pre * seen_x[lag],)
            sums = new_sums
            own = (starts + (offset + i - (TAPS - 1)) < T) & (offset + i >= TAPS - 1)
            tl.store(d_x_at + (offset + i) * d_x_token, d_x[TAPS - 1], own[:, None] & inside)
            past_x, past_d_x = _shift(x, past_x, TAPS), _shift(d_x[0], d_x[1:], TAPS)
            past_document = _shift(document, past_document, TAPS)

    for i in tl.static_range(LENGTH, LENGTH + TAPS - 1):
        there = starts + i < T
        x = tl.load(x_at + i * x_token, there[:, None] & inside, other=0.0).to(tl.float32)
        d_y = tl.load(d_y_at + i * d_y_token, there[:, None] & inside, other=0.0).to(tl.float32)
        document = tl.load(documents_at + i, there, other=-2)
        _, _, d_x = _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS)
        own = starts + (i - (TAPS - 1)) < T
        tl.store(d_x_at + i * d_x_token, d_x[TAPS - 1], own[:, None] & inside)
        past_x, past_d_x = _shift(x, past_x, TAPS), _shift(d_x[0], d_x[1:], TAPS)
        past_document = _shift(document, past_document, TAPS)

    partial_ptr += ((member * B + row) * blocks + block) * (TAPS + 1) * C
    for lag in tl.static_range(TAPS):
        tl.store(partial_ptr + (TAPS - 1 - lag) * C + channels, tl.sum(sums[lag], 0), channels < C)
    tl.store(partial_ptr + TAPS * C + channels, tl.sum(d_bias, 0), channels < C)

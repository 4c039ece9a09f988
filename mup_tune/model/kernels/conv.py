"""The causal depthwise convolution of the Mamba-2 branch with its bias and SiLU (arXiv 2405.21060, §7).

Shape suffixes: P members, B rows, T tokens of a row, C channels, k kernel taps (the last one is the token itself).

A program is one warp that walks along a run of tokens, so that documents are scalars: where no document starts, which a
chunk of tokens asks once, nothing is masked. It carries what neighbours need in registers: the inputs of the taps - 1
tokens before and, backward, the unfinished input gradients of those tokens. So nothing but the inputs and the result
meets memory. A walk backward goes on taps - 1 tokens past its run, to finish the gradients of the run's last ones.
"""

# Triton builds tuples by addition only.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 128  # of a program, 4 a thread: 8 would double the registers, which hold 15 values a channel backward
CHUNK = 4  # tokens whose loads are under way together
FORWARD_CHUNK = 8
# Tokens of a run. Backward, each repeats taps - 1 tokens and leaves parts of the weights' gradients: the longest that
# leaves this many programs, twice what a Hopper GPU runs at once.
RUNS = (128, 64, 32)
PROGRAMS = 4096


def _runs(size: torch.Size, channels: int) -> tuple[int, int]:
    """Tokens of a run, and runs of a row."""
    P, B, T, C = size
    walks = P * B * triton.cdiv(C, channels)
    length = next((each for each in RUNS if walks * triton.cdiv(T, each) >= PROGRAMS), RUNS[-1])
    return length, triton.cdiv(T, length)


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
    length, runs = _runs(x_PBTC.shape, channels)
    _conv_silu_kernel[(triton.cdiv(C, channels) * runs * B, P)](
        x_PBTC,
        weight_PCk,
        bias_PC,
        documents_BT,
        y_PBTC,
        B,
        T,
        C,
        runs,
        *x_PBTC.stride()[:3],
        TAPS=weight_PCk.shape[2],
        LENGTH=length,
        CHUNK=FORWARD_CHUNK,
        CHANNELS=channels,
        EVEN=T % length == 0 and C % channels == 0,
        num_warps=1,
    )
    return y_PBTC


def conv_silu_backward(
    d_y_PBTC: Tensor,
    x_PBTC: Tensor,
    weight_PCk: Tensor,
    bias_PC: Tensor,
    documents_BT: Tensor,
    d_x_PBTC: Tensor,
    zeroed_PBTz: Tensor,
    weight_parts: Callable[[int], Tensor],
    bias_parts: Callable[[int], Tensor],
) -> None:
    """Gradients of :func:`conv_silu`.

    Args:
        d_y_PBTC: work dtype; it, ``x_PBTC`` and ``d_x_PBTC``, where x's goes, may be column slices of wider buffers.
        zeroed_PBTz: more columns of ``d_x_PBTC``'s buffer, perhaps none, which get zeros in the same launch.
        weight_parts: where the weight's gradient goes, [P, programs, C · k] fp32 for so many programs, contiguous: each
            its part; ``bias_parts`` for the bias', [P, programs, C].
    """
    (P, B, T, C), taps = x_PBTC.shape, weight_PCk.shape[2]
    channels = min(triton.next_power_of_2(C), CHANNELS)
    length, runs = _runs(x_PBTC.shape, channels)
    _conv_silu_backward_kernel[(triton.cdiv(C, channels) * runs * B, P)](
        d_y_PBTC,
        x_PBTC,
        weight_PCk,
        bias_PC,
        documents_BT,
        d_x_PBTC,
        zeroed_PBTz,
        weight_parts(B * runs),
        bias_parts(B * runs),
        B,
        T,
        C,
        runs,
        *d_y_PBTC.stride()[:3],
        *x_PBTC.stride()[:3],
        *d_x_PBTC.stride()[:3],
        TAPS=taps,
        LENGTH=length,
        CHUNK=CHUNK,
        CHANNELS=channels,
        ZEROED=zeroed_PBTz.shape[3],
        EVEN=T % length == 0 and C % channels == 0,
        num_warps=1,
        maxnreg=128,  # 16 programs an SM; the compiler would take 255 and leave room for 8
    )


@triton.jit
def _place(C, runs, CHANNELS: tl.constexpr):
    """This program's run in a row, its row, its member and its channels; neighbours differ in channels."""
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    channels = (program % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_blocks
    return program % runs, program // runs, tl.program_id(1).to(tl.int64), channels


@triton.jit
def _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS: tl.constexpr):
    """The weights by lag, [0] for the token itself, and the bias; [CHANNELS] each."""
    at, inside = member * C + channels, channels < C
    by_lag = ()
    for lag in tl.static_range(TAPS):
        by_lag = by_lag + (tl.load(weight_ptr + at * TAPS + (TAPS - 1 - lag), inside, other=0.0),)
    return by_lag, tl.load(bias_ptr + at, inside, other=0.0)


@triton.jit
def _before(x_ptr, x_token, documents_ptr, start, inside, TAPS: tl.constexpr):
    """Inputs and documents of the TAPS - 1 tokens before a run, the nearest first; document -1 before the row."""
    past_x, past_document = (), ()
    for lag in tl.static_range(1, TAPS):
        there = start >= lag
        past_x = past_x + (tl.load(x_ptr - lag * x_token, inside & there, other=0.0).to(tl.float32),)
        past_document = past_document + (tl.load(documents_ptr + start - lag, there, other=-1),)
    return past_x, past_document


@triton.jit
def _load(ptr, token_stride, left, inside, CHUNK: tl.constexpr, EVEN: tl.constexpr):
    """A chunk's tokens, of which ``left`` are in the row."""
    values = ()
    for i in tl.static_range(CHUNK):
        if EVEN:
            values = values + (tl.load(ptr + i * token_stride),)
        else:
            values = values + (tl.load(ptr + i * token_stride, inside & (i < left), other=0.0),)
    return values


@triton.jit
def _load_documents(documents_ptr, left, CHUNK: tl.constexpr):
    """A chunk's documents, -2 past the row's end."""
    documents = ()
    for i in tl.static_range(CHUNK):
        documents = documents + (tl.load(documents_ptr + i, i < left, other=-2),)
    return documents


@triton.jit
def _shift(newest, past, TAPS: tl.constexpr):
    """The TAPS - 1 nearest of what is now past."""
    shifted = ()
    for lag in tl.static_range(TAPS - 1):
        shifted = shifted + ((newest if lag == 0 else past[lag - 1]),)
    return shifted


@triton.jit
def _seen(x, document, past_x, past_document, TAPS: tl.constexpr, MASKED: tl.constexpr):
    """Inputs by lag, 0 where they are another document's."""
    seen_x = (x,)
    for lag in tl.static_range(1, TAPS):
        if MASKED:
            seen_x = seen_x + (tl.where(document == past_document[lag - 1], past_x[lag - 1], 0.0),)
        else:
            seen_x = seen_x + (past_x[lag - 1],)
    return seen_x


@triton.jit
def _activate(seen_x, weights, bias, TAPS: tl.constexpr):
    """The pre-activation and its sigmoid."""
    pre = bias + weights[0] * seen_x[0]
    for lag in tl.static_range(1, TAPS):
        pre += weights[lag] * seen_x[lag]
    return pre, tl.sigmoid(pre)


@triton.jit
def _forward_chunk(
    xs, documents, past_x, past_document, weights, bias, y_ptr, C, left, inside,
    TAPS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for i in tl.static_range(CHUNK):
        x = xs[i].to(tl.float32)
        pre, on = _activate(_seen(x, documents[i], past_x, past_document, TAPS, MASKED), weights, bias, TAPS)
        if EVEN:
            tl.store(y_ptr + i * C, pre * on)
        else:
            tl.store(y_ptr + i * C, pre * on, inside & (i < left))
        past_x, past_document = _shift(x, past_x, TAPS), _shift(documents[i], past_document, TAPS)


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
    runs,
    x_member,
    x_row,
    x_token,
    TAPS: tl.constexpr,
    LENGTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
):
    run, row, member, channels = _place(C, runs, CHANNELS)
    weights, bias = _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS)
    inside, start = channels < C, run * LENGTH
    x_ptr += member * x_member + row.to(tl.int64) * x_row + start.to(tl.int64) * x_token + channels
    y_ptr += ((member * B + row) * T + start) * C + channels
    documents_ptr += row.to(tl.int64) * T
    past_x, past_document = _before(x_ptr, x_token, documents_ptr, start, inside, TAPS)
    documents_ptr += start
    for offset in range(0, LENGTH, CHUNK):
        left = T - start - offset
        xs = _load(x_ptr, x_token, left, inside, CHUNK, EVEN)
        documents = _load_documents(documents_ptr + offset, left, CHUNK)
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
            past_x = _shift(xs[i].to(tl.float32), past_x, TAPS)
            past_document = _shift(documents[i], past_document, TAPS)
        x_ptr += CHUNK * x_token
        y_ptr += CHUNK * C


@triton.jit
def _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS: tl.constexpr, MASKED: tl.constexpr):
    """One token further.

    Args:
        past_x, past_document, past_d_x: of the TAPS - 1 tokens before, the nearest first.

    Returns:
        the gradient by the pre-activation; x by lag, 0 where it is another document's; the input gradients by lag with
        this token's part added, so that the last one is finished.
    """
    seen_x = _seen(x, document, past_x, past_document, TAPS, MASKED)
    pre, on = _activate(seen_x, weights, bias, TAPS)
    d_pre = d_y * (on + pre * on * (1.0 - on))
    d_x = (weights[0] * d_pre,)
    for lag in tl.static_range(1, TAPS):
        seen_d = tl.where(document == past_document[lag - 1], d_pre, 0.0) if MASKED else d_pre
        d_x = d_x + (past_d_x[lag - 1] + weights[lag] * seen_d,)
    return d_pre, seen_x, d_x


@triton.jit
def _backward_chunk(
    xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr, d_x_token, offset, left,
    inside, TAPS: tl.constexpr, CHUNK: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Stores the gradients that a chunk finishes; returns the unfinished ones and the sums with the chunk's added."""
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
        tl.store(d_x_ptr + i * d_x_token, d_x[TAPS - 1], inside & own)
        past_x, past_d_x = _shift(x, past_x, TAPS), _shift(d_x[0], d_x[1:], TAPS)
        past_document = _shift(document, past_document, TAPS)
    return past_d_x, sums, d_bias


@triton.jit
def _conv_silu_backward_kernel(
    d_y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    documents_ptr,
    d_x_ptr,
    zeroed_ptr,
    weight_parts_ptr,
    bias_parts_ptr,
    B,
    T,
    C,
    runs,
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
    LENGTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    ZEROED: tl.constexpr,  # columns
    EVEN: tl.constexpr,
):
    run, row, member, channels = _place(C, runs, CHANNELS)
    weights, bias = _parameters(weight_ptr, bias_ptr, member, channels, C, TAPS)
    inside, start = channels < C, run * LENGTH
    first_token = start.to(tl.int64)
    d_y_ptr += member * d_y_member + row.to(tl.int64) * d_y_row + first_token * d_y_token + channels
    x_ptr += member * x_member + row.to(tl.int64) * x_row + first_token * x_token + channels
    row_at = member * d_x_member + row.to(tl.int64) * d_x_row
    if ZEROED > 0 and tl.program_id(0) % tl.cdiv(C, CHANNELS) == 0:
        columns = tl.arange(0, triton.next_power_of_2(ZEROED))
        for offset in range(0, LENGTH, 32):
            tokens = start + offset + tl.arange(0, 32)
            zeroed_at = row_at + tokens.to(tl.int64)[:, None] * d_x_token + columns[None, :]
            tl.store(zeroed_ptr + zeroed_at, 0.0, (tokens < T)[:, None] & (columns < ZEROED)[None, :])
    # What a step finishes is the gradient of the token TAPS - 1 before.
    d_x_ptr += row_at + (first_token - (TAPS - 1)) * d_x_token + channels
    documents_ptr += row.to(tl.int64) * T
    past_x, past_document = _before(x_ptr, x_token, documents_ptr, start, inside, TAPS)
    documents_ptr += start
    past_d_x, sums, d_bias = (), (), tl.zeros([CHANNELS], tl.float32)
    for _ in tl.static_range(1, TAPS):
        past_d_x = past_d_x + (tl.zeros([CHANNELS], tl.float32),)
    for _ in tl.static_range(TAPS):
        sums = sums + (tl.zeros([CHANNELS], tl.float32),)

    for offset in range(0, LENGTH, CHUNK):
        left = T - start - offset
        # all before the first store, which the compiler moves no load over
        xs = _load(x_ptr, x_token, left, inside, CHUNK, EVEN)
        d_ys = _load(d_y_ptr, d_y_token, left, inside, CHUNK, EVEN)
        documents = _load_documents(documents_ptr + offset, left, CHUNK)
        first = documents[0] if TAPS == 1 else past_document[TAPS - 2]
        # fmt: off
        if first == documents[CHUNK - 1]:  # they never decrease
            past_d_x, sums, d_bias = _backward_chunk(
                xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr, d_x_token,
                offset, left, inside, TAPS, CHUNK, EVEN, MASKED=False)
        else:
            past_d_x, sums, d_bias = _backward_chunk(
                xs, d_ys, documents, past_x, past_document, past_d_x, sums, d_bias, weights, bias, d_x_ptr, d_x_token,
                offset, left, inside, TAPS, CHUNK, EVEN, MASKED=True)
        # fmt: on
        for i in tl.static_range(CHUNK):
            past_x = _shift(xs[i].to(tl.float32), past_x, TAPS)
            past_document = _shift(documents[i], past_document, TAPS)
        x_ptr += CHUNK * x_token
        d_y_ptr += CHUNK * d_y_token
        d_x_ptr += CHUNK * d_x_token

    left = T - start - LENGTH
    documents_ptr += LENGTH
    for i in tl.static_range(TAPS - 1):
        x = tl.load(x_ptr + i * x_token, inside & (i < left), other=0.0).to(tl.float32)
        d_y = tl.load(d_y_ptr + i * d_y_token, inside & (i < left), other=0.0).to(tl.float32)
        document = tl.load(documents_ptr + i, i < left, other=-2)
        _, _, d_x = _walk(x, d_y, document, past_x, past_document, past_d_x, weights, bias, TAPS, MASKED=True)
        tl.store(d_x_ptr + i * d_x_token, d_x[TAPS - 1], inside & (i - (TAPS - 1) < left))
        past_x, past_d_x = _shift(x, past_x, TAPS), _shift(d_x[0], d_x[1:], TAPS)
        past_document = _shift(document, past_document, TAPS)

    part_at = ((member * B + row) * runs + run) * C + channels
    for lag in tl.static_range(TAPS):
        tl.store(weight_parts_ptr + part_at * TAPS + (TAPS - 1 - lag), sums[lag], inside)
    tl.store(bias_parts_ptr + part_at, d_bias, inside)

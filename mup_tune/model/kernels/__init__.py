"""Triton kernels of the GPU step, as plain functions over tensors.

An op is a folder (``forward``, ``backward``, ``reference``), or one file where it is short. Its public
functions:

* ``<op>``. A trailing ``_`` says that it changes an argument in place.
* ``<op>_backward`` takes the gradients of the results, what the forward pass left, the forward pass's
  arguments, and then where gradients go. It returns the gradients that got no place, in the order of the
  arguments.
* ``<op>_reference`` is the same in plain PyTorch, from the functions that train on CPUs, and autograd
  differentiates it. Tests compare in float64.

A parameter that is a vector gets its gradient in parts. ``<vector>_parts`` is called with the number of
programs and gives memory [P, programs, width], fp32 and contiguous; every program writes its part, and the
caller sums them.

Programs: the member changes slowest, so that neighbouring programs share it. In a grid of several axes it is
the last one. In a grid of one axis factors are split off fastest first, and what is left is the row.

Names in kernels: ``p`` member, ``b`` row of the batch, ``row`` = p · B + b. ``x_stride_t`` are the elements
of ``x`` between neighbours along T; the last stride is 1. ``x_at`` are offsets, ``x_ptrs`` pointers.

Shape suffixes everywhere: P members, B rows of the batch, T tokens of a row, N = B · T, D d_model, V
vocabulary, F d_ff, k taps of the convolution, and C channels (of the convolution: x, then B, then C).

* Attention: C columns of q, k and v, E columns of q, Q query heads, J key/value heads, R = head_dim / 2. K is
  head_dim padded to 2 · (R padded), so that a rotary pair keeps its distance. M rows of a query block, N rows
  of a key block.
* Scan and gated norm: H heads, K channels of a head, X = H · K, G groups of adjacent heads, S d_state, c
  chunks of a row, L tokens of a chunk.
* AdamW: R rows of a tile, C columns of a block, n parts of a sum.
* Loss: I lanes of a block, J logits that a lane reads at once.
* Batch: S steps that are fed at once, W numbers of a step.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)  # log2(e): exp2 is the hardware's exponential


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) in five instructions; ``tl.sigmoid`` divides and takes thirteen."""
    root = tl.rsqrt(1.0 + tl.exp2(-LOG2E * x))
    return root * root


# Memory for the parts of a vector's gradient, by the number of programs.
Parts = Callable[[int], Tensor]


def strides(axes: str, **tensors: Tensor) -> dict[str, int]:
    """``{name}_stride_{axis}`` of every tensor's first axes, as launches take them."""
    return {
        f"{name}_stride_{axis}": tensor.stride(index)
        for name, tensor in tensors.items()
        for index, axis in enumerate(axes)
    }

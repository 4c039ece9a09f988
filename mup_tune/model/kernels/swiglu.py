"""The gated activation of the MLP on the output of one product that holds both halves, gate then up.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mup_tune.model.kernels import sigmoid

TILE = 4096  # elements of a half a program reads, 32 a thread
COLUMNS = 256


def swiglu(h_PN2F: Tensor) -> Tensor:
    """``up · silu(gate)`` (arXiv 2002.05202), [P, N, F], of contiguous ``h = [gate | up]``; fp32 inside."""
    P, N, width = h_PN2F.shape
    out_PNF = torch.empty(P, N, width // 2, dtype=h_PN2F.dtype, device=h_PN2F.device)
    grid, sizes = _launch(out_PNF)
    _swiglu_kernel[grid](h_ptr=h_PN2F, out_ptr=out_PNF, **sizes)
    return out_PNF


def swiglu_backward(d_out_PNF: Tensor, h_PN2F: Tensor) -> Tensor:
    """The gradient of :func:`swiglu` by ``h``, [P, N, 2F]; both inputs contiguous."""
    d_h_PN2F = torch.empty_like(h_PN2F)
    grid, sizes = _launch(d_out_PNF)
    _swiglu_backward_kernel[grid](d_out_ptr=d_out_PNF, h_ptr=h_PN2F, d_h_ptr=d_h_PN2F, **sizes)
    return d_h_PN2F


def swiglu_reference(h_PN2F: Tensor) -> Tensor:
    """:func:`swiglu` in PyTorch."""
    gate_PNF, up_PNF = h_PN2F.chunk(2, -1)
    return up_PNF * F.silu(gate_PNF)


def _launch(out_PNF: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the sizes that a launch takes."""
    P, N, width = out_PNF.shape
    columns = min(triton.next_power_of_2(width), COLUMNS)
    rows = TILE // columns
    grid = (triton.cdiv(P * N, rows) * triton.cdiv(width, columns),)
    return grid, {"n_rows": P * N, "F": width, "ROWS": rows, "COLUMNS": columns}


@triton.jit
def _tile(n_rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, columns and mask of this program's tile; neighbouring programs read neighbouring columns."""
    blocks: tl.constexpr = (F + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    rows = (pid // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (pid % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    return rows[:, None], columns[None, :], (rows < n_rows)[:, None] & (columns < F)[None, :]


@triton.jit
def _swiglu_kernel(h_ptr, out_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns, mask = _tile(n_rows, F, ROWS, COLUMNS)
    h_at = rows * (2 * F) + columns
    gate = tl.load(h_ptr + h_at, mask, other=0.0).to(tl.float32)
    up = tl.load(h_ptr + h_at + F, mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * F + columns, up * gate * sigmoid(gate), mask)


@triton.jit
def _swiglu_backward_kernel(
    d_out_ptr, h_ptr, d_h_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    rows, columns, mask = _tile(n_rows, F, ROWS, COLUMNS)
    h_at = rows * (2 * F) + columns
    d = tl.load(d_out_ptr + rows * F + columns, mask, other=0.0).to(tl.float32)
    gate = tl.load(h_ptr + h_at, mask, other=0.0).to(tl.float32)
    up = tl.load(h_ptr + h_at + F, mask, other=0.0).to(tl.float32)
    on = sigmoid(gate)
    tl.store(d_h_ptr + h_at, d * up * on * (1.0 + gate * (1.0 - on)), mask)
    tl.store(d_h_ptr + h_at + F, d * gate * on, mask)

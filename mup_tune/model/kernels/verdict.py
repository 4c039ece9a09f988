"""What becomes of each member after its backward pass: its gradient norm, whether it lives and is clipped.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # parts read at once, 16 a thread


def judge(
    squares_Pn: Tensor,
    more_squares_Pn: Tensor,
    loss_P: Tensor,
    alive_P: Tensor,
    clip_norm: float,
    cursor: Tensor,
    trace_4SP: Tensor,
) -> Tensor:
    """The root of all parts' sum, fp32 [P]; ends the step in training.

    Args:
        squares_Pn: parts of the squared gradient norm, fp32, contiguous; ``more_squares_Pn`` are others.
        loss_P: fp32.
        alive_P: bool; becomes False, in place, where the loss or the norm is not finite.
        cursor: of :mod:`~mup_tune.model.kernels.batch`; the next step becomes the one to take, and after the
            last one the first.
        trace_4SP: fp32, contiguous; gets the loss, the norm, whether the member was clipped and whether it
            lives, at the step in training. Who is clipped lives and has a norm above ``clip_norm``.
    """
    norm_P = torch.empty_like(loss_P)
    assert trace_4SP.is_contiguous()
    _judge_kernel[(len(loss_P),)](
        squares_ptr=squares_Pn, more_squares_ptr=more_squares_Pn, loss_ptr=loss_P, alive_ptr=alive_P,
        norm_ptr=norm_P, cursor_ptr=cursor, trace_ptr=trace_4SP, n=squares_Pn.shape[1],
        n_more=more_squares_Pn.shape[1], clip_norm=clip_norm, S=trace_4SP.shape[1], BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return norm_P


def judge_reference(
    squares_Pn: Tensor, more_squares_Pn: Tensor, loss_P: Tensor, alive_P: Tensor, clip_norm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm, whether clipped and whether alive as :func:`judge` finds them, in PyTorch."""
    norm_P = torch.cat((squares_Pn, more_squares_Pn), 1).sum(1).sqrt()
    alive_P = alive_P & loss_P.isfinite() & norm_P.isfinite()
    return norm_P, alive_P & (norm_P > clip_norm), alive_P


@triton.jit
def _judge_kernel(
    squares_ptr, more_squares_ptr, loss_ptr, alive_ptr, norm_ptr, cursor_ptr, trace_ptr, n, n_more, clip_norm, S,
    BLOCK: tl.constexpr,
):  # fmt: skip
    p, P = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(squares_ptr + p * n + at, at < n, other=0.0)
    for start in range(0, n_more, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(more_squares_ptr + p * n_more + at, at < n_more, other=0.0)
    norm = tl.sqrt_rn(tl.sum(total, 0))
    loss = tl.load(loss_ptr + p)
    finite = (tl.abs(loss) < float("inf")) & (norm < float("inf"))
    alive = tl.load(alive_ptr + p) & finite
    tl.store(alive_ptr + p, alive)
    tl.store(norm_ptr + p, norm)
    step = tl.load(cursor_ptr + 1)
    trace_ptr += step * P + p
    tl.store(trace_ptr, loss)
    tl.store(trace_ptr + S * P, norm)
    tl.store(trace_ptr + 2 * S * P, (alive & (norm > clip_norm)).to(tl.float32))
    tl.store(trace_ptr + 3 * S * P, alive.to(tl.float32))
    if p == 0:
        tl.store(cursor_ptr, (step + 1) % S)

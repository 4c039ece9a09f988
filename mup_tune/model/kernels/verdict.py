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
    squares_Pn: Tensor, more_squares_Pn: Tensor, loss_P: Tensor, alive_P: Tensor, clip_norm: float
) -> tuple[Tensor, Tensor]:
    """The root of all parts' sum, fp32 [P], and where it exceeds ``clip_norm`` in a member alive, bool [P].

    Args:
        squares_Pn: parts of the squared gradient norm, fp32, contiguous; ``more_squares_Pn`` are others.
        loss_P: fp32.
        alive_P: bool; becomes False, in place, where the loss or the norm is not finite.
    """
    norm_P, clipped_P = torch.empty_like(loss_P), torch.empty_like(alive_P)
    _judge_kernel[(len(loss_P),)](
        squares_ptr=squares_Pn, more_squares_ptr=more_squares_Pn, loss_ptr=loss_P, alive_ptr=alive_P,
        norm_ptr=norm_P, clipped_ptr=clipped_P, n=squares_Pn.shape[1], n_more=more_squares_Pn.shape[1],
        clip_norm=clip_norm, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return norm_P, clipped_P


def judge_reference(
    squares_Pn: Tensor, more_squares_Pn: Tensor, loss_P: Tensor, alive_P: Tensor, clip_norm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`judge` returns, and ``alive_P`` as it leaves it, in PyTorch."""
    norm_P = torch.cat((squares_Pn, more_squares_Pn), 1).sum(1).sqrt()
    alive_P = alive_P & loss_P.isfinite() & norm_P.isfinite()
    return norm_P, alive_P & (norm_P > clip_norm), alive_P


@triton.jit
def _judge_kernel(
    squares_ptr, more_squares_ptr, loss_ptr, alive_ptr, norm_ptr, clipped_ptr, n, n_more, clip_norm, BLOCK: tl.constexpr
):
    p = tl.program_id(0)
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
    tl.store(clipped_ptr + p, alive & (norm > clip_norm))

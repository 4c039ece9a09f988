"""The state-space scan of Mamba-2 in its chunked, matmul form (SSD; arXiv 2405.21060, §6).

Shape suffixes: P members, B rows, T tokens, H heads, K channels of a head, G groups, N d_state,
c chunks, L tokens of a chunk. Heads of a group are adjacent: head h belongs to group h // (H/G).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mup_tune.model.layers import at_least_fp32

CHUNK = 32  # tokens handled as one matrix: the best on CPUs, 16 to 64 within noise


def ssd(
    x_PBTHK: Tensor,
    dt_PBTH: Tensor,
    A_PH: Tensor,
    B_PBTGN: Tensor,
    C_PBTGN: Tensor,
    D_PH: Tensor,
    documents_BT: Tensor | None,
    chunk: int,
) -> Tensor:
    """``h_t = exp(dt_t A) h_{t-1} + dt_t x_t ⊗ B_t``, ``y_t = C_t h_t + D x_t``; h = 0 where documents start.

    Computed in fp32 (or fp64 for fp64 inputs). Documents are cut by masks inside the exponent, where a large
    negative number in the running sum would cost precision.

    Args:
        dt_PBTH: step sizes after bias and softplus.
        A_PH: decay rates, negative.
        documents_BT: non-decreasing document numbers, or None where a row is one document.
        chunk: tokens handled as one matrix; T need not be a multiple of it.

    Returns:
        y [P, B, T, H, K].
    """
    T, L = x_PBTHK.shape[2], min(chunk, x_PBTHK.shape[2])
    x, dt, A, B, C = (at_least_fp32(t) for t in (x_PBTHK, dt_PBTH, A_PH, B_PBTGN, C_PBTGN))
    if T % L:  # zeros at the end change no state that is read
        x, dt, B, C = (F.pad(t, (0, 0) * (t.ndim - 3) + (0, -T % L)) for t in (x, dt, B, C))
    xdt_PBcLHK = torch.unflatten(x * dt[..., None], 2, (-1, L))
    log_decay_PBcHL = torch.unflatten(dt * A[:, None, None], 2, (-1, L)).transpose(3, 4).contiguous()
    B_PBcGLN, C_PBcGLN = (torch.unflatten(t, 2, (-1, L)).transpose(3, 4) for t in (B, C))

    log_PBcHL = log_decay_PBcHL.cumsum(-1)
    hidden_Bc1LL, to_end, from_start, across = _decays(log_PBcHL, documents_BT)
    scores_PBcGLL = C_PBcGLN @ B_PBcGLN.transpose(-1, -2)
    mixing_PBcHLL = _Mixing.apply(scores_PBcGLL, log_PBcHL, hidden_Bc1LL)  # type: ignore[no-untyped-call]
    y_PBcLHK = (mixing_PBcHLL @ xdt_PBcLHK.transpose(3, 4)).transpose(3, 4)
    if across is not None:
        state_PBcGNX = _states(xdt_PBcLHK * to_end.transpose(3, 4)[..., None], B_PBcGLN)
        carried_PBcGNX = _carry(state_PBcGNX, across, n_heads=x.shape[3])
        read_PBcLHK = (C_PBcGLN @ carried_PBcGNX).transpose(3, 4).reshape(xdt_PBcLHK.shape)
        y_PBcLHK = torch.addcmul(y_PBcLHK, read_PBcLHK, from_start.transpose(3, 4)[..., None])
    y_PBTHK = torch.addcmul(y_PBcLHK.flatten(2, 3), x, at_least_fp32(D_PH)[:, None, None, :, None])
    return y_PBTHK[:, :, :T]


class _Mixing(torch.autograd.Function):
    """C Bᵀ ∘ decay from token to token of a chunk, [P, B, c, H, L, L]: the largest tensor of the scan.

    Written out because autograd would pass over it twice as often.
    """

    @staticmethod
    def forward(ctx: Any, scores_PBcGLL: Tensor, log_PBcHL: Tensor, hidden_Bc1LL: Tensor) -> Tensor:
        decay = log_PBcHL[..., :, None] - log_PBcHL[..., None, :]
        # Masked before exp: towards a token's future it would overflow.
        decay = decay.masked_fill_(hidden_Bc1LL, float("-inf")).exp_()
        ctx.save_for_backward(scores_PBcGLL, decay)
        groups = (scores_PBcGLL.shape[3], -1)
        return (torch.unflatten(decay, 3, groups) * scores_PBcGLL.unsqueeze(4)).flatten(3, 4)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_PBcHLL: Tensor) -> tuple[Tensor, Tensor, None]:
        scores_PBcGLL, decay = ctx.saved_tensors
        grad = torch.unflatten(grad_PBcHLL * decay, 3, (scores_PBcGLL.shape[3], -1))
        grad_scores = grad.sum(4)
        grad = grad.mul_(scores_PBcGLL.unsqueeze(4)).flatten(3, 4)
        return grad_scores, grad.sum(-1) - grad.sum(-2), None


def _decays(log_PBcHL: Tensor, documents_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a token of a chunk must not see, and decays to the chunk's end, from its start and between chunks.

    Decays are 0 where the two ends lie in different documents.

    Returns:
        True where the second token is later or in another document, [B, c, 1, L, L] or [L, L]; decays [P, B,
        c, H, L] twice; from every chunk's end to every chunk's start, [P, B, H, c, c], None if there is one
        chunk.
    """
    c, L = log_PBcHL.shape[2], log_PBcHL.shape[4]
    hidden = torch.ones(L, L, dtype=torch.bool, device=log_PBcHL.device).triu_(1)
    to_end, from_start = log_PBcHL[..., -1:] - log_PBcHL, log_PBcHL
    across = _segment_sums(log_PBcHL[..., -1].transpose(2, 3)) if c > 1 else None
    if documents_BT is not None:
        zero = float("-inf")
        padded_BT = F.pad(documents_BT, (0, c * L - documents_BT.shape[1]), value=-1)
        documents_BcL = torch.unflatten(padded_BT, 1, (c, L))
        last_Bc = documents_BcL[..., -1]
        before_Bc = F.pad(last_Bc[:, :-1], (1, 0), value=-1)
        hidden = (hidden | (documents_BcL[..., :, None] != documents_BcL[..., None, :]))[:, :, None]
        to_end = to_end.masked_fill((documents_BcL != last_Bc[..., None])[:, :, None], zero)
        from_start = from_start.masked_fill((documents_BcL != before_Bc[..., None])[:, :, None], zero)
        if across is not None:
            across = across.masked_fill((before_Bc[:, :, None] != last_Bc[:, None, :])[:, None], zero)
    return hidden, to_end.exp(), from_start.exp(), None if across is None else across.exp()


def _segment_sums(total_PBHc: Tensor) -> Tensor:
    """Entry [i, j] = sum of chunks j+1 … i-1, -inf for j ≥ i.

    Summed segment by segment: differences of one sum over a long row would lose the small decays.
    """
    c = total_PBHc.shape[-1]
    i = torch.arange(c, device=total_PBHc.device)
    terms = total_PBHc[..., :, None].expand(*total_PBHc.shape, c).masked_fill(i[:, None] <= i, 0.0)
    sums = F.pad(terms.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))
    return sums.masked_fill_(i[:, None] <= i, float("-inf"))


def _states(decayed_PBcLHK: Tensor, B_PBcGLN: Tensor) -> Tensor:
    """What every chunk adds to the state at its end, [P, B, c, G, N, H/G · K]."""
    G = B_PBcGLN.shape[3]
    per_group = torch.unflatten(decayed_PBcLHK, 4, (G, -1)).flatten(5).transpose(3, 4)
    return B_PBcGLN.transpose(-1, -2) @ per_group


def _carry(state_PBcGNX: Tensor, across_PBHcc: Tensor, n_heads: int) -> Tensor:
    """The state at every chunk's start, from what the chunks before it added."""
    P, B, c, G, N, _ = state_PBcGNX.shape
    by_head = state_PBcGNX.view(P, B, c, G, N, n_heads // G, -1).permute(0, 1, 3, 5, 2, 4, 6)
    carried = across_PBHcc @ by_head.reshape(P, B, n_heads, c, -1)
    carried = carried.view(P, B, G, n_heads // G, c, N, -1).permute(0, 1, 4, 2, 5, 3, 6)
    return carried.reshape(state_PBcGNX.shape)

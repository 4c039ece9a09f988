"""Layers that carry a leading member axis: linear, RMSNorm, causal convolution, and the fused loss.

Shape suffixes: P members, B rows, T tokens of a row, N = B·T, n a chunk of N, D d_model (or any last
dimension), I inputs, O outputs, C convolution channels, K kernel taps, F d_ff, V vocabulary. Members never
meet: no value of one enters another's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mup_tune.trial import IGNORED_TARGET

RMS_NORM_EPS = 1e-5
# Logits held at once, over all members: small enough for the CPU's cache, large enough to fill a GPU.
LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is where it is fp64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear(x_PBTI: Tensor, weight_POI: Tensor, scale_PO1: Tensor | None = None) -> Tensor:
    """``scale · W · x`` for every member, as one batched matmul; returns [P, B, T, O].

    Args:
        scale_PO1: forward multipliers, [P, O, 1] or [P, 1, 1]. They go on the weight: it has fewer elements
            than the activations, and its gradient gets the same factor either way.
    """
    weight_POI = weight_POI if scale_PO1 is None else weight_POI * scale_PO1
    P, B, T, I = x_PBTI.shape
    return torch.bmm(x_PBTI.reshape(P, B * T, I), weight_POI.transpose(1, 2)).view(P, B, T, -1)


def rms_norm(x_PBTD: Tensor, weight_PD: Tensor, n_groups: int = 1) -> Tensor:
    """Root-mean-square norm over ``n_groups`` equal parts of the last dimension, computed in fp32."""
    x = torch.unflatten(at_least_fp32(x_PBTD), -1, (n_groups, -1))
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_NORM_EPS)
    return x.flatten(-2).to(x_PBTD.dtype) * weight_PD[:, None, None]


class _CausalConv(torch.autograd.Function):
    """Written out because autograd would keep and reduce one full-size product a tap."""

    @staticmethod
    def forward(ctx: Any, x_PBTC: Tensor, weight_PC1K: Tensor, bias_PC: Tensor, documents_BT: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_PBTC, weight_PC1K, documents_BT)
        taps_KPC = weight_PC1K.squeeze(2).permute(2, 0, 1)[:, :, None, None]
        y_PBTC = torch.addcmul(bias_PC[:, None, None], x_PBTC, taps_KPC[-1])
        for lag in range(1, min(len(taps_KPC), x_PBTC.shape[2])):
            y_PBTC[:, :, lag:].addcmul_(_same(x_PBTC[:, :, :-lag], documents_BT, lag), taps_KPC[-1 - lag])
        return y_PBTC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_PBTC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_PBTC, weight_PC1K, documents_BT = ctx.saved_tensors
        taps_KPC = weight_PC1K.squeeze(2).permute(2, 0, 1)[:, :, None, None]
        grad_x = grad_PBTC * taps_KPC[-1]
        grad_taps = torch.zeros_like(weight_PC1K)
        grad_taps[:, :, 0, -1] = (grad_PBTC * x_PBTC).sum((1, 2))
        for lag in range(1, min(len(taps_KPC), x_PBTC.shape[2])):
            grad_lagged = _same(grad_PBTC[:, :, lag:], documents_BT, lag)
            grad_x[:, :, :-lag].addcmul_(grad_lagged, taps_KPC[-1 - lag])
            grad_taps[:, :, 0, -1 - lag] = (grad_lagged * x_PBTC[:, :, :-lag]).sum((1, 2))
        return grad_x, grad_taps, grad_PBTC.sum((1, 2)), None


def _same(x_PBTC: Tensor, documents_BT: Tensor | None, lag: int) -> Tensor:
    """``x`` with zeros where a token and the one ``lag`` before it lie in different documents."""
    if documents_BT is None:
        return x_PBTC
    other_BT = documents_BT[:, lag:] != documents_BT[:, :-lag]
    return x_PBTC.masked_fill(other_BT[:, :, None], 0.0)


def causal_conv(x_PBTC: Tensor, weight_PC1K: Tensor, bias_PC: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Depthwise causal convolution with bias that does not look across a document's start.

    The last tap multiplies the token itself, as in ``torch.nn.Conv1d`` padded on the left.
    """
    y_PBTC: Tensor = _CausalConv.apply(x_PBTC, weight_PC1K, bias_PC, documents_BT)  # type: ignore[no-untyped-call]
    return y_PBTC


def linear_nll(h_PBTD: Tensor, weight_PVD: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed negative log likelihood of every row under ``softmax(W h)``, in nats: [P, B], at least fp32.

    Never holds [P, B, T, V]: tokens go through in chunks of ``LOGITS_AT_ONCE`` elements. With gradients on,
    the chunk's gradients are taken while its logits are at hand. They are exact for any upstream gradient;
    where that is the same for all rows of a member (a plain sum of losses) nothing is computed twice.

    Args:
        targets_BT: token ids; ``IGNORED_TARGET`` adds nothing to the loss.
    """
    if torch.is_grad_enabled() and (h_PBTD.requires_grad or weight_PVD.requires_grad):
        nll_PB: Tensor = _LinearNLL.apply(h_PBTD, weight_PVD, targets_BT)  # type: ignore[no-untyped-call]
        return nll_PB
    P, B, T, D = h_PBTD.shape
    h_PND, targets_N = h_PBTD.reshape(P, B * T, D), targets_BT.reshape(-1)
    chunks = [
        _nll_and_grad(h_PND[:, part], weight_PVD, targets_N[part], with_grad=False)[0]
        for part in _chunks(h_PND, weight_PVD)
    ]
    return torch.cat(chunks, 1).view(P, B, T).sum(-1)


def _chunks(h_PND: Tensor, weight_PVD: Tensor) -> list[slice]:
    P, V, _ = weight_PVD.shape
    size = max(1, LOGITS_AT_ONCE.get(h_PND.device.type, 2**20) // (P * V))
    return [slice(start, min(start + size, h_PND.shape[1])) for start in range(0, h_PND.shape[1], size)]


def _nll_and_grad(
    h_PnD: Tensor, weight_PVD: Tensor, targets_n: Tensor, *, with_grad: bool = True
) -> tuple[Tensor, Tensor]:
    """Each token's loss [P, n], its gradient by the logits [P, n, V], unfinished without ``with_grad``."""
    logits_PnV = at_least_fp32(torch.bmm(h_PnD, weight_PVD.transpose(1, 2)))
    ignored_n = targets_n == IGNORED_TARGET
    index_Pn1 = targets_n.masked_fill(ignored_n, 0).expand(len(h_PnD), -1)[..., None]
    target_Pn1 = logits_PnV.gather(-1, index_Pn1)
    largest_Pn1 = logits_PnV.amax(-1, keepdim=True)
    logits_PnV.sub_(largest_Pn1).exp_()
    total_Pn1 = logits_PnV.sum(-1, keepdim=True)
    nll_Pn = (total_Pn1.log() + largest_Pn1 - target_Pn1).squeeze(-1).masked_fill(ignored_n, 0.0)
    if with_grad:
        logits_PnV.div_(total_Pn1).scatter_add_(-1, index_Pn1, torch.full_like(target_Pn1, -1.0))
        logits_PnV.masked_fill_(ignored_n[:, None], 0.0)
    return nll_Pn, logits_PnV


def _rows_alike(grad_PB: Tensor) -> bool:
    """Whether a member's rows are known to share one upstream gradient, without waiting for a GPU."""
    if grad_PB.shape[1] == 1 or grad_PB.stride(1) == 0:  # what backward of a sum over rows hands down
        return True
    return grad_PB.device.type == "cpu" and bool((grad_PB == grad_PB[:, :1]).all())


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_PBTD: Tensor, weight_PVD: Tensor, targets_BT: Tensor) -> Tensor:
        P, B, T, D = h_PBTD.shape
        h_PND, targets_N = h_PBTD.reshape(P, B * T, D), targets_BT.reshape(-1)
        grad_h, grad_weight = torch.empty_like(h_PND), torch.zeros_like(weight_PVD)
        chunks = []
        for part in _chunks(h_PND, weight_PVD):
            nll_Pn, grad_PnV = _nll_and_grad(h_PND[:, part], weight_PVD, targets_N[part])
            grad_PnV = grad_PnV.to(h_PND.dtype)
            chunks.append(nll_Pn)
            grad_h[:, part] = torch.bmm(grad_PnV, weight_PVD)
            grad_weight.baddbmm_(grad_PnV.transpose(1, 2), h_PND[:, part])
        ctx.save_for_backward(h_PND, weight_PVD, targets_N, grad_h.view_as(h_PBTD), grad_weight)
        return torch.cat(chunks, 1).view(P, B, T).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_PB: Tensor) -> tuple[Tensor, Tensor, None]:
        h_PND, weight_PVD, targets_N, grad_h, grad_weight = ctx.saved_tensors
        upstream_PB = grad_PB.to(grad_h.dtype)
        grad_h = grad_h * upstream_PB[:, :, None, None]
        if _rows_alike(grad_PB):
            return grad_h, grad_weight * upstream_PB[:, :1, None], None
        P, B, T, _ = grad_h.shape
        upstream_PN1 = upstream_PB[:, :, None].expand(P, B, T).reshape(P, B * T, 1)
        grad_weight = torch.zeros_like(weight_PVD)
        for part in _chunks(h_PND, weight_PVD):
            grad_PnV = _nll_and_grad(h_PND[:, part], weight_PVD, targets_N[part])[1].to(h_PND.dtype)
            grad_weight.baddbmm_((grad_PnV * upstream_PN1[:, part]).transpose(1, 2), h_PND[:, part])
        return grad_h, grad_weight, None

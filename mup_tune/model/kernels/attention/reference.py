"""The attention kernels' twin: :func:`mup_tune.model.attention.attention`, and the softmax denominators.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from mup_tune.model.attention import attention, document_mask, rotate


def attention_reference(
    qkv_PBTC: Tensor, n_heads: int, n_kv_heads: int, cos_PTR: Tensor, sin_PTR: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """What :func:`~mup_tune.model.kernels.attention.attention_` writes [P, B, T, E], and what it returns."""
    rope, mask_B1TT = (cos_PTR[:, None, :, None], sin_PTR[:, None, :, None]), document_mask(documents_BT)
    heads = torch.unflatten(qkv_PBTC, -1, (n_heads + 2 * n_kv_heads, -1))
    rotated = rotate(heads[..., : n_heads + n_kv_heads, :], rope).transpose(2, 3)
    q, k = rotated.split([n_heads, n_kv_heads], 2)
    scores = q @ k.repeat_interleave(n_heads // n_kv_heads, 2).mT * q.shape[-1] ** -0.5
    lse_PBQT = scores.masked_fill(~mask_B1TT, -inf).logsumexp(-1)
    return attention(qkv_PBTC, n_heads, n_kv_heads, rope, mask_B1TT), lse_PBQT

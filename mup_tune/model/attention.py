"""Grouped-query attention with rotary embedding, members folded into heads.

Shape suffixes: P members, B rows, T tokens, H query heads, h query and key heads together, K head_dim, R =
K/2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_inverse_frequencies(base: float, head_dim: int) -> Tensor:
    """``base^(-2i/head_dim)``, [head_dim/2], in ``transformers``' own fp32 steps, so that angles agree."""
    return 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rope_table(inverse_frequencies_PR: Tensor, n_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every member's angles at positions 0 … T-1: two [P, 1, T, 1, R]."""
    positions_T = torch.arange(n_tokens, device=inverse_frequencies_PR.device, dtype=torch.float32)
    angles = (positions_T[:, None] * inverse_frequencies_PR[:, None])[:, None, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_PBThK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding over the whole head dimension; pairs are (i, i + head_dim/2), as in Llama."""
    cos, sin = rope
    first, second = x_PBThK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def document_mask(documents_BT: Tensor) -> Tensor:
    """True where a query may see a key: not later, in the same document; [B, 1, T, T], for all members."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def attention(
    qkv_PBTC: Tensor, n_heads: int, n_kv_heads: int, rope: tuple[Tensor, Tensor], mask_B1TT: Tensor | None
) -> Tensor:
    """Causal softmax attention of every member, [P, B, T, H · K].

    Args:
        qkv_PBTC: queries, keys and values of all heads side by side, multipliers already applied.
        mask_B1TT: :func:`document_mask`, or None where a row is one document.
    """
    P, B, T, _ = qkv_PBTC.shape
    qkv = torch.unflatten(qkv_PBTC, -1, (n_heads + 2 * n_kv_heads, -1))
    qk, v = torch.split(qkv, [n_heads + n_kv_heads, n_kv_heads], 3)
    q, k = torch.split(rotate(qk, rope), [n_heads, n_kv_heads], 3)
    # Member-major heads: query head p·H + i meets key head p·H_kv + i·H_kv/H, so one mask serves all members.
    q, k, v = (x.permute(1, 0, 3, 2, 4).reshape(B, P * x.shape[3], T, -1) for x in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=n_heads != n_kv_heads
    )
    return y.view(B, P, n_heads, T, -1).permute(1, 0, 3, 2, 4).reshape(P, B, T, -1)

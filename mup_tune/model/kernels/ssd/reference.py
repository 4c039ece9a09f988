"""The scan kernels' twin: :func:`mup_tune.model.ssd.ssd` with step sizes, skip and gate around it.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mup_tune.model.ssd import CHUNK, ssd


def ssd_reference(
    xBC_PBTC: Tensor,
    raw_PBTH: Tensor,
    z_PBTX: Tensor,
    dt_bias_PH: Tensor,
    A_log_PH: Tensor,
    D_PH: Tensor,
    n_heads: int,
    n_groups: int,
    d_state: int,
    documents_BT: Tensor,
) -> Tensor:
    """What :func:`~mup_tune.model.kernels.ssd.ssd` writes, [P, B, T, X]."""
    dt_PBTH = F.softplus(raw_PBTH + dt_bias_PH[:, None, None])
    x, B, C = torch.split(xBC_PBTC, [z_PBTX.shape[-1], n_groups * d_state, n_groups * d_state], -1)
    x = torch.unflatten(x, -1, (n_heads, -1))
    B, C = (torch.unflatten(each, -1, (n_groups, -1)) for each in (B, C))
    y_PBTHK = ssd(x, dt_PBTH, -A_log_PH.exp(), B, C, D_PH, documents_BT, CHUNK)
    return y_PBTHK.flatten(-2) * F.silu(z_PBTX)

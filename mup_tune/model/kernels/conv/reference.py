"""The convolution kernels' twin: SiLU of :func:`mup_tune.model.layers.causal_conv`.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mup_tune.model.layers import causal_conv


def conv_silu_reference(x_PBTC: Tensor, weight_PCk: Tensor, bias_PC: Tensor, documents_BT: Tensor) -> Tensor:
    """What :func:`~mup_tune.model.kernels.conv.conv_silu` returns."""
    return F.silu(causal_conv(x_PBTC, weight_PCk[:, :, None], bias_PC, documents_BT))

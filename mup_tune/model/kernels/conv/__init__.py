"""The causal depthwise convolution of Mamba-2 with its bias and SiLU."""

from mup_tune.model.kernels.conv.backward import conv_silu_backward
from mup_tune.model.kernels.conv.forward import conv_silu
from mup_tune.model.kernels.conv.reference import conv_silu_reference

__all__ = ["conv_silu", "conv_silu_backward", "conv_silu_reference"]

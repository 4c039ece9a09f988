"""RMSNorm after an addition to the residual stream, and in groups of channels."""

from mup_tune.model.kernels.norm.backward import add_norm_backward, group_norm_backward
from mup_tune.model.kernels.norm.forward import add_norm, group_norm
from mup_tune.model.kernels.norm.reference import add_norm_reference, group_norm_reference

__all__ = [
    "add_norm",
    "add_norm_backward",
    "add_norm_reference",
    "group_norm",
    "group_norm_backward",
    "group_norm_reference",
]

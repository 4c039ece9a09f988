"""The state-space scan of Mamba-2 with its step sizes, skip and gate."""

from mup_tune.model.kernels.ssd.backward import ssd_backward
from mup_tune.model.kernels.ssd.forward import ssd
from mup_tune.model.kernels.ssd.reference import ssd_reference

__all__ = ["ssd", "ssd_backward", "ssd_reference"]

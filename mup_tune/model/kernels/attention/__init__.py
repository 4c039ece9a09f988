"""Causal grouped-query attention with rotary embedding, within documents."""

from mup_tune.model.kernels.attention.backward import attention_backward
from mup_tune.model.kernels.attention.forward import attention_
from mup_tune.model.kernels.attention.reference import attention_reference

__all__ = ["attention_", "attention_backward", "attention_reference"]

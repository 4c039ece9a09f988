"""Importing this mends two gaps of Triton's interpreter, met by loops and bfloat16 dots."""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    """Scalars are arrays of one element, which NumPy ≥ 2.4 does not take as the bounds of a loop."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _values(handle: Any) -> Any:
    """bfloat16 is held as its bits, and a dot would multiply those."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32) if handle.dtype.scalar.is_bf16() else handle.data


def _create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    return interpreter.TensorHandle(np.matmul(_values(a), _values(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)


interpreter._patch_lang_tensor = _patch_tensor_and_index
interpreter.InterpreterBuilder.create_dot = _create_dot

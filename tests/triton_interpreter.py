"""Importing this mends two gaps of Triton's interpreter, and spares it half of its work.

The gaps are loops whose bounds are scalars, and products in bfloat16.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
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


@functools.cache
def _languages(function: Any) -> tuple[ModuleType, ...]:
    """The modules of Triton's language that a function sees, which have to be patched while it runs."""
    return tuple(each for each in (tl, tl.core) if any(value is each for value in function.__globals__.values()))


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A function called from inside a kernel. Triton would patch its language again at every call."""
    if any(tl.core.is_builtin(language.load) for language in _languages(self.fn)):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


interpreter._patch_lang_tensor = _patch_tensor_and_index
interpreter.InterpreterBuilder.create_dot = _create_dot
interpreter.InterpretedFunction.__call__ = _call
# Every sum of offsets would be computed again in 64 bits; no test is large enough to overflow.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

"""What the kernel tests share: the device, random tensors, wider buffers, and nearness to a float64 twin."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Norm-wise relative distance allowed. Inputs are the twin's own, so bf16 adds the rounding of a result alone:
# at most 2^-8 compiled, 2^-7 in Triton's interpreter, which cuts bits off.
BOUND = {torch.float32: 3e-5, torch.bfloat16: 2.0**-8 if DEVICE == "cuda" else 2.0**-7}
DTYPES = pytest.mark.parametrize("dtype", BOUND, ids=str)


@pytest.fixture(scope="module")
def nan_memory() -> Iterator[None]:
    """``torch.empty`` gives NaN, so that reading what nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*size, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(seed)).to(dtype)


def random_documents(B: int, T: int, mean_length: float, seed: int = 0) -> Tensor:
    starts = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 1 / mean_length
    starts[:, 0] = False
    return starts.cumsum(1).to(DEVICE, torch.int32)


def columns(values: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """``values`` as a column slice of a wider buffer that is NaN elsewhere; the slice and the buffer."""
    buffer = values.new_full((*values.shape[:-1], before + values.shape[-1] + after), nan)
    view = buffer[..., before : before + values.shape[-1]]
    view.copy_(values)
    return view, buffer


class Parts:
    """Where programs leave their parts of a gradient, [members, programs, width], NaN at first."""

    def __init__(self, members: int, width: int) -> None:
        self._size = members, width

    def __call__(self, programs: int) -> Tensor:
        self._parts = torch.full((self._size[0], programs, self._size[1]), nan, device=DEVICE)
        return self._parts

    def sum(self) -> Tensor:
        return self._parts.sum(1)


def twin(value: Tensor) -> Tensor:
    """A float64 leaf of the same values."""
    return value.detach().double().requires_grad_()


def assert_near(actual: Tensor, expected: Tensor | None, dtype: torch.dtype) -> None:
    """``actual`` is of this dtype and within its bound of ``expected``."""
    assert expected is not None
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    distance, size = torch.linalg.vector_norm(actual.double() - expected), torch.linalg.vector_norm(expected)
    assert distance <= BOUND[dtype] * size + 1e-30, f"relative distance {distance / size:g}"

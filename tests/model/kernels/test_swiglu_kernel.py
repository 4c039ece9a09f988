from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import DEVICE, DTYPES, assert_near, nan_memory, normal, twin  # noqa: F401
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.swiglu import swiglu, swiglu_backward, swiglu_reference

pytestmark = pytest.mark.usefixtures("nan_memory")


def check(h_PN2F: Tensor, d_PNF: Tensor) -> None:
    h_twin = twin(h_PN2F)
    out_twin = swiglu_reference(h_twin)
    (out_twin * d_PNF.double()).sum().backward()
    assert_near(swiglu(h_PN2F), out_twin, h_PN2F.dtype)
    assert_near(swiglu_backward(d_PNF, h_PN2F), h_twin.grad, h_PN2F.dtype)


@DTYPES
@settings(max_examples=5)
@given(P=st.integers(1, 3), N=st.integers(1, 40), width=st.integers(1, 600))
def test_output_and_gradient(P: int, N: int, width: int, dtype: torch.dtype) -> None:
    check(normal(P, N, 2 * width, dtype=dtype), normal(P, N, width, dtype=dtype, seed=1))


@DTYPES
def test_gates_far_out_saturate(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], device=DEVICE)
    h = torch.cat([gate, torch.full_like(gate, 3.0)]).to(dtype)[None, None]
    check(h, torch.ones(1, 1, 7, device=DEVICE, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
@DTYPES
@pytest.mark.parametrize(("P", "width"), [(1, 512), (16, 512), (2, 1024), (1, 2048), (1, 1920)])
def test_true_sizes(P: int, width: int, dtype: torch.dtype) -> None:
    N = 16384 // P
    check(normal(P, N, 2 * width, dtype=dtype), normal(P, N, width, dtype=dtype, seed=1))

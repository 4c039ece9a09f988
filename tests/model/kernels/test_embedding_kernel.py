from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import DEVICE, assert_near, nan_memory, normal, twin  # noqa: F401

pytest.importorskip("triton")
from mup_tune.model.kernels.embedding import embed, embed_backward, embed_reference

pytestmark = pytest.mark.usefixtures("nan_memory")


def check(P: int, N: int, V: int, D: int, seed: int = 0) -> None:
    weight, scale, d = normal(P, V, D), normal(P, seed=1), normal(P, N, D, seed=2)
    tokens = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    weight_twin = twin(weight)
    out_twin = embed_reference(weight_twin, scale.double(), tokens)
    (out_twin * d.double()).sum().backward()

    assert_near(embed(weight, scale, tokens), out_twin, torch.float32)
    assert weight_twin.grad is not None
    grad = torch.zeros_like(weight)
    embed_backward(d, scale, tokens, grad)
    assert_near(grad, weight_twin.grad, torch.float32)
    embed_backward(d, scale, tokens, grad)  # adds to what is there
    assert_near(grad, 2 * weight_twin.grad, torch.float32)


@settings(max_examples=6)
@given(P=st.integers(1, 3), N=st.integers(1, 50), V=st.integers(1, 40), D=st.integers(1, 300), seed=st.integers(0, 99))
def test_rows_and_summed_gradients(P: int, N: int, V: int, D: int, seed: int) -> None:
    check(P, N, V, D, seed)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
@pytest.mark.parametrize(("P", "D"), [(1, 256), (16, 256), (2, 512), (1, 1024), (1, 1000)])
def test_true_sizes(P: int, D: int) -> None:
    check(P, 16384, 32768, D)

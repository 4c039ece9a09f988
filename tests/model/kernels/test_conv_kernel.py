from __future__ import annotations

from math import nan

import pytest
import torch
from near import (  # noqa: F401
    DEVICE,
    DTYPES,
    Parts,
    assert_near,
    columns,
    nan_memory,
    normal,
    random_documents,
    twin,
)
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.conv import conv_silu, conv_silu_backward, conv_silu_reference, forward

pytestmark = pytest.mark.usefixtures("nan_memory")


def check(P: int, documents: Tensor, C: int, taps: int, dtype: torch.dtype) -> None:
    B, T = documents.shape
    x, x_buffer = columns(normal(P, B, T, C, dtype=dtype), 8, 3)
    d_y, _ = columns(normal(P, B, T, C, dtype=dtype, seed=1), 0, 5)
    d_x, d_x_buffer = columns(torch.full_like(x, nan), 16, 8)
    weight, bias = normal(P, C, taps, seed=2), normal(P, C, seed=3)

    x_twin, weight_twin, bias_twin = twin(x), twin(weight), twin(bias)
    y_twin = conv_silu_reference(x_twin, weight_twin, bias_twin, documents)
    (y_twin * d_y.double()).sum().backward()

    y = conv_silu(x, weight, bias, documents)
    assert y.is_contiguous()
    assert_near(y, y_twin, dtype)
    weight_parts, bias_parts, zeroed = Parts(P, C * taps), Parts(P, C), d_x_buffer[..., 16 + C : 16 + C + 5]
    conv_silu_backward(d_y, x, weight, bias, documents, d_x, zeroed, weight_parts, bias_parts)
    d_weight, d_bias = weight_parts.sum().view(P, C, taps), bias_parts.sum()
    assert_near(d_x, x_twin.grad, dtype)
    assert_near(d_weight, weight_twin.grad, torch.float32)
    assert_near(d_bias, bias_twin.grad, torch.float32)
    assert d_x_buffer[..., :16].isnan().all()
    assert (zeroed == 0).all()
    assert d_x_buffer[..., 16 + C + 5 :].isnan().all()
    assert x_buffer[..., :8].isnan().all()


@DTYPES
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
def test_output_and_gradients(taps: int, dtype: torch.dtype) -> None:
    check(2, random_documents(1, 45, 12), 24, taps, dtype)


@pytest.mark.parametrize("mean_length", [1.0, 3.0, 1e9])
@pytest.mark.parametrize("T", [1, 3, 16, 35])
def test_runs_blocks_and_documents_meet_anywhere(T: int, mean_length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CHANNELS": 4, "RUNS": (8,), "PROGRAMS": 1, "CHUNK": 4}.items():
        monkeypatch.setattr(forward, name, value)
    check(1, random_documents(1, T, mean_length, seed=T), 6, 4, torch.float32)


def test_more_channels_than_a_program_takes() -> None:
    check(1, random_documents(1, 131, 40), 130, 4, torch.bfloat16)


def test_a_dead_member_and_a_dead_row_stay_alone() -> None:
    documents = random_documents(2, 9, 1e9)
    x, d_y = normal(2, 2, 9, 8), normal(2, 2, 9, 8, seed=1)
    weight, bias, d_x = normal(2, 8, 4, seed=2), normal(2, 8, seed=3), torch.full_like(x, nan)
    x[1, 0, 3] = nan
    y = conv_silu(x, weight, bias, documents)
    weight_parts, bias_parts = Parts(2, 8 * 4), Parts(2, 8)
    conv_silu_backward(d_y, x, weight, bias, documents, d_x, d_x[..., 8:], weight_parts, bias_parts)
    for value in (y[0], y[1, 1], y[1, 0, :3], d_x[0], d_x[1, 1], weight_parts.sum()[0], bias_parts.sum()[0]):
        assert value.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
@DTYPES
@pytest.mark.parametrize(
    ("P", "B", "T", "C"),
    [(1, 16, 1024, 384), (16, 4, 1024, 384), (2, 16, 1024, 640), (1, 16, 1024, 1152), (2, 3, 999, 200)],
)
def test_true_sizes(P: int, B: int, T: int, C: int, dtype: torch.dtype) -> None:
    check(P, random_documents(B, T, 300), C, 4, dtype)

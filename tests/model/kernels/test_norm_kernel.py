from __future__ import annotations

from math import nan

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from near import DEVICE, DTYPES, Parts, assert_near, columns, nan_memory, normal, twin  # noqa: F401

pytest.importorskip("triton")
from mup_tune.model.kernels.norm import (
    add_norm,
    add_norm_backward,
    add_norm_reference,
    backward,
    group_norm,
    group_norm_backward,
    group_norm_reference,
)

pytestmark = pytest.mark.usefixtures("nan_memory")
FP32 = torch.float32


def check_add_norm(P: int, N: int, D: int, dtype: torch.dtype, with_branch: bool, other_way: bool) -> None:
    residual, weight = normal(P, N, D) / 100, 1 + normal(P, D, seed=1)  # so small that eps shows
    branch = normal(P, N, D, dtype=dtype, seed=2) / 128 if with_branch else None
    d_summed = normal(P, N, D, seed=3) if other_way else None
    d_normed = normal(P, N, D, dtype=dtype, seed=4)

    residual_twin, weight_twin = twin(residual), twin(weight)
    branch_twin = None if branch is None else branch.double()
    summed_twin, normed_twin = add_norm_reference(residual_twin, branch_twin, weight_twin)
    scalar = (normed_twin * d_normed.double()).sum()
    scalar = scalar if d_summed is None else scalar + (summed_twin * d_summed.double()).sum()
    scalar.backward()

    summed, normed, rstd = add_norm(residual, branch, weight, dtype)
    assert_near(summed, summed_twin, FP32)
    assert (summed is residual) == (branch is None)
    assert_near(normed, normed_twin, dtype)
    branch_dtype = dtype if with_branch else None
    parts = Parts(P, D)
    d_in, d_branch = add_norm_backward(d_summed, d_normed, summed, rstd, weight, branch_dtype, parts)
    assert_near(d_in, residual_twin.grad, FP32)
    assert_near(parts.sum(), weight_twin.grad, FP32)
    assert (d_branch is None) == (branch is None)
    if d_branch is not None:
        assert_near(d_branch, residual_twin.grad, dtype)


@DTYPES
@pytest.mark.parametrize("with_branch", [True, False])
@pytest.mark.parametrize("other_way", [True, False])
def test_addition_and_norm_and_gradients(dtype: torch.dtype, with_branch: bool, other_way: bool) -> None:
    check_add_norm(2, 37, 96, dtype, with_branch, other_way)


@settings(max_examples=6)
@example(P=1, N=3, D=5120)
@given(P=st.integers(1, 3), N=st.integers(1, 40), D=st.integers(2, 300))
def test_any_size(P: int, N: int, D: int) -> None:
    check_add_norm(P, N, D, torch.bfloat16, True, True)


@pytest.mark.parametrize("programs", [1, 3])
def test_a_program_that_takes_several_tiles(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "PROGRAMS", programs)
    check_add_norm(1, 75, 250, FP32, True, True)


@DTYPES
@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_groups_in_wider_buffers(dtype: torch.dtype, n_groups: int) -> None:
    P, N, C = 2, 21, 48
    y, y_buffer = columns(normal(P, N, C, dtype=dtype), 3, 8)
    d_out, _ = columns(normal(P, N, C, dtype=dtype, seed=1), 8, 0)
    out, out_buffer = columns(torch.full_like(y, nan), 0, 5)
    weight = 1 + normal(P, C, seed=2)
    y_twin, weight_twin = twin(y), twin(weight)
    out_twin = group_norm_reference(y_twin, weight_twin, n_groups)
    (out_twin * d_out.double()).sum().backward()

    rstd = group_norm(y, weight, n_groups, out)
    assert rstd.shape == (P, N, n_groups)
    assert_near(out, out_twin, dtype)
    assert out_buffer[..., C:].isnan().all()
    parts = Parts(P, C)
    d_y = group_norm_backward(d_out, rstd, y, weight, n_groups, parts)
    assert d_y.is_contiguous()
    assert_near(d_y, y_twin.grad, dtype)
    assert_near(parts.sum(), weight_twin.grad, FP32)
    assert y_buffer[..., :3].isnan().all()


def test_a_dead_member_stays_alone() -> None:
    residual, weight = normal(3, 9, 40), torch.ones(3, 40, device=DEVICE)
    residual[1, 4, 7] = nan
    _, normed, rstd = add_norm(residual, None, weight, FP32)
    parts = Parts(3, 40)
    d_in, _ = add_norm_backward(None, normed, residual, rstd, weight, None, parts)
    for value in (normed, d_in, parts.sum()):
        assert value[[0, 2]].isfinite().all()
        assert value[1].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
@DTYPES
@pytest.mark.parametrize(("P", "D"), [(1, 256), (16, 256), (2, 512), (1, 1024), (1, 1536), (1, 5120)])
def test_true_sizes(P: int, D: int, dtype: torch.dtype) -> None:
    check_add_norm(P, 16384 // (1 + D // 2048 + P // 4), D, dtype, True, True)

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.loss import nll, nll_and_grad_, nll_reference
from mup_tune.trial import IGNORED_TARGET

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
# relative error of a gradient row that is rounded once to the dtype; Triton's interpreter cuts bits off
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3 if DEVICE == "cuda" else 8e-3}


def reference(logits_PNV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and gradients in float64, by autograd."""
    logits = logits_PNV.double().requires_grad_()
    nll_PN = nll_reference(logits, targets_N)
    (grad,) = torch.autograd.grad(nll_PN.sum(), logits)
    return nll_PN.detach(), grad


def draw(P: int, N: int, V: int, dtype: torch.dtype, seed: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits in rows of a wider buffer that is NaN between them, and targets with some ignored."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    wider = torch.full((P, N, V + 16), nan, dtype=dtype, device=DEVICE)
    logits_PNV = wider[:, :, :V]
    logits_PNV.normal_(0, spread, generator=generator)
    targets_N = torch.randint(V, (N,), generator=generator, device=DEVICE)
    return logits_PNV, targets_N.where(torch.arange(N, device=DEVICE) % 4 != 1, IGNORED_TARGET)


def check(logits_PNV: Tensor, targets_N: Tensor) -> None:
    expected_PN, grad_PNV = reference(logits_PNV, targets_N)
    scale = torch.tensor(1 / 7, device=DEVICE)
    only_PN = nll(logits_PNV, targets_N)
    found_PN = nll_and_grad_(logits_PNV, targets_N, scale)
    assert only_PN.dtype == torch.float32
    torch.testing.assert_close(only_PN.double(), expected_PN, rtol=2e-6, atol=5e-6)
    assert torch.equal(found_PN, only_PN)
    error_PN = (logits_PNV.double() - grad_PNV / 7).norm(dim=-1)
    assert (error_PN <= ROUNDING[logits_PNV.dtype] * grad_PNV.norm(dim=-1) / 7 + 5e-7 / 7).all()  # p − 1 cancels
    assert (logits_PNV[:, targets_N == IGNORED_TARGET] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [2, 64, 4095, 9001, 16384, 32784])  # below, at, and over one block; aligned and not
def test_loss_and_gradient_are_those_of_float64_cross_entropy(V: int, dtype: torch.dtype) -> None:
    check(*draw(2, 3, V, dtype, seed=V))


@settings(max_examples=10)
@given(V=st.integers(1, 700), N=st.integers(1, 3), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_any_vocabulary(V: int, N: int, seed: int, dtype: torch.dtype) -> None:
    check(*draw(1, N, V, dtype, seed))


def test_nothing_between_the_rows_is_read_or_written() -> None:
    logits_PNV, targets_N = draw(2, 4, 50, torch.float32, seed=0)
    nll_PN = nll_and_grad_(logits_PNV, targets_N, torch.tensor(1.0, device=DEVICE))
    assert nll_PN.isfinite().all()
    assert logits_PNV.isfinite().all()
    between = logits_PNV.as_strided((2, 4, 16), (4 * 66, 66, 1), 50)
    assert between.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_impossible_logits(dtype: torch.dtype) -> None:
    """Neither overflow nor underflow: only differences count, and -inf is a token of probability 0."""
    logits_PNV, _ = draw(1, 3, 5000, dtype, seed=1, spread=2e4)
    logits_PNV[0, 1, 7:] = -inf
    logits_PNV[0, 2] -= 1e30
    check(logits_PNV, torch.tensor([4, 3, 2], device=DEVICE))


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_bad_logit_spoils_its_own_token_and_no_ignored_one(bad: float) -> None:
    logits_PNV, _ = draw(2, 3, 9001, torch.float32, seed=2)
    logits_PNV[1, 0, 8000] = logits_PNV[1, 1, 5] = bad
    targets_N = torch.tensor([3, IGNORED_TARGET, 4], device=DEVICE)
    found_PN = nll_and_grad_(logits_PNV, targets_N, torch.tensor(1.0, device=DEVICE))
    assert found_PN.isnan().tolist() == [[False] * 3, [True, False, False]]
    assert found_PN[1, 1] == 0
    assert (logits_PNV[:, 1] == 0).all()
    assert logits_PNV[0].isfinite().all()
    assert logits_PNV[1, 2].isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("V", "N"), [(32768, 1024), (65537, 512), (130048, 256), (261120, 128)])
def test_true_sizes(V: int, N: int, dtype: torch.dtype) -> None:
    check(*draw(2, N, V, dtype, seed=V))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_more_than_2_to_31_logits() -> None:
    logits_PNV = torch.zeros(2, 40_000, 32768, dtype=torch.bfloat16, device=DEVICE)
    targets_N = torch.arange(40_000, device=DEVICE) % 32768
    last_PNV, expected = logits_PNV[1:, -3:], draw(1, 3, 32768, torch.bfloat16, seed=3)[0]
    last_PNV.copy_(expected)
    found_PN = nll_and_grad_(logits_PNV, targets_N, torch.tensor(1.0, device=DEVICE))
    expected_PN, grad_PNV = reference(expected, targets_N[-3:])
    torch.testing.assert_close(found_PN[1:, -3:].double(), expected_PN, rtol=2e-6, atol=5e-6)
    torch.testing.assert_close(last_PNV.double(), grad_PNV, rtol=4e-3, atol=1e-9)

"""The chunked scan equals its naive twin: one token after the other, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mup_tune.model.ssd import ssd


def naive_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, documents: Tensor | None) -> Tensor:
    """The recurrence as it is written; x [P, B, T, H, K]."""
    P, rows, T, H, K = x.shape
    B, C = (t.repeat_interleave(H // t.shape[3], dim=3) for t in (B, C))
    state = x.new_zeros(P, rows, H, K, B.shape[-1])
    outputs = []
    for t in range(T):
        if t and documents is not None:
            starts = (documents[:, t] != documents[:, t - 1])[None, :, None, None, None]
            state = torch.where(starts, torch.zeros_like(state), state)
        decay = (dt[:, :, t] * A[:, None]).exp()[..., None, None]
        state = decay * state + (dt[:, :, t, :, None] * x[:, :, t])[..., None] * B[:, :, t, :, None]
        outputs.append((state * C[:, :, t, :, None]).sum(-1) + D[:, None, :, None] * x[:, :, t])
    return torch.stack(outputs, 2)


def random_inputs(T: int, G: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    P, rows, H, K, N = 2, 2, 4, 3, 5
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    dt, A = F.softplus(normal(P, rows, T, H) - 1), -(2 * normal(P, H)).exp()
    inputs = [normal(P, rows, T, H, K), dt, A, normal(P, rows, T, G, N), normal(P, rows, T, G, N), normal(P, H)]
    return [t.to(dtype).requires_grad_() for t in inputs]


def packed(T: int, lengths: list[int]) -> Tensor:
    """Two rows: one cut into documents of these lengths, over and over, the other whole."""
    cut = torch.repeat_interleave(torch.arange(T), torch.tensor(lengths * T)[:T])[:T]
    return torch.stack([cut, torch.zeros_like(cut)])


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 30),
    chunk=st.sampled_from([1, 2, 8, 32]),
    G=st.sampled_from([1, 2, 4]),
    lengths=st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_outputs_and_gradients_equal_the_naive_scan(T: int, chunk: int, G: int, lengths: list[int] | None) -> None:
    documents = None if lengths is None else packed(T, lengths)
    ours, naive = random_inputs(T, G, torch.float64), random_inputs(T, G, torch.float64)
    y, expected = ssd(*ours, documents, chunk), naive_scan(*naive, documents)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    y.backward(upstream)
    expected.backward(upstream)
    for name, mine, other in zip(("x", "dt", "A", "B", "C", "D"), ours, naive, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("documents", [None, packed(100, [13, 1, 40])], ids=["one_document", "packed"])
def test_fp32_stays_near_the_fp64_scan(documents: Tensor | None) -> None:
    ours, exact = random_inputs(100, 2, torch.float32), random_inputs(100, 2, torch.float64)
    y, expected = ssd(*ours, documents, 32), naive_scan(*exact, documents)
    assert y.dtype == torch.float32
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    y.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours, exact, strict=True):
        assert (mine.grad - other.grad).norm() < 2e-5 * other.grad.norm()


def test_strong_decay_neither_overflows_nor_poisons_gradients() -> None:
    x, dt, A, B, C, D = random_inputs(64, 1, torch.float32)
    with torch.no_grad():
        dt.fill_(50.0)
        A.fill_(-16.0)
    y = ssd(x, dt, A, B, C, D, None, 16)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, dt, A, B, C, D))


def test_low_precision_inputs_are_scanned_in_fp32() -> None:
    inputs = [t.detach().bfloat16() for t in random_inputs(16, 1, torch.float32)]
    y = ssd(*inputs, None, 8)
    assert y.dtype == torch.float32
    assert torch.equal(y, ssd(*(t.float() for t in inputs), None, 8))

"""The fused loss, the convolution and the norms against PyTorch's own operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mup_tune.model import layers
from mup_tune.model.layers import causal_conv, linear_nll, rms_norm

P, B, T, D, V = 3, 2, 7, 5, 11


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_nll(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """F.cross_entropy, member by member and row by row."""
    rows = [
        [F.cross_entropy(h[p, b] @ weight[p].T, targets[b], ignore_index=-100, reduction="sum") for b in range(B)]
        for p in range(P)
    ]
    return torch.stack([torch.stack(row) for row in rows])


UPSTREAM = {
    "sum": lambda nll: nll.sum(),
    "mean_of_member_means": lambda nll: (nll.sum(1) / 5).sum(),
    "members_weighted": lambda nll: (nll * normal(P, 1, seed=7)).sum(),
    "rows_weighted": lambda nll: (nll * normal(P, B, seed=8)).sum(),
    "square": lambda nll: nll.square().sum(),
    "one_row": lambda nll: nll[1, 1],
}


@pytest.mark.parametrize("at_once", [1, 4 * P * V, 5 * P * V, 10**6])
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_fused_loss_equals_cross_entropy(monkeypatch: pytest.MonkeyPatch, upstream: str, at_once: int) -> None:
    monkeypatch.setitem(layers.LOGITS_AT_ONCE, "cpu", at_once)
    targets = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))
    targets[0, 2] = targets[1, -1] = -100
    sides = []
    for function in (linear_nll, plain_nll):
        h, weight = normal(P, B, T, D).requires_grad_(), normal(P, V, D, seed=1).requires_grad_()
        nll = function(h, weight, targets)
        UPSTREAM[upstream](nll).backward()
        sides.append((nll.detach(), h.grad, weight.grad))
    for found, expected in zip(*sides, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(linear_nll(h, weight, targets), sides[0][0], rtol=1e-12, atol=0)


class Watched(TorchFunctionMode):
    """Elements of the largest tensor that any operation gives, and how many chunks of logits there were."""

    largest = logits = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
            self.logits += func is torch.bmm and result.shape[-1] == V
        return result


def test_fused_loss_never_holds_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.LOGITS_AT_ONCE, "cpu", 4 * P * V)
    h, weight = normal(P, B, T, 3).requires_grad_(), normal(P, V, 3, seed=1)  # both are smaller
    with Watched() as made:
        nll = linear_nll(h, weight, torch.zeros(B, T, dtype=torch.long))
        assert made.logits == -(-B * T // 4)  # one pass while the loss is taken,
        nll.sum().backward()
        assert made.logits == -(-B * T // 4)  # and a plain sum needs no second one
    assert made.largest == 4 * P * V


def test_fused_loss_of_huge_logits_and_of_ignored_rows() -> None:
    h, weight = 1e4 * normal(P, B, T, D).requires_grad_(), normal(P, V, D, seed=1)
    targets = torch.full((B, T), -100)
    assert torch.equal(linear_nll(h, weight, targets), torch.zeros(P, B, dtype=torch.float64))
    assert linear_nll(h, weight, targets.clamp(min=0)).isfinite().all()


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 12), kernel=st.integers(1, 5), cuts=st.lists(st.booleans(), min_size=12, max_size=12))
def test_convolution_is_conv1d_on_each_document(length: int, kernel: int, cuts: list[bool]) -> None:
    documents = torch.tensor([cuts, [False] * 12])[:, :length].cumsum(1)
    sides = []
    for ours in (True, False):
        x = normal(P, B, length, D).requires_grad_()
        weight, bias = normal(P, D, 1, kernel, seed=1).requires_grad_(), normal(P, D, seed=2).requires_grad_()
        if ours:
            y = causal_conv(x, weight, bias, documents)
        else:
            members = []
            for p in range(P):
                rows = []
                for b in range(B):
                    parts = torch.split(x[p, b], torch.unique_consecutive(documents[b], return_counts=True)[1].tolist())
                    padded = [F.pad(part.T, (kernel - 1, 0)) for part in parts]
                    rows.append(torch.cat([F.conv1d(part, weight[p], bias[p], groups=D) for part in padded], 1).T)
                members.append(torch.stack(rows))
            y = torch.stack(members)
        (y * normal(*y.shape, seed=3)).sum().backward()
        sides.append((y.detach(), x.grad, weight.grad, bias.grad))
    for found, expected in zip(*sides, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rms_norm_takes_each_group_on_its_own() -> None:
    x, weight = normal(P, B, T, 6), normal(P, 6, seed=1)
    for groups in (1, 2, 3):
        parts = [F.rms_norm(part, part.shape[-1:], eps=1e-5) for part in x.chunk(groups, -1)]
        torch.testing.assert_close(rms_norm(x, weight, groups), torch.cat(parts, -1) * weight[:, None, None])

"""The self-test passes what is right and fails what is subtly wrong."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from mup_tune.checks import backends as checks
from mup_tune.model import attention, backends, falcon_h1, layers, ssd
from mup_tune.model.falcon_h1 import Population

checks.expected()  # before anything is made to go wrong


def test_pytorch_passes_in_float32_and_is_not_compared_with_itself() -> None:
    found = checks.tested("torch", "cpu", torch.float32)
    assert found.passed, found
    assert found.why == ""
    assert found.loss_error is not None
    assert found.gradient_error is not None
    assert 0 < found.loss_error < 1e-6
    assert 1e-7 < found.gradient_error < 1e-4


def test_pytorch_in_bfloat16_stays_inside_the_tolerance_of_bfloat16() -> None:
    found = checks.tested("torch", "cpu", torch.bfloat16)
    assert found.passed, found
    assert found.gradient_error is not None
    assert found.gradient_error > checks.TOLERANCES[torch.float32].gradient


def test_all_gradients_are_compared_and_none_is_zero() -> None:
    _, exact = checks.expected()
    assert set(exact) == {name for name, _ in Population(checks.SHAPE, 1, device="meta").named_parameters()}
    for name, gradient in exact.items():
        assert (gradient.flatten(1).norm(dim=1) > 0).all(), name


def one_document(function: Callable[..., Tensor], position: int) -> Callable[..., Tensor]:
    """``function`` that does not hear of documents."""

    def deaf(*args: Any) -> Tensor:
        return function(*args[:position], None, *args[position + 1 :])

    return deaf


def tf32(x: Tensor) -> Tensor:
    """Ten bits of mantissa, gradients as they are."""
    rounded = ((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return x + (rounded - x).detach()


def carries_nothing(state_PBcGNX: Tensor, across_PBHcc: Tensor, n_heads: int) -> Tensor:
    return torch.zeros_like(state_PBcGNX)


def rounded_linear(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    return layers.linear(tf32(x), tf32(weight), scale)


def doubled_keys(self: Population) -> dict[str, Tensor]:
    scales = scales_of(self)
    return scales | {"qkv": scales["qkv"].flip(0)}


scales_of = Population.weight_scales


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "the convolution looks across documents": (falcon_h1, "causal_conv", one_document(layers.causal_conv, 3)),
    "attention looks across documents": (attention, "document_mask", lambda documents: None),
    "the state crosses documents": (falcon_h1.SCANS["torch"], "ssd", one_document(ssd.ssd, 6)),
    "no state crosses chunks": (ssd, "_carry", carries_nothing),
    "products in TF32": (falcon_h1, "linear", rounded_linear),
    "members swap their key multipliers": (Population, "weight_scales", doubled_keys),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    found = checks.tested("torch", "cpu", torch.float32)
    assert not found.passed, found
    assert found.worst in found.why


def test_losses_alone_being_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checks.losses_and_gradients

    def off(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss_P, gradients = right(*args)
        return loss_P * torch.tensor([1.0, 1.0001]), gradients

    monkeypatch.setattr(checks, "losses_and_gradients", off)
    found = checks.tested("torch", "cpu", torch.float32)
    assert not found.passed
    assert found.loss_error == pytest.approx(1e-4, rel=0.01)


def test_nan_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checks.losses_and_gradients

    def spoiled(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss_P, gradients = right(*args)
        gradients["layers.1.D"][1, 0] = float("nan")
        return loss_P, gradients

    monkeypatch.setattr(checks, "losses_and_gradients", spoiled)
    found = checks.tested("torch", "cpu", torch.float32)
    assert not found.passed
    assert (found.worst, found.gradient_error) == ("layers.1.D", inf)


def test_what_raises_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no kernel image\nand much more")

    monkeypatch.setattr(layers._CausalConv, "apply", broken)
    found = checks.tested("torch", "cpu", torch.float32)
    assert (found.passed, found.loss_error, found.gradient_error) == (False, None, None)
    assert found.why == "RuntimeError: no kernel image"


def test_only_what_can_run_is_tested() -> None:
    tested = [(found.backend, found.device) for found in checks.self_test() if found.device == "cpu"]
    assert tested == [("torch", "cpu")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_every_backend_passes_on_a_gpu() -> None:
    tested = [found for found in checks.self_test() if found.device == "cuda:0"]
    present = {name for name in backends.BACKENDS if backends.missing(name, "cuda:0") is None}
    assert {found.backend for found in tested} == present >= {"triton", "torch"}
    assert [found for found in tested if not found.passed] == []

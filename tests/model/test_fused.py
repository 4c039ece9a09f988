"""The step in kernels is the population: losses and gradients of every kind of Shape, rows packed."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from random_models import random_population, random_tokens, variant

pytest.importorskip("triton")

from mup_tune.model.falcon_h1 import Population
from mup_tune.model.fused import FusedPopulation
from mup_tune.shape import Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DOCUMENTS = torch.tensor([[0] * 4 + [1] + [2] * 8, [0] * 13], dtype=torch.int32)

CASES = [variant(block_order=order, gated_norm=order != "SAM", n_layers=1) for order in ("SA_M", "SAM", "S_A_M")]
CASES += [variant(d_ssm=0), variant(n_groups=1, n_heads=2, conv_kernel=2, d_model=40, vocab_size=50)]


def reference(population: Population, *batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean losses and gradients in float64, by PyTorch."""
    exact = copy.deepcopy(population).double()
    loss_P = exact.nll(*batch).sum(1) / (batch[1] >= 0).sum()
    loss_P.sum().backward()
    return loss_P.detach(), {name: parameter.grad for name, parameter in exact.named_parameters()}


def batch_of(shape: Shape) -> list[torch.Tensor]:
    return [*random_tokens(shape, 2, 13), DOCUMENTS]


def on_device(batch: list[torch.Tensor]) -> list[torch.Tensor]:
    return [each.to(DEVICE) for each in batch]


@pytest.mark.parametrize(
    "shape", CASES, ids=lambda s: f"{s.block_order}-{'gated' if s.gated_norm else s.d_ssm}-{s.n_groups}"
)
def test_losses_and_gradients_are_the_populations(shape: Shape) -> None:
    population = random_population(shape, 2, seed=4)
    batch = batch_of(shape)
    expected_P, gradients = reference(population, *batch)
    fused = FusedPopulation(population.to(DEVICE), torch.float32)
    loss_P = fused.loss_and_gradients(*on_device(batch)).cpu()
    torch.testing.assert_close(loss_P.double(), expected_P, rtol=1e-5, atol=0)
    found = fused.gradients()
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert found[name].shape == gradient.shape, name
        assert (found[name].cpu() - gradient).norm() < 2e-4 * gradient.norm(), name


def test_losses_in_bfloat16_are_near() -> None:
    population = random_population(variant(n_layers=1), 2, seed=1)
    batch = batch_of(population.shape)
    expected_P, gradients = reference(population, *batch)
    fused = FusedPopulation(population.to(DEVICE), torch.bfloat16)
    loss_P = fused.loss_and_gradients(*on_device(batch)).cpu()
    torch.testing.assert_close(loss_P.double(), expected_P, rtol=2e-2, atol=0)
    found = torch.cat([fused.gradients()[name].cpu().flatten().double() for name in gradients])
    exact = torch.cat([each.flatten() for each in gradients.values()])
    # The interpreter truncates to bfloat16, a GPU rounds.
    assert (found - exact).norm() < (0.05 if DEVICE == "cuda" else 0.12) * exact.norm()


def test_validation_losses_are_the_populations_on_rows_of_any_length() -> None:
    population = random_population(variant(n_layers=1), 2, seed=2)
    exact = copy.deepcopy(population).double()
    fused = FusedPopulation(population.to(DEVICE), torch.float32)
    for rows, length in ((2, 13), (1, 22)):
        batch = random_tokens(population.shape, rows, length)
        found = fused.nll(*on_device(list(batch))).cpu()
        torch.testing.assert_close(found.double(), exact.nll(*batch).detach(), rtol=1e-5, atol=1e-5)


def test_a_member_of_nan_leaves_the_others_bitwise_as_they_are() -> None:
    population = random_population(variant(gated_norm=True, n_layers=1), 3, seed=3)
    batch = on_device(batch_of(population.shape))
    results = []
    for poisoned in (False, True):
        each = copy.deepcopy(population)
        if poisoned:
            with torch.no_grad():
                for parameter in each.parameters():
                    parameter[1] = float("nan")
        fused = FusedPopulation(each.to(DEVICE), torch.float32)
        loss_P = fused.loss_and_gradients(*batch)
        results.append({"loss": loss_P.clone(), **fused.gradients()})
    clean, beside = results
    assert beside["loss"][1].isnan()
    for name in clean:
        for member in (0, 2):
            # The look-up's gradients are added up in any order on a GPU.
            exactly = DEVICE == "cpu" or name != "embedding_weight"
            close = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(beside[name][member], clean[name][member], **close)


def test_parameters_are_views_that_training_and_exports_share() -> None:
    population = random_population(variant(), 2, seed=5)
    before = {name: parameter.detach().clone() for name, parameter in population.named_parameters()}
    fused = FusedPopulation(population, torch.float32)
    for name, parameter in population.named_parameters():
        assert torch.equal(parameter, before[name]), name
    banks = fused.storage.banks
    for bank in banks:
        bank.master.fill_(7.0)
    assert all(bool((parameter == 7).all()) for parameter in population.parameters())
    places = [place for bank in banks for place in bank.places]
    assert sorted(place.parameter for place in places) == sorted(before)


@pytest.mark.parametrize("gated", [False, True])
def test_a_forward_pass_without_its_backward_is_forgotten(gated: bool) -> None:
    """As after running out of memory half-way: what the pass saved must not keep itself alive."""
    population = random_population(variant(gated_norm=gated, n_layers=1), 1, seed=6)
    fused = FusedPopulation(population.to(DEVICE), torch.float32)
    tokens, _, documents = on_device(batch_of(population.shape))
    embedded = fused._embed(tokens).requires_grad_()
    hidden = fused._hidden(embedded, documents)
    seen = weakref.ref(hidden.grad_fn), weakref.ref(embedded)
    del hidden, embedded
    gc.collect()
    assert [each() for each in seen] == [None, None]

"""Members are what they would be alone, documents do not see each other, and no multiplier is dead."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import TINY, random_population, random_table, random_tokens, variant

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.multipliers import FORWARD
from mup_tune.shape import Shape

ATTENTION_ONLY = variant(d_ssm=0)
LENGTH = 21
DOCUMENTS = torch.tensor([[0] * 7 + [1] + [2] * 13, [0] * 21])


def alone(population: Population, member: int, seed: int) -> Population:
    """The same member as a population of one."""
    single = Population(population.shape, 1, ssd_chunk=8)
    single.set_roles([random_table(population.shape, seed + member)])
    hf.load_state_dict_(single, 0, hf.state_dict(population, member))
    return single


@pytest.mark.parametrize("shape", [TINY, variant(gated_norm=True), ATTENTION_ONLY], ids=["ssm", "gated", "attention"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one_document", "packed"])
def test_fused_members_equal_members_alone(shape: Shape, documents: torch.Tensor | None) -> None:
    population = random_population(shape, 3, seed=5)
    tokens, targets = random_tokens(shape, 2, LENGTH)
    nll = population.nll(tokens, targets, documents)
    assert nll.shape == (3, 2)
    nll.sum().backward()
    for member in range(3):
        single = alone(population, member, seed=5)
        single_nll = single.nll(tokens, targets, documents)
        single_nll.sum().backward()
        torch.testing.assert_close(nll[member], single_nll[0], rtol=1e-5, atol=0)
        expected, found = hf.gradients(single, 0), hf.gradients(population, member)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("shape", [TINY, variant(gated_norm=True)], ids=["ssm", "gated"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_broken_member_leaves_the_others_bitwise_unchanged(shape: Shape, poison: float) -> None:
    def outcome(broken: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        population = random_population(shape, 3)
        if broken:
            for tensor in hf.state_dict(population, 1).values():
                tensor.fill_(poison)
        nll = population.nll(*random_tokens(shape, 2, LENGTH), DOCUMENTS)
        nll.sum().backward()
        return nll.detach(), {name: p.grad for name, p in population.named_parameters() if p.grad is not None}

    nll, gradients = outcome(False)
    broken_nll, broken_gradients = outcome(True)
    assert not broken_nll[1].isfinite().all()
    for member in (0, 2):
        assert torch.equal(nll[member], broken_nll[member])
        for name, gradient in gradients.items():
            assert torch.equal(gradient[member], broken_gradients[name][member]), name


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), chunk=st.sampled_from([1, 4, 8, 64]))
def test_a_document_does_not_depend_on_what_is_packed_before_it(lengths: list[int], chunk: int) -> None:
    population = random_population(TINY, 2, ssd_chunk=chunk)
    tokens, _ = random_tokens(TINY, 1, sum(lengths), seed=len(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = population.logits(tokens, documents)
        for start, length in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), lengths, strict=False):
            single = population.logits(tokens[:, start : start + length])
            found = packed[:, :, start : start + length]
            assert (found - single).abs().max() < 1e-5 * single.abs().max()


def test_gradients_do_not_cross_documents() -> None:
    population = random_population(variant(gated_norm=True), 1)
    tokens, targets = random_tokens(TINY, 1, LENGTH)
    tokens[0, 8:] = tokens[0, 8:] % 10  # the first two documents own the ids from 10 on
    tokens[0, :8] = tokens[0, :8] % 10 + 10
    targets[0, :8] = -100
    population.nll(tokens, targets, DOCUMENTS[:1]).sum().backward()
    assert population.embedding_weight.grad is not None
    touched = population.embedding_weight.grad[0].abs().sum(-1) > 0
    assert touched[:10].any()
    assert not touched[10:].any()


def test_one_document_given_or_left_out_is_the_same() -> None:
    population = random_population(TINY, 2)
    tokens, targets = random_tokens(TINY, 2, LENGTH)
    whole = population.nll(tokens, targets, torch.zeros_like(tokens))
    torch.testing.assert_close(population.nll(tokens, targets), whole, rtol=1e-6, atol=0)


def test_nll_is_the_logits_cross_entropy_with_and_without_gradients() -> None:
    population = random_population(TINY, 2)
    tokens, targets = random_tokens(TINY, 2, LENGTH)
    nll = population.nll(tokens, targets, DOCUMENTS)
    log_p = population.logits(tokens, DOCUMENTS).log_softmax(-1)
    picked = log_p.gather(-1, targets.clamp(min=0).expand(2, -1, -1)[..., None]).squeeze(-1)
    torch.testing.assert_close(nll, -(picked * (targets >= 0)).sum(-1), rtol=1e-5, atol=0)
    with torch.no_grad():
        assert torch.equal(population.nll(tokens, targets, DOCUMENTS), nll)


@pytest.mark.parametrize("name", [*FORWARD, "rope_base"])
@pytest.mark.parametrize("shape", [variant(gated_norm=True), TINY], ids=["gated", "plain"])
def test_every_multiplier_changes_its_member_and_no_other(shape: Shape, name: str) -> None:
    population = random_population(shape, 2)
    tokens, _ = random_tokens(shape, 1, LENGTH)
    tables = [random_table(shape, 0), random_table(shape, 1)]
    with torch.no_grad():
        before = population.logits(tokens)
        if name == "rope_base":
            changed = tables[1].settings.with_values({"rope_base": 50.0})
            tables[1] = dataclasses.replace(tables[1], settings=changed)
        else:
            forward = {**tables[1].forward, name: tables[1].forward[name] * 1.5}
            tables[1] = dataclasses.replace(tables[1], forward=forward)
        population.set_roles(tables)
        after = population.logits(tokens)
    assert torch.equal(before[0], after[0])
    assert (after[1] - before[1]).abs().max() > 1e-3 * before[1].abs().max()


def test_attention_only_has_no_ssm_parameters_or_multipliers() -> None:
    names = [name for name, _ in random_population(ATTENTION_ONLY, 1).state_dict().items()]
    assert not [name for name in names if any(part in name for part in ("ssm", "conv1d", "dt_bias", "A_log", ".D"))]


def test_parameter_count_is_the_shape_s() -> None:
    for shape in (TINY, variant(gated_norm=True), ATTENTION_ONLY):
        assert sum(p.numel() for p in Population(shape, 1).parameters()) == shape.parameters()


def test_role_tables_of_another_shape_or_number_are_refused() -> None:
    population = Population(TINY, 2)
    with pytest.raises(ValueError, match="1 role tables for 2 members"):
        population.set_roles([random_table(TINY, 0)])
    with pytest.raises(ValueError, match="member 1 is for another Shape"):
        population.set_roles([random_table(TINY, 0), random_table(ATTENTION_ONLY, 0)])

"""Block orders: what is added to the residual stream, and when. SA_M has ``transformers`` itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_models import TINY, random_population, random_table, random_tokens, variant

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Block, ForwardPass, Population
from mup_tune.model.layers import rms_norm
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape

ORDERS = ("SA_M", "SAM", "S_A_M")
DOCUMENTS = torch.tensor([[0] * 7 + [1] + [2] * 13, [0] * 21])


def reference_block(block: Block, r: torch.Tensor, shared: ForwardPass) -> torch.Tensor:
    """One layer written out from the branches of SA_M, as the order's letters say."""
    u, v = rms_norm(r, block.input_norm), rms_norm(r, block.pre_ff_norm)
    if block.shape.block_order == "SAM":
        mixed = block.mamba2(u, shared) if block.shape.d_ssm else 0
        return r + mixed + block.attention(u, shared) + block.mlp(v, shared)
    r = r + block.mamba2(u, shared)
    if block.shape.block_order == "S_A_M":
        r = r + block.attention(rms_norm(r, block.pre_attention_norm), shared)
    else:
        r = r + block.attention(u, shared)
    return r + block.mlp(rms_norm(r, block.pre_ff_norm), shared)


def reference_logits(model: Population, tokens: torch.Tensor) -> torch.Tensor:
    """[B, T, V] of a population of one."""
    shared = model.forward_pass(tokens.shape[1])
    r = model.embedding_weight[:, tokens] * model.multipliers.get_buffer("embedding")
    for block in model.layers:
        r = reference_block(block, r, shared)
    hidden = rms_norm(r, model.final_norm) * model.multipliers.get_buffer("lm_head")
    return (hidden @ model.lm_head_weight.transpose(1, 2)[:, None])[0]


def alone(population: Population, member: int, seed: int) -> Population:
    single = Population(population.shape, 1, ssd_chunk=8)
    single.set_roles([random_table(population.shape, seed + member)])
    hf.load_state_dict_(single, 0, hf.state_dict(population, member))
    return single


CASES = [variant(block_order=order, gated_norm=gated) for order in ORDERS for gated in (False, True)]
CASES += [variant(block_order="SAM", d_ssm=0)]


@pytest.mark.parametrize("shape", CASES, ids=lambda s: f"{s.block_order}-{'gated' if s.gated_norm else s.d_ssm}")
def test_logits_and_gradients_are_those_of_the_order_written_out(shape: Shape) -> None:
    population = random_population(shape, 2, seed=4)
    tokens, targets = random_tokens(shape, 2, 21)
    population.nll(tokens, targets).sum().backward()
    logits = population.logits(tokens)
    for member in range(2):
        single = alone(population, member, seed=4)
        expected = reference_logits(single, tokens)
        assert (logits[member] - expected).abs().max() < 1e-5 * expected.abs().max()
        F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        found, wanted = hf.gradients(population, member), hf.gradients(single, 0)
        assert found.keys() == wanted.keys() == hf.state_dict(population, 0).keys()
        for name, gradient in wanted.items():
            assert gradient.norm() > 0, name
            assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("order", ORDERS)
def test_fused_members_equal_members_alone_on_packed_rows(order: str) -> None:
    population = random_population(variant(block_order=order), 3, seed=5)
    tokens, targets = random_tokens(population.shape, 2, 21)
    nll = population.nll(tokens, targets, DOCUMENTS)
    nll.sum().backward()
    for member in range(3):
        single = alone(population, member, seed=5)
        single_nll = single.nll(tokens, targets, DOCUMENTS)
        single_nll.sum().backward()
        torch.testing.assert_close(nll[member], single_nll[0], rtol=1e-5, atol=0)
        found = hf.gradients(population, member)
        for name, gradient in hf.gradients(single, 0).items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_orders_are_three_different_models() -> None:
    """On the same weights, attention's own norm equal to the SSM's."""
    weights = hf.state_dict(random_population(TINY, 1, seed=2), 0)
    tokens, _ = random_tokens(TINY, 1, 21)
    logits = []
    for order in ORDERS:
        single = Population(variant(block_order=order), 1, ssd_chunk=8)
        single.set_roles([random_table(single.shape, 2)])
        own = {name: weights.get(name, weights[name.replace("pre_attention", "input")]) for name in names(single)}
        hf.load_state_dict_(single, 0, own)
        logits.append(single.logits(tokens))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (logits[a] - logits[b]).abs().max() > 1e-2 * logits[a].abs().max()


def names(population: Population) -> list[str]:
    return list(hf.state_dict(population, 0))


@pytest.mark.parametrize("d_ssm", [32, 0])
@pytest.mark.parametrize("order", ORDERS)
def test_role_table_and_parameter_count_cover_every_parameter(order: str, d_ssm: int) -> None:
    shape = variant(block_order=order, d_ssm=d_ssm)
    population, table = Population(shape, 1), role_table(shape, untuned(shape).with_values({"input_norm.lr": 3.0}))
    assert sum(p.numel() for p in population.parameters()) == shape.parameters()
    assert sorted(names(population)) == sorted(table.parameters())
    own = [name for name in table.parameters() if "pre_attention_layernorm" in name]
    assert len(own) == (shape.n_layers if order == "S_A_M" and d_ssm else 0)
    assert all(table.of(name)[0].lr == pytest.approx(3 * table.settings.eta) for name in own)


def test_without_an_ssm_branch_s_a_m_is_sa_m() -> None:
    models = [random_population(variant(block_order=order, d_ssm=0), 1) for order in ("SA_M", "S_A_M")]
    tokens, _ = random_tokens(TINY, 1, 21)
    assert torch.equal(models[0].logits(tokens), models[1].logits(tokens))

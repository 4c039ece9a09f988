"""Our rows and ``transformers``' parameters map onto each other one to one, and so do their rates."""

from __future__ import annotations

import dataclasses
from math import inf
from types import SimpleNamespace

import pytest
import torch
from random_models import TINY, random_population, random_table, variant

from mup_tune.errors import UserError
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published, untuned
from mup_tune.shape import RELEASED, Shape, load_shape

SHAPES = [TINY, variant(gated_norm=True, n_groups=1), variant(d_ssm=0), variant(block_order="S_A_M")]
IDS = ["plain", "gated", "attention", "S_A_M"]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_names_and_sizes_are_the_role_table_s(shape: Shape) -> None:
    table = role_table(shape, untuned(shape))
    weights = hf.state_dict(random_population(shape, 2), 1)
    assert sorted(weights) == sorted(table.parameters())
    for name, tensor in weights.items():
        slices = table.of(name)
        assert tensor.shape == (sum(role.shape[0] for role in slices), *slices[0].shape[1:]), name


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_every_row_of_ours_has_one_name(shape: Shape) -> None:
    rows = {name: [0] * p.shape[1] for name, p in Population(shape, 1).named_parameters()}
    for entry in hf.hf_parameters(shape):
        for row in range(entry.start, entry.stop):
            rows[entry.ours][row] += 1
    assert all(count == 1 for counts in rows.values() for count in counts)


def test_weights_make_the_round_trip_into_another_slot() -> None:
    source, target = random_population(TINY, 2, seed=1), random_population(TINY, 3, seed=2)
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    hf.load_state_dict_(target, 2, hf.state_dict(source, 1))
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter[2], dict(source.named_parameters())[name][1])
        assert torch.equal(parameter[:2], before[name][:2])


def test_wrong_weights_are_refused_and_nothing_is_copied() -> None:
    population = random_population(TINY, 1)
    good = {name: torch.zeros_like(t) for name, t in hf.state_dict(population, 0).items()}
    short = {name: t for name, t in good.items() if name != "lm_head.weight"}
    cases = [
        (short, "lm_head.weight: is missing"),
        ({**good, "lm_head.bias": torch.zeros(3)}, "lm_head.bias: is not a parameter"),
        ({**good, "model.layers.1.mamba.D": torch.zeros(1)}, r"mamba\.D: is \(1,\), this Shape wants \(4,\)"),
    ]
    for weights, message in cases:
        with pytest.raises(UserError, match=message):
            hf.load_state_dict_(population, 0, weights)
    assert all((t != 0).any() for t in hf.state_dict(population, 0).values())


def test_owning_role_is_that_of_a_parameter_of_the_role_table() -> None:
    shape = SHAPES[1]
    table = role_table(shape, untuned(shape).with_values({"qkv.elr": 2.0, "input_norm.lr": 3.0}))
    for name, _ in Population(shape, 1).named_parameters():
        assert hf.owning_role(table, name) in table.of(hf.hf_names(name)[0])
    assert hf.owning_role(table, "layers.1.qkv").lr == pytest.approx(2 * table.settings.eta)
    assert hf.owning_role(table, "layers.0.gated_norm").lr == pytest.approx(3 * table.settings.eta)
    for unknown in ("layers.0.rope", "qkv", "layers.0.qkv.weight"):
        with pytest.raises(KeyError, match="no parameter of a population"):
            hf.hf_names(unknown)


def test_a_fused_parameter_whose_slices_disagree_is_an_error() -> None:
    table = role_table(TINY, untuned(TINY))
    rows = tuple(
        dataclasses.replace(row, lr=2 * row.lr) if row.parameter.endswith("k_proj.weight") else row
        for row in table.rows
    )
    with pytest.raises(AssertionError, match=r"layers\.0\.qkv"):
        hf.owning_role(dataclasses.replace(table, rows=rows), "layers.0.qkv")


@pytest.mark.parametrize("name", RELEASED)
def test_config_of_every_released_shape_builds_with_our_names_and_sizes(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    shape = resized(load_shape(name), n_layers=2)
    kwargs = hf.hf_config_kwargs(role_table(shape, falcon_h1_published()), max_position_embeddings=4096)
    config = transformers.FalconH1Config(**kwargs)
    given = {**kwargs, "rope_theta": None}
    assert config.rope_parameters["rope_theta"] == kwargs["rope_theta"] == 1e11
    assert {key: getattr(config, key) for key in given if key != "rope_theta"} == {
        key: value for key, value in given.items() if key != "rope_theta"
    }
    with torch.device("meta"):
        model = transformers.FalconH1ForCausalLM(config)
    ours = hf.state_dict(Population(shape, 1, device="meta"), 0)
    assert {key: p.shape for key, p in model.named_parameters()} == {key: t.shape for key, t in ours.items()}
    assert model.model.embed_tokens.padding_idx is None


def test_a_config_is_held_against_ours_whichever_version_s_fields_it_has() -> None:
    ours = hf.hf_config(random_table(TINY, 0))
    rope_of_5 = {key: value for key, value in ours.items() if key != "rope_theta"}
    rope_of_4 = {key: value for key, value in ours.items() if key != "rope_parameters"}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "max_position_embeddings": 64, "transformers_version": "4"}
    for same in (ours, rope_of_5, rope_of_4, SimpleNamespace(**rope_of_4), {**ours, **ids}):
        assert hf.config_difference(ours, same) is None
    base = ours["rope_theta"]
    linear = {"type": "linear", "factor": 2.0}
    spelled = [0.0, {"__float__": "Infinity"}]  # as transformers 5 writes infinity
    assert hf.config_difference(ours, {**ours, "time_step_limit": spelled}) is None
    assert hf.config_difference(ours, {**ours, "time_step_limit": [0.0, 0.1]}) == (
        "time_step_limit",
        [0.0, 0.1],
        [0.0, inf],
    )
    assert hf.config_difference(ours, {**rope_of_4, "rope_theta": 1e4}) == ("rope_theta", 1e4, base)
    assert hf.config_difference(ours, {**rope_of_4, "rope_scaling": linear}) == ("rope_type", "linear", "default")
    assert hf.config_difference(ours, {**ours, "rope_theta": 1e4}) == ("rope_theta", [base, 1e4], base)
    assert hf.config_difference(ours, None) == ("vocab_size", None, TINY.vocab_size)


def resized(shape: Shape, **sizes: int) -> Shape:
    return Shape.model_validate({**shape.model_dump(), **sizes})


def test_attention_only_has_no_transformers_config() -> None:
    with pytest.raises(UserError, match="without an SSM branch"):
        hf.hf_config_kwargs(random_table(variant(d_ssm=0), 0))


@pytest.mark.parametrize("order", ["SAM", "S_A_M"])
def test_transformers_builds_falcon_h1_s_own_block_order_only(order: str) -> None:
    with pytest.raises(UserError, match=f"builds SA_M only, not {order}"):
        hf.hf_config_kwargs(random_table(variant(block_order=order), 0))

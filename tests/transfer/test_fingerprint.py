"""A right model passes at any target's structure; what a wrong one drops or doubles is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mup_tune.errors import UserError
from mup_tune.files import dump_yaml
from mup_tune.model.hf import hf_config
from mup_tune.multipliers import FORWARD
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published
from mup_tune.shape import RELEASED, load_shape
from mup_tune.transfer.fingerprint import TOLERANCE, Fault, Fingerprint, Probe, fingerprint, narrow


def build(config: dict[str, Any]) -> Any:
    return transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**config))


def sabotaged(export: Path, change: Callable[[Any], None]) -> Fingerprint:
    def factory(config: dict[str, Any]) -> Any:
        model = build(config)
        change(model)
        return model

    return fingerprint(export, factory)


def drop_lm_head(model: Any) -> None:
    model.model.lm_head_multiplier = 1.0


def drop_mlp_gate(model: Any) -> None:
    for layer in model.model.layers:
        layer.feed_forward.gate_multiplier = 1.0


def double_ssm_in(model: Any) -> None:
    for layer in model.model.layers:
        layer.mamba.ssm_in_multiplier **= 2


def drop_key(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.key_multiplier = 1.0


@pytest.mark.parametrize("name", ["falcon-h1-0.5b", "falcon-h1-34b"])
def test_transformers_passes_at_the_structure_of_released_targets(name: str, tmp_path: Path) -> None:
    shape, settings = load_shape(name), falcon_h1_published()
    (tmp_path / "config.json").write_text(json.dumps(hf_config(role_table(shape, settings))))
    (tmp_path / "shape.yaml").write_text(dump_yaml(shape.model_dump(mode="json")))
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    found = fingerprint(tmp_path, build)
    assert found.passed
    assert (found.faults, found.wrong_gradients) == ((), ())
    assert found.logits_error < TOLERANCE / 100  # of headroom for implementations in another order
    assert max(found.gradient_errors.values()) < TOLERANCE / 30


@pytest.mark.parametrize(
    ("change", "named", "said"),
    [
        (drop_lm_head, Fault("lm_head", "missing"), "lm_head is missing: lm_head_multiplier, on the logits"),
        (drop_mlp_gate, Fault("mlp_gate", "missing"), "mlp_gate is missing: mlp_multipliers[0], on the MLP's gate"),
        (double_ssm_in, Fault("ssm_in", "doubled"), "ssm_in is doubled: ssm_in_multiplier, on z, x, B, C and dt"),
        (drop_key, Fault("key", "missing"), "key is missing: key_multiplier, on k, before rotary embedding"),
    ],
)
def test_a_multiplier_that_the_model_gets_wrong_is_named(
    export: Path, change: Callable[[Any], None], named: Fault, said: str
) -> None:
    found = sabotaged(export, change)
    assert not found.passed
    assert found.faults == (named,)
    assert str(named).startswith(said)


@pytest.mark.parametrize("name", FORWARD)
def test_every_multiplier_shows_and_is_told_from_all_others(export: Path, name: str) -> None:
    field, index = FORWARD[name].config_field, FORWARD[name].config_index
    kind, power = ("missing", 0) if list(FORWARD).index(name) % 2 else ("doubled", 2)

    def factory(config: dict[str, Any]) -> Any:
        bent = copy.deepcopy(config)
        if index is None:
            bent[field] **= power
        else:
            bent[field][index] **= power
        return build(bent)

    found = fingerprint(export, factory)
    assert found.logits_error > 10 * TOLERANCE
    assert [(fault.multiplier, fault.kind) for fault in found.faults] == [(name, kind)]


def test_a_field_or_all_multipliers_that_are_ignored_or_applied_twice_are_named(export: Path) -> None:
    def twice_the_vector(model: Any) -> None:
        for layer in model.model.layers:
            layer.mamba.mup_vector = layer.mamba.mup_vector**2

    slices = ("ssm_z", "ssm_x", "ssm_B", "ssm_C", "ssm_dt")
    assert sabotaged(export, twice_the_vector).faults == tuple(Fault(name, "doubled") for name in slices)
    found = fingerprint(export, lambda config: build({k: v for k, v in config.items() if "multiplier" not in k}))
    assert found.faults == tuple(Fault(name, "missing") for name in FORWARD)


def test_two_faults_at_once_are_both_named_and_other_faults_are_not_blamed_on_multipliers(export: Path) -> None:
    def two(model: Any) -> None:
        drop_lm_head(model)
        double_ssm_in(model)

    assert sabotaged(export, two).faults == (Fault("lm_head", "missing"), Fault("ssm_in", "doubled"))
    config = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    found = fingerprint(export, lambda exported: build({**exported, **config}))
    assert (found.passed, found.faults) == (False, ())
    assert found.logits_error > 10 * TOLERANCE


def test_a_wrong_backward_pass_fails_and_names_the_parameters(export: Path) -> None:
    def change(model: Any) -> None:
        model.model.layers[1].feed_forward.down_proj.weight.register_hook(lambda gradient: 1.5 * gradient)
        model.model.layers[0].mamba.D.requires_grad_(False)

    found = sabotaged(export, change)
    assert (found.passed, found.same_logits) == (False, True)
    assert sorted(found.wrong_gradients) == ["D", "mlp_down_proj"]
    frozen = sabotaged(export, lambda model: model.requires_grad_(False))
    assert frozen.same_logits
    assert frozen.wrong_gradients == tuple(frozen.gradient_errors)


class Named(nn.Module):
    """A model under a wrapper, which gives logits themselves."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self._orig_mod(input_ids, use_cache=False).logits


def test_a_tensor_and_wrapped_names_keep_the_contract_and_what_does_not_is_said(export: Path) -> None:
    assert fingerprint(export, lambda config: Named(build(config))).passed
    with pytest.raises(UserError, match="returned a dict, not a torch"):
        fingerprint(export, dict)
    with pytest.raises(UserError, match=r"'lm_head\.bias' is not one of transformers' names"):
        sabotaged(export, lambda model: model.lm_head.register_parameter("bias", nn.Parameter(torch.zeros(64))))
    with pytest.raises(UserError, match=r"'lm_head\.weight' is missing"):
        sabotaged(export, lambda model: setattr(model.lm_head, "weight", model.model.embed_tokens.weight))
    with pytest.raises(UserError, match=r"final_layernorm\.weight' has the shape \(3,\), not \(48,\)"):
        sabotaged(export, lambda model: setattr(model.model.final_layernorm, "weight", nn.Parameter(torch.ones(3))))
    with pytest.raises(UserError, match="bfloat16"):
        sabotaged(export, lambda model: model.to(torch.bfloat16))
    with pytest.raises(UserError, match=r"returned \(2, 37, 48\), not logits of \(2, 37, 64\)"):
        sabotaged(export, lambda model: setattr(model, "forward", lambda ids: model.model(ids).last_hidden_state))
    with pytest.raises(UserError, match=r"shape\.yaml"):
        fingerprint(export.parent, build)


@pytest.mark.parametrize("name", RELEASED)
def test_the_narrow_copy_has_the_targets_kinds_at_a_few_channels(name: str) -> None:
    target = load_shape(name)
    shape = narrow(target)
    assert (shape.n_groups, shape.gated_norm, shape.block_order) == (target.n_groups, target.gated_norm, "SA_M")
    assert shape.n_heads * target.n_kv_heads == target.n_heads * shape.n_kv_heads
    assert shape.parameters() < 200_000


def test_the_config_that_a_factory_gets_has_14_telling_multipliers_and_the_exports_rope(export: Path) -> None:
    config, exported = Probe(export).config, json.loads((export / "config.json").read_text())
    fields = {field: config[field] for field in sorted({each.config_field for each in FORWARD.values()})}
    values = [value for each in fields.values() for value in (each if isinstance(each, list) else [each])]
    assert len(set(values)) == 14
    assert all(value < 0.8 or value > 1.25 for value in values)
    assert config.keys() == exported.keys()
    assert config["rope_parameters"] == exported["rope_parameters"]

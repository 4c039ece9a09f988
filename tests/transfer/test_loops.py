"""``load_transfer`` in the loops that people train with: meta device, FSDP2, torch.compile, checkpointing."""

from __future__ import annotations

import json
import multiprocessing
from math import inf
from pathlib import Path
from typing import Any

import fsdp_rank
import pytest
import torch
import transformers
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mup_tune import load_transfer
from mup_tune.errors import UserError
from mup_tune.model.hf import NO_FUNCTION
from mup_tune.transfer import Transfer


@pytest.fixture(scope="module")
def transfer(export: Path) -> Transfer:
    return load_transfer(export)


def built(export: Path, device: str = "cpu") -> Any:
    with torch.device(device):
        return transformers.FalconH1ForCausalLM(transformers.FalconH1Config.from_pretrained(str(export)))


@pytest.fixture
def model(export: Path) -> Any:
    return built(export)


def test_meta_device_then_to_empty_is_the_model_built_on_the_cpu(export: Path, transfer: Transfer, model: Any) -> None:
    transfer.init_weights_(model, seed=1)
    empty = built(export, "meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(float("nan"))
    transfer.init_weights_(empty, seed=1)
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(getattr(model, kind)(remove_duplicate=False))  # transformers 4 shares a buffer among layers
        assert expected
        for name, tensor in getattr(empty, kind)():
            assert torch.equal(tensor, expected[name]), name
    ids = fsdp_rank.token_ids()
    assert torch.equal(fsdp_rank.loss_of(empty, ids), fsdp_rank.loss_of(model, ids))


def test_under_torch_compile_init_and_groups_are_the_models_own(export: Path, transfer: Transfer, model: Any) -> None:
    compiled = torch.compile(built(export), backend="eager")
    transfer.init_weights_(model)
    transfer.init_weights_(compiled)
    ids = fsdp_rank.token_ids()
    torch.testing.assert_close(fsdp_rank.loss_of(compiled, ids), fsdp_rank.loss_of(model, ids))
    fsdp_rank.trained(export, compiled, ids)
    fsdp_rank.trained(export, model, ids)
    for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class FSDP1(nn.Module):
    """As FSDP1 with ``use_orig_params`` names things."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = inner


def test_wrappers_in_any_order_and_place_change_nothing(export: Path, transfer: Transfer, model: Any) -> None:
    plain = built(export)
    transfer.init_weights_(plain, seed=2)
    layers = model.model.layers
    layers[0] = FSDP1(checkpoint_wrapper(layers[0]))
    layers[1] = checkpoint_wrapper(torch.compile(layers[1], backend="eager"))
    wrapped = FSDP1(nn.DataParallel(model))
    transfer.init_weights_(wrapped, seed=2)
    for one, other in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    groups = transfer.param_groups(wrapped)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in wrapped.parameters())
    layers[0]._fsdp_wrapped_module._checkpoint_wrapped_module.mamba.in_proj.weight.data = torch.zeros(0)
    with pytest.raises(UserError, match="fully_shard"):
        transfer.param_groups(wrapped)


@pytest.fixture(scope="module")
def shell(export: Path) -> Any:
    """A model whose config a test may bend: what it was built with stays."""
    return built(export, "meta")


def bent(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool | str):
        return "gelu" if isinstance(value, str) else not value
    return [*value[:-1], bent(value[-1])] if isinstance(value, list) else 2 * value + 1


def test_every_field_that_changes_the_function_is_compared(export: Path, transfer: Transfer, shell: Any) -> None:
    exported = json.loads((export / "config.json").read_text())
    fields = set(exported) - NO_FUNCTION - {"rope_theta", "rope_parameters"}
    assert {"hidden_act", "rms_norm_eps", "mamba_norm_before_gate", "mamba_rms_norm", "mamba_conv_bias"} <= fields
    assert {"tie_word_embeddings", "attention_dropout", "key_multiplier", "mlp_bias", "mamba_n_groups"} <= fields
    transfer.param_groups(shell)
    for field in sorted(fields):
        right = getattr(shell.config, field)
        setattr(shell.config, field, bent(right))
        with pytest.raises(UserError, match=rf"config\.json: {field}: the model has .*exported config"):
            transfer.param_groups(shell)
        setattr(shell.config, field, right)
    transfer.param_groups(shell)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}, "rope_theta: the model has"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e11, "factor": 2.0}, "rope_type"),
        ("time_step_limit", (0.001, 0.1), "time_step_limit"),
    ],
)
def test_rope_and_what_the_export_leaves_to_defaults(
    transfer: Transfer, shell: Any, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, named: str
) -> None:
    assert getattr(shell.config, "time_step_limit", (0.0, inf)) == (0.0, inf)
    monkeypatch.setattr(shell.config, field, value, raising=False)
    with pytest.raises(UserError, match=named):
        transfer.param_groups(shell)


def test_token_ids_are_the_users_own_but_a_padding_row_is_refused(export: Path, transfer: Transfer) -> None:
    config = transformers.FalconH1Config.from_pretrained(str(export), bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        model = transformers.FalconH1ForCausalLM(config)
        model.config.pad_token_id = 2
        transfer.param_groups(model)
        frozen = transformers.FalconH1ForCausalLM(config)
    with pytest.raises(UserError, match=r"pad_token_id: row 2 of model\.embed_tokens"):
        transfer.param_groups(frozen)


def test_parameters_that_are_not_float32_are_refused_with_the_fix(transfer: Transfer, model: Any) -> None:
    model.model.layers[1].mamba.to(torch.bfloat16)
    for call in (transfer.init_weights_, transfer.param_groups):
        with pytest.raises(UserError, match=r"layers\.1\.mamba\.\w+' is torch\.bfloat16.*model\.float\(\)"):
            call(model)
    transfer.init_weights_(model.float())


def test_fsdp2_initialises_and_steps_as_one_device_does(export: Path, model: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.falcon_h1.modeling_falcon_h1", "torch.distributed.fsdp"])
    out = tmp_path / "rank0.pt"
    ranks = [context.Process(target=fsdp_rank.run, args=(rank, export, out)) for rank in range(fsdp_rank.WORLD)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * fsdp_rank.WORLD
    sharded = torch.load(out)
    assert "meta device" in sharded["refused"]
    load_transfer(export).init_weights_(model, seed=fsdp_rank.SEED)
    for name, parameter in model.named_parameters():
        assert torch.equal(sharded["before"][name], parameter), name
    fsdp_rank.trained(export, model, fsdp_rank.token_ids())
    for name, parameter in model.named_parameters():
        moved = (parameter - sharded["before"][name]).norm()
        assert (sharded["after"][name] - parameter).norm() < 1e-3 * moved, name

"""The one map between a population's parameters and the names and config of ``transformers``' Falcon-H1.

Our layout is theirs with a member axis in front, except that q, k and v are one matrix. So a name maps to a
row range of dimension 1, and this file is all that checks, exports, init and optimizer need to know of it.
The names themselves are the role table's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.layers import RMS_NORM_EPS
from mup_tune.multipliers import FORWARD
from mup_tune.roles import HF_NAMES, Role, RoleTable
from mup_tune.shape import Shape

# The files of a checkpoint folder, INDEX where its weights are in several.
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Fields of a config that change no logit and no gradient: names, limits, and ids of a tokenizer.
NO_FUNCTION = {
    "architectures",
    "model_type",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",  # acts when the model is built, through the embedding's padding_idx
}


@dataclass(frozen=True)
class Entry:
    """``hf`` is ``ours[member, start:stop]``."""

    ours: str
    hf: str
    start: int
    stop: int


@functools.lru_cache(maxsize=4096)
def hf_names(ours: str) -> tuple[str, ...]:
    """The ``transformers`` parameters that one of ours holds, in order along dimension 1."""
    match = re.fullmatch(r"(?:layers\.(\d+)\.)?(\w+)", ours)
    layer, name = match.groups() if match else (None, "")
    names = HF_NAMES.get(name, ())
    if not names or ("{layer}" in names[0]) != (layer is not None):
        raise KeyError(f"{ours!r} is no parameter of a population")
    return tuple(each.format(layer=layer) for each in names)


def owning_role(table: RoleTable, ours: str) -> Role:
    """The Role that owns LR, WD and eps of one of our parameters; every slice of it must agree."""
    roles = [role for hf in hf_names(ours) for role in table.of(hf)]
    if len({(role.lr, role.weight_decay, role.eps) for role in roles}) != 1:
        raise AssertionError(f"{ours}: LR, WD and eps must not vary inside one parameter")
    return roles[0]


@functools.lru_cache(maxsize=64)
def hf_parameters(shape: Shape) -> tuple[Entry, ...]:
    """Every ``transformers`` parameter of a model of this Shape, in the order of a population's own."""
    entries = []
    for ours, parameter in Population(shape, 1, device="meta").named_parameters():
        names, start = hf_names(ours), 0
        sizes = [parameter.shape[1]] if len(names) == 1 else shape.slices[ours.rpartition(".")[2]].values()
        for hf, size in zip(names, sizes, strict=True):
            entries.append(Entry(ours, hf, start, start + size))
            start += size
    return tuple(entries)


def state_dict(population: Population, member: int) -> dict[str, Tensor]:
    """One member's weights by their ``transformers`` names; views, not copies."""
    ours = dict(population.named_parameters())
    return {e.hf: ours[e.ours].detach()[member, e.start : e.stop] for e in hf_parameters(population.shape)}


def gradients(population: Population, member: int) -> dict[str, Tensor]:
    """One member's gradients by their ``transformers`` names; parameters without a gradient are left out."""
    ours = {name: parameter.grad for name, parameter in population.named_parameters()}
    found = {}
    for entry in hf_parameters(population.shape):
        gradient = ours[entry.ours]
        if gradient is not None:
            found[entry.hf] = gradient[member, entry.start : entry.stop]
    return found


@torch.no_grad()
def load_state_dict_(population: Population, member: int, tensors: Mapping[str, Tensor]) -> None:
    """Copy a model's weights, by their ``transformers`` names, into one member.

    Raises:
        UserError: a parameter is missing, unknown, or of another size. Nothing is copied then.
    """
    targets = state_dict(population, member)
    for name in sorted(targets.keys() ^ tensors.keys()):
        problem = "is missing" if name in targets else "is not a parameter of this Shape"
        raise UserError(problem, field=name, fix="Do the weights belong to a Falcon-H1 model of this Shape?")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise UserError(f"is {tuple(tensors[name].shape)}, this Shape wants {tuple(target.shape)}", field=name)
    for name, target in targets.items():
        target.copy_(tensors[name])


def hf_config_kwargs(table: RoleTable, max_position_embeddings: int = 8192) -> dict[str, Any]:
    """Arguments of ``transformers.FalconH1Config`` for this Shape and these multipliers; plain JSON values.

    ``pad_token_id`` is None: a padding id would freeze that row of the embedding. ``mamba_norm_before_gate``
    and the biases are Falcon-H1's. A config says nothing of init, LR or WD: those are the role table's.

    Raises:
        UserError: the Shape has no SSM branch or another block order, which ``FalconH1Config`` cannot
        express.
    """
    shape = table.shape
    if shape.block_order != "SA_M":
        raise UserError(
            f"transformers' FalconH1 builds SA_M only, not {shape.block_order}",
            field="block_order",
            fix="Use a Shape of block order SA_M",
        )
    if not shape.d_ssm:
        raise UserError("FalconH1Config has no models without an SSM branch", field="d_ssm", fix="Use a Shape with one")
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_NORM_EPS,
        "max_position_embeddings": max_position_embeddings,
        "rope_theta": table.settings.rope_base,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "projectors_bias": False,
        "mamba_d_ssm": shape.d_ssm,
        "mamba_n_heads": shape.n_ssm_heads,
        "mamba_d_head": shape.ssm_head_dim,
        "mamba_d_state": shape.d_state,
        "mamba_n_groups": shape.n_groups,
        "mamba_d_conv": shape.conv_kernel,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "mamba_rms_norm": shape.gated_norm,
        "mamba_norm_before_gate": False,
        **_multiplier_fields(table.forward),
    }


def _multiplier_fields(forward: Mapping[str, float]) -> dict[str, float | list[float]]:
    """The config's multipliers: numbers first, then lists."""
    fields: dict[str, Any] = {
        each.config_field: forward[name] for name, each in FORWARD.items() if each.config_index is None
    }
    for name, each in FORWARD.items():
        if each.config_index is not None:
            fields.setdefault(each.config_field, []).insert(each.config_index, forward[name])
    return fields


def hf_config(table: RoleTable) -> dict[str, Any]:
    """``config.json``: the RoPE base where transformers 4 and 5 look for it; no token ids of a tokenizer.

    Raises:
        UserError: as :func:`hf_config_kwargs`.
    """
    kwargs = hf_config_kwargs(table)
    return {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        **kwargs,
        "rope_parameters": {"rope_type": "default", "rope_theta": kwargs["rope_theta"]},
        "bos_token_id": None,
        "eos_token_id": None,
    }


def config_difference(wanted: Mapping[str, Any], config: object) -> tuple[str, Any, Any] | None:
    """The first field that makes ``config`` another function than ``wanted``: name, value, wanted value.

    Args:
        wanted: the content of a ``config.json`` of ours.
        config: another one, or any object with its fields as attributes, of transformers 4 or 5.
    """
    read: Callable[[str], Any] = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    for field, expected in _function_fields(wanted.get, wanted).items():
        got = _function_fields(read, wanted)[field]
        if got != expected:
            return field, got, expected
    return None


def _function_fields(read: Callable[[str], Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What ``fields`` hold in one config, in one spelling whatever the version that wrote it."""
    # Where transformers 5 and 4 look for RoPE. A config may have both, and each version reads its own.
    ropes = [read("rope_parameters") or {}, {"rope_theta": read("rope_theta"), **(read("rope_scaling") or {})}]
    limits = read("time_step_limit") or (0.0, inf)  # transformers' default, which config.json leaves to it
    return {
        **{key: _plain(read(key)) for key in fields if key not in NO_FUNCTION and not key.startswith("rope_")},
        "rope_theta": _agreed([rope.get("rope_theta") for rope in ropes]),
        "rope_type": _agreed([rope.get("rope_type", rope.get("type")) for rope in ropes]) or "default",
        "time_step_limit": _plain(limits),
    }


def _agreed(values: list[Any]) -> Any:
    """What all that are given say; all of them where they do not agree."""
    given = list(dict.fromkeys(value for value in values if value is not None))
    return given if len(given) > 1 else next(iter(given), None)


def _plain(value: Any) -> Any:
    """Lists for tuples, and numbers for what transformers 5 writes for inf: ``{"__float__": "Infinity"}``."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(value["__float__"]) if isinstance(value, dict) and "__float__" in value else value

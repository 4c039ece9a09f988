"""The one map between a population's parameters and the names and config of ``transformers``' Falcon-H1.

Our layout is theirs with a member axis in front, except that q, k and v are one matrix. So a name maps to a
row range of dimension 1, and this file is all that checks, exports, init and optimizer need to know of their
names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model.falcon_h1 import SSM_SLICES, Population
from mup_tune.model.layers import RMS_NORM_EPS
from mup_tune.roles import Role, RoleTable
from mup_tune.shape import Shape


@dataclass(frozen=True)
class Entry:
    """``hf`` is ``ours[member, start:stop]``."""

    ours: str
    hf: str
    start: int
    stop: int


_MAMBA = {
    "ssm_in_proj": "mamba.in_proj.weight",
    "conv1d_weight": "mamba.conv1d.weight",
    "conv1d_bias": "mamba.conv1d.bias",
    "dt_bias": "mamba.dt_bias",
    "A_log": "mamba.A_log",
    "D": "mamba.D",
    "gated_norm": "mamba.norm.weight",
    "ssm_out_proj": "mamba.out_proj.weight",
}
_LAYER = {
    "input_norm": ("input_layernorm.weight",),
    **{ours: (hf,) for ours, hf in _MAMBA.items()},
    "pre_attention_norm": ("pre_attention_layernorm.weight",),  # of S_A_M alone, which transformers does not build
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention_out_proj": ("self_attn.o_proj.weight",),
    "pre_ff_norm": ("pre_ff_layernorm.weight",),
    "mlp_gate_proj": ("feed_forward.gate_proj.weight",),
    "mlp_up_proj": ("feed_forward.up_proj.weight",),
    "mlp_down_proj": ("feed_forward.down_proj.weight",),
}
_GLOBAL = {
    "embedding_weight": "model.embed_tokens.weight",
    "final_norm": "model.final_layernorm.weight",
    "lm_head_weight": "lm_head.weight",
}


def hf_names(ours: str) -> tuple[str, ...]:
    """The ``transformers`` parameters that one of ours holds, in order along dimension 1."""
    if ours in _GLOBAL:
        return (_GLOBAL[ours],)
    match = re.fullmatch(r"layers\.(\d+)\.(\w+)", ours)
    if not match or match[2] not in _LAYER:
        raise KeyError(f"{ours!r} is no parameter of a population")
    return tuple(f"model.layers.{match[1]}.{name}" for name in _LAYER[match[2]])


def owning_role(table: RoleTable, ours: str) -> Role:
    """The Role that owns LR, WD and eps of one of our parameters; every slice of it must agree."""
    roles = [role for hf in hf_names(ours) for role in table.of(hf)]
    if len({(role.lr, role.weight_decay, role.eps) for role in roles}) != 1:
        raise AssertionError(f"{ours}: LR, WD and eps must not vary inside one parameter")
    return roles[0]


def hf_parameters(shape: Shape) -> list[Entry]:
    """Every ``transformers`` parameter of a model of this Shape, in the order of a population's parameters."""
    with torch.device("meta"):
        population = Population(shape, 1, device="meta")
    rows = {"q_proj": shape.d_attn, "k_proj": shape.d_kv, "v_proj": shape.d_kv}
    entries = []
    for ours, parameter in population.named_parameters():
        start = 0
        for hf in hf_names(ours):
            size = rows.get(hf.split(".")[-2], parameter.shape[1])
            entries.append(Entry(ours, hf, start, start + size))
            start += size
        if start != parameter.shape[1]:
            raise AssertionError(f"{ours}: {start} rows are named, it has {parameter.shape[1]}")
    return entries


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
    shape, m = table.shape, table.forward
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
        "embedding_multiplier": m["embedding"],
        "lm_head_multiplier": m["lm_head"],
        "key_multiplier": m["key"],
        "attention_in_multiplier": m["attention_in"],
        "attention_out_multiplier": m["attention_out"],
        "ssm_in_multiplier": m["ssm_in"],
        "ssm_out_multiplier": m["ssm_out"],
        "ssm_multipliers": [m[f"ssm_{name}"] for name in SSM_SLICES],
        "mlp_multipliers": [m["mlp_gate"], m["mlp_down"]],
    }

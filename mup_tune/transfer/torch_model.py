"""A live model that is to be an export's target: its parameters by name, its config, its dtype, its buffers.

Nothing is stored on the model: names are looked up again on every call, so FSDP, torch.compile, activation
checkpointing and deepcopy are safe, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mup_tune.errors import UserError
from mup_tune.model.attention import rope_inverse_frequencies
from mup_tune.model.hf import config_difference
from mup_tune.model.init import draw_
from mup_tune.roles import Role
from mup_tune.transfer.groups import Group, match

# What wrappers put into the names of modules and parameters: DDP, torch.compile, checkpoint_wrapper, FSDP1.
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
BUILD = "Build the model from the exported config.json"


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by the names that ``transformers`` gives them, without wrappers' parts.

    Raises:
        UserError: a parameter that is not float32.
    """
    found = {_without_wrappers(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in found.items():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"the parameter {name!r} is {parameter.dtype}, and updates this small need float32",
                fix="Call model.float() and compute in bfloat16 by torch.autocast or FSDP2's MixedPrecisionPolicy",
            )
    return found


def grouped(groups: Sequence[Group], model: nn.Module) -> dict[str, tuple[nn.Parameter, Group]]:
    """Every parameter and its group, by ``transformers`` name.

    Raises:
        UserError: as :func:`~mup_tune.transfer.groups.match`, and where FSDP1 has cut the parameters.
    """
    parameters = named_parameters(model)
    try:
        owner = match(groups, {name: tuple(each.shape) for name, each in parameters.items()})
    except UserError as error:
        if not any("_fsdp_wrapped_module" in name for name, _ in model.named_parameters()):
            raise
        raise UserError(
            f"{error.problem}; FSDP1 flattens and cuts parameters",
            fix="Use FSDP2's fully_shard, or FSDP(use_orig_params=True) with FSDP.summon_full_params around this call",
        ) from error
    return {name: (parameter, owner[name]) for name, parameter in parameters.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers."""
    children = dict(model.named_children())
    inner = next((children[name] for name in children if name in WRAPPERS), None)
    return model if inner is None else unwrapped(inner)


def check_config(model: nn.Module, exported: Mapping[str, Any], file: Path) -> None:
    """The model computes what ``exported`` says: a wrong config trains without complaint.

    Raises:
        UserError: a field that changes the function differs, or a padding id freezes a row of the embedding.
    """
    inner = unwrapped(model)
    difference = config_difference(exported, getattr(inner, "config", None))
    if difference is not None:
        field, got, expected = difference
        raise UserError(f"the model has {got!r}, the export {expected!r}", file=file, field=field, fix=BUILD)
    for name, module in inner.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            raise UserError(
                f"row {module.padding_idx} of {_without_wrappers(name)} is a padding row, which never learns",
                file=file,
                field="pad_token_id",
                fix="Build the model with pad_token_id null; the config's may be set afterwards",
            )


@torch.no_grad()
def refill_buffers_(model: nn.Module, exported: Mapping[str, Any], in_proj_rows: Sequence[int]) -> None:
    """Compute anew what ``to_empty`` loses and no checkpoint holds: SSM multipliers and rotary frequencies.

    Args:
        exported: the content of ``config.json``.
        in_proj_rows: rows of ``mamba.in_proj.weight`` that are z, x, B, C and dt.
    """
    multipliers = torch.tensor(exported["ssm_multipliers"], dtype=torch.float32)
    vector = multipliers.repeat_interleave(torch.tensor(in_proj_rows))
    frequencies = rope_inverse_frequencies(exported["rope_theta"], exported["head_dim"])
    values = {"mup_vector": vector, "inv_freq": frequencies, "original_inv_freq": frequencies}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        value = values.get(name.rpartition(".")[2])
        if value is not None:
            buffer.copy_(value.view(buffer.shape))


def init_(parameter: Tensor, slices: Sequence[Role], *, seed: int, name: str) -> None:
    """:func:`~mup_tune.model.init.draw_`, of whole tensors and of those that FSDP2 or tensor parallelism cut.

    A cut parameter is drawn as a whole on every rank, one after another, and rank 0's is handed out. So its
    numbers are those of the model on one device.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        draw_(parameter, slices, seed=seed, parameter=name)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or parameter.is_meta:
        draw_(parameter, slices, seed=seed, parameter=name)
        return
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.to_local().device)
    draw_(whole, slices, seed=seed, parameter=name)
    with torch.no_grad():
        parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)

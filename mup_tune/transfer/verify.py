"""The other side's word on an export: ``transformers`` builds the model, and nothing is left over."""

from __future__ import annotations

import importlib.util
from math import prod
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError
from mup_tune.model.hf import config_difference
from mup_tune.roles import RoleTable
from mup_tune.transfer.groups import OptimizerFile, match

SKIPPED = (
    "verification SKIPPED: transformers is not installed, so nobody but this tool has built the target; "
    "install mup-tune[verify] and transfer again"
)


def verify(folder: Path, config: dict[str, Any], table: RoleTable, optimizer: OptimizerFile) -> str:
    """Check an export's patterns, and where ``transformers`` is installed its ``config.json`` in ``folder``.

    Returns:
        A sentence on what was verified, or that the other side's part was skipped.

    Raises:
        UserError: a parameter without exactly one pattern, another shape, parameter count or config value.
    """
    own = table.shapes()
    match(optimizer.groups, own)
    if importlib.util.find_spec("transformers") is None:
        return SKIPPED
    shapes, version = _instantiated(folder, config)
    match(optimizer.groups, shapes)
    if shapes != own:
        odd = sorted(set(shapes.items()) ^ set(own.items()))
        raise UserError(f"transformers {version} builds other parameters than the role table has: {odd[:4]}")
    count = sum(prod(shape) for shape in shapes.values())
    if count != table.shape.parameters():
        raise UserError(f"transformers {version} counts {count} parameters, the Shape {table.shape.parameters()}")
    return (
        f"verified with transformers {version} on the meta device: {len(shapes)} tensors, {count:,} parameters, "
        f"each matched by exactly one of {len(optimizer.groups)} patterns"
    )


def _instantiated(folder: Path, config: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Parameter shapes of the model that ``transformers`` builds from ``folder``, and its version."""
    import torch
    import transformers

    version = str(transformers.__version__)
    try:
        loaded = transformers.FalconH1Config.from_pretrained(str(folder))
        with torch.device("meta"):
            model = transformers.FalconH1ForCausalLM(loaded)
    except Exception as error:  # whatever its checks raise, in whichever version: the export must not exist then
        raise UserError(f"transformers {version} cannot build this target: {error}", file="config.json") from error
    difference = config_difference(config, loaded)
    if difference is not None:
        field, got, value = difference
        raise UserError(f"transformers {version} reads {got!r}, not {value!r}", field=field)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return shapes, version

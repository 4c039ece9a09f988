"""A member as a ``transformers`` checkpoint, and back: a folder of config.json and model.safetensors.

Tools that evaluate, convert or serve start from such a folder. Neither direction needs ``transformers``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.files import read_json, write_atomic
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.hf import CONFIG, INDEX, WEIGHTS
from mup_tune.roles import RoleTable


def save_checkpoint(population: Population, member: int, table: RoleTable, folder: Path) -> None:
    """Write one member so that ``FalconH1ForCausalLM.from_pretrained(folder)`` is the same model.

    Args:
        table: the role table that the member was built from; config.json takes its multipliers and RoPE base.
        folder: is made where it does not exist. Files of these names in it are replaced.

    Raises:
        UserError: a Shape that ``transformers`` cannot build, or a folder that cannot be written.
        ValueError: the member has other multipliers than ``table``.
    """
    for name, buffer in population.multipliers.named_buffers():
        if float(buffer[member]) != float(buffer.new_tensor(table.forward[name])):
            raise ValueError(f"{name}: the member has {float(buffer[member])}, the role table {table.forward[name]}")
    weights = {name: tensor.cpu().clone() for name, tensor in hf.state_dict(population, member).items()}
    text = json.dumps(hf.hf_config(table), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))  # transformers wants to be told
        write_atomic(folder / CONFIG, text)
    except OSError as error:
        raise UserError(f"cannot be written ({error})", file=folder) from None


def load_checkpoint_(population: Population, member: int, table: RoleTable, folder: Path) -> None:
    """Copy a checkpoint's weights into one member, which was built from ``table``.

    Checkpoints in several files, which ``save_pretrained`` writes for large models, are read too. Weights of
    another dtype are converted to the population's.

    Raises:
        UserError: no such checkpoint, a config that is another function than ``table``'s, or weights of
            another Shape. Nothing is copied then.
    """
    difference = hf.config_difference(hf.hf_config(table), read_json(folder / CONFIG))
    if difference is not None:
        field, got, expected = difference
        raise UserError(
            f"the checkpoint has {got!r}, this model {expected!r}",
            file=folder / CONFIG,
            field=field,
            fix="Weights mean something under their own multipliers alone: use the Shape and Settings they come from",
        )
    hf.load_state_dict_(population, member, read_weights(folder))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, on the CPU, by name.

    Raises:
        UserError: a file is missing or broken.
    """
    files: dict[str, list[str]] = defaultdict(list)
    if (folder / INDEX).is_file():
        for name, file in read_json(folder / INDEX)["weight_map"].items():
            files[file].append(name)
    else:
        files[WEIGHTS] = []
    weights: dict[str, Tensor] = {}
    for file, names in files.items():
        try:
            with safe_open(folder / file, framework="pt") as opened:
                weights |= {name: opened.get_tensor(name) for name in names or opened.keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot be read ({error})", file=folder / file) from None
    return weights

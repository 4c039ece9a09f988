"""A step-0 checkpoint by ``transformers``' names, written tensor by tensor.

It is for trainers whose own init is another one. A safetensors file is a length (8 bytes, little-endian), a
JSON header with every tensor's dtype, shape and byte range, and the bytes. All of the header is known before
anything is drawn, so memory holds one tensor at a time.
"""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import torch

from mup_tune.errors import UserError
from mup_tune.model.hf import INDEX, WEIGHTS
from mup_tune.model.init import draw_
from mup_tune.roles import RoleTable

SHARD_BYTES = 5_000_000_000
FLOAT32 = 4  # bytes; draws are float32, and trainers keep masters in it


def write_step_0(folder: Path, table: RoleTable, seed: int, shard_bytes: int = SHARD_BYTES) -> tuple[str, ...]:
    """Draw every parameter as a proxy's member of this seed does, and write it; returns the file names.

    Several files and an index where all of it is more than ``shard_bytes``. A tensor is never cut.

    Raises:
        UserError: the disk has not room enough.
    """
    shapes = table.shapes()
    total = sum(FLOAT32 * prod(shape) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"the step-0 checkpoint takes {total / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free",
            field="--init-seed",
            fix="Make room, or write to another disk",
        )
    shards = _shards(shapes, shard_bytes)
    if len(shards) == 1:
        _write(folder / WEIGHTS, shards[0], table, seed)
        return (WEIGHTS,)
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, table, seed)
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return (INDEX, *names)


def _shards(shapes: dict[str, tuple[int, ...]], most: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut into files of at most ``most`` bytes where a tensor is not more by itself."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = FLOAT32 * prod(shape)
        if shards[-1] and filled + size > most:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write(path: Path, shapes: dict[str, tuple[int, ...]], table: RoleTable, seed: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + FLOAT32 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are read in place, so they start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            tensor = torch.empty(shape, dtype=torch.float32)
            draw_(tensor, table.of(name), seed=seed, parameter=name)
            tensor.numpy().tofile(file)

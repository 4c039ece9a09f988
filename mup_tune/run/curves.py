"""Learning curves: one Parquet file a pack, durable before the journal names it."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mup_tune.files import write_atomic

INTEGERS = ("member", "step", "tokens")


def write_curves(path: Path, curves: dict[str, list[float]], kept: Collection[int]) -> dict[str, str]:
    """Write a pack's curves and return the file's name and SHA-256.

    Args:
        kept: members whose losses an earlier, broken-off commit of this pack has journalled. Their curves
            stay those that belong to these losses: on a GPU a repeated pack is equal within run-to-run noise
            only.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kept and path.is_file():
        curves = _merged(pq.ParquetFile(path).read().to_pydict(), curves, kept)
    columns = {name: pa.array(values, type=_type(name)) for name, values in curves.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, buffer.getvalue())
    for durable in (path, path.parent):
        _sync(durable)
    return {"file": path.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}


def _type(name: str) -> Any:
    import pyarrow as pa

    return pa.int64() if name in INTEGERS else pa.float64()


def _merged(old: dict[str, list[float]], new: dict[str, list[float]], kept: Collection[int]) -> dict[str, list[float]]:
    """``new`` in its order, the rows of the ``kept`` members taken from ``old``."""
    stored = {member: deque(i for i, other in enumerate(old["member"]) if other == member) for member in kept}
    rows = []
    for index, member in enumerate(new["member"]):
        if member not in kept:
            rows.append((new, index))
        elif stored[int(member)]:
            rows.append((old, stored[int(member)].popleft()))
    rows += [(old, index) for rest in stored.values() for index in rest]
    return {name: [source[name][index] for source, index in rows] for name in new}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Learning curves: one Parquet file a pack, durable before the journal names it, and all in one table."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError
from mup_tune.files import atomic, write_atomic
from mup_tune.run.columns import CURVES, schema

GROUP = 100_000  # rows that are written together: some MB, and readers skip whole groups
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


def read_curves(folder: Path, pack: Mapping[str, Any]) -> Any:
    """A committed pack's curves as an Arrow table, a trial's hash in the place of its number.

    Args:
        folder: where the files of curves lie.
        pack: what the journal says of the pack.

    Raises:
        UserError: the file is gone, or not the one that the run committed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / pack["curves"]["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    if hashlib.sha256(content).hexdigest() != pack["curves"]["sha256"]:
        raise UserError("is not the file that the run committed: its SHA-256 differs", file=path)
    # In this thread: those of Arrow's datasets let go of the content late, and abort an ending program.
    stored = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    hashes = pa.array(pack["hashes"], pa.string()).take(stored.column("member"))
    stored = stored.drop_columns("member").add_column(0, "hash", hashes)
    for column in CURVES.columns:  # what an earlier version did not log is empty
        if column.name not in stored.column_names:
            stored = stored.append_column(column.name, pa.nulls(len(stored), pa.float64()))
    stored = stored.select([column.name for column in CURVES.columns])
    return stored.cast(schema(stored.schema, CURVES))


def no_curves() -> Any:
    """The same for no pack."""
    import pyarrow as pa

    empty = pa.table({column.name: [] for column in CURVES.columns})
    return empty.cast(schema(empty.schema, CURVES))


def write_table(path: Path, folder: Path, packs: Iterable[Mapping[str, Any]]) -> None:
    """All curves as one file, a row group at a time, so that no run is too large for memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic(path) as beside, pq.ParquetWriter(beside, no_curves().schema, compression="zstd") as writer:
        group = [no_curves()]
        for pack in packs:
            group.append(read_curves(folder, pack))
            if sum(map(len, group)) >= GROUP:
                writer.write_table(pa.concat_tables(group))
                group = [no_curves()]
        writer.write_table(pa.concat_tables(group))


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

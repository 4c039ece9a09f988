"""Train/validation split by a hash of each document's content, and the index files that hold it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mup_tune.data.corpus import Part, SplitInfo
from mup_tune.data.indexed import IndexedTokens, write_index
from mup_tune.errors import UserError

DIGEST_BYTES = 16


@dataclass
class Records:
    """24 bytes of every document, kept until the split; ``sizes`` is empty where the text is unknown."""

    digests: bytearray = field(default_factory=bytearray)
    sizes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, digest: bytes, size: int | None) -> None:
        self.digests += digest
        if size is not None:
            self.sizes.append(size)

    def keys(self) -> NDArray[np.uint64]:
        """[documents]: the digests' first halves as numbers."""
        return np.frombuffer(self.digests, "<u8")[::2]


def validation_side(keys: NDArray[np.uint64], val_fraction: float) -> NDArray[np.bool_]:
    """True for the documents whose hash falls below ``val_fraction`` of its range.

    So a document's side depends neither on the order nor on the other documents. Where that leaves a side
    empty, the documents with the nearest hash move over.

    Raises:
        UserError: there are no two different documents.
    """
    if not len(keys) or keys.min() == keys.max():
        held = (
            f"{len(keys)} copies of one document" if len(keys) > 1 else "one document" if len(keys) else "no document"
        )
        raise UserError(
            f"the inputs hold {held}, so training and validation cannot be told apart",
            fix="One file, or one line of JSONL, is one document: give at least two different ones",
        )
    side: NDArray[np.bool_] = keys < np.uint64(int(val_fraction * 2**64))
    if not side.any():
        side = keys == keys.min()
    elif side.all():
        side = keys != keys.max()
    return side


def write_split(
    split: str, pairs: Sequence[IndexedTokens], records: Records, chosen: NDArray[np.bool_], folder: Path
) -> SplitInfo:
    """Index files in ``folder`` for the chosen documents; their pointers go into the pairs' own .bin files.

    Args:
        chosen: one flag for each document of all pairs, in order.
    """
    parts, tokens, first = [], 0, 0
    for number, pair in enumerate(pairs):
        mine = chosen[first : first + pair.documents]
        first += pair.documents
        if not mine.any():
            continue
        sequences = np.diff(pair.document_indices)
        kept = np.repeat(mine, sequences)
        lengths = pair.lengths[kept]
        name = f"{split}.idx" if len(pairs) == 1 else f"{split}-{number:05d}.idx"
        indices = np.concatenate([[0], np.cumsum(sequences[mine])])
        write_index(folder / name, pair.dtype, lengths, pair.pointers[kept], indices)
        own = pair.bin_path.parent == folder
        bin_name = pair.bin_path.name if own else str(pair.bin_path.absolute())
        parts.append(Part(bin=bin_name, idx=name, bin_bytes=pair.bin_path.stat().st_size))
        tokens += int(lengths.sum(dtype=np.int64))
    sizes = np.frombuffer(records.sizes, np.int64)[chosen] if records.sizes else None
    digests = np.frombuffer(records.digests, np.uint8).reshape(-1, DIGEST_BYTES)[chosen]
    return SplitInfo(
        parts=tuple(parts),
        documents=int(chosen.sum()),
        tokens=tokens,
        bytes=None if sizes is None else int(sizes.sum()),
        sha256=hashlib.sha256(digests.tobytes()).hexdigest(),
    )

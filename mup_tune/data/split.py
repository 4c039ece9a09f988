"""Train/validation split of tokens by a hash of each document's content, and the index files that hold it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mup_tune.data.corpus import Part, SplitInfo
from mup_tune.data.indexed import IndexedTokens, Ints, write_index
from mup_tune.data.integrity import DIGEST_BYTES
from mup_tune.data.paths import storable
from mup_tune.errors import UserError

TOLERANCE = 0.25  # of the smaller side's tokens
FEWEST = 2  # tokens of a split: one prediction needs two


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


def validation_starts(keys: NDArray[np.uint64], lengths: Ints, val_fraction: float) -> Ints:
    """[documents]: from which of its tokens on a document is held out; 0 is all of it, its length none.

    Validation gets the documents whose hash falls below ``val_fraction`` of the hash's range, so a document's
    side depends neither on the order nor on the other documents. Where few or long documents bring that more
    than ``TOLERANCE`` off the share of *tokens*, the bound moves to the nearest hash. Where no bound is near
    enough, the document there is cut (and all its copies alike): its end is held out.

    Args:
        keys: hashes, equal for copies of one document.
        lengths: in tokens.

    Raises:
        UserError: there are too few tokens to meet the share.
    """
    total = int(lengths.sum())
    target, slack = val_fraction * total, TOLERANCE * min(val_fraction, 1 - val_fraction) * total

    def met(held_out: int) -> bool:
        return abs(held_out - target) <= slack and FEWEST <= held_out <= total - FEWEST

    side = keys < np.uint64(int(val_fraction * 2**64))
    if met(int(lengths[side].sum())):
        return np.where(side, 0, lengths)
    if total:
        distinct, group = np.unique(keys, return_inverse=True)
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, group, lengths)
        below = np.concatenate([[0], np.cumsum(sums)])  # tokens of all smaller hashes
        nearest = int(np.abs(below - target).argmin())
        if met(int(below[nearest])):
            return np.where(group < nearest, 0, lengths)
        crossing = int(np.searchsorted(below, target, side="right")) - 1
        copies = group == crossing
        tail = round((target - below[crossing]) / copies.sum())
        starts = np.where(group < crossing, 0, lengths)
        starts[copies] = np.maximum(lengths[copies] - tail, 0)
        if met(int((lengths - starts).sum())):
            return starts
    raise UserError(
        f"cannot be held out of the inputs' {total} tokens, within {TOLERANCE:.0%}",
        field=f"--val-fraction {val_fraction:g}",
        fix="Give more text, or a share nearer to a half",
    )


@dataclass(frozen=True)
class Piece:
    """What a split holds of a document that is cut: its digest, and its bytes of text if they are known."""

    digest: bytes
    size: int | None = None


def write_split(
    split: str,
    pairs: Sequence[IndexedTokens],
    records: Records,
    starts: Ints,
    stops: Ints,
    pieces: Mapping[int, Piece],
    folder: Path,
) -> SplitInfo:
    """Index files in ``folder`` for a part of the tokens; their pointers go into the pairs' own .bin files.

    Args:
        starts, stops: [documents] of all pairs, in order: tokens [start, stop) of each belong to the split.
        pieces: of the documents that are cut, by their place.
    """
    parts, tokens, first, chosen = [], 0, 0, stops > starts
    for number, pair in enumerate(pairs):
        here = slice(first, first + pair.documents)
        first += pair.documents
        mine = chosen[here]
        if not mine.any():
            continue
        sequences = np.diff(pair.document_indices)
        inside = pair.bounds[:-1] - np.repeat(pair.document_starts, sequences)  # a sequence's place in its document
        begin = np.clip(np.repeat(starts[here], sequences) - inside, 0, pair.lengths)
        end = np.clip(np.repeat(stops[here], sequences) - inside, 0, pair.lengths)
        kept = end > begin
        pointers = pair.pointers + begin * pair.dtype.itemsize
        owners = np.repeat(np.arange(pair.documents), sequences)[kept]
        indices = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=pair.documents)[mine])])
        name = f"{split}.idx" if len(pairs) == 1 else f"{split}-{number:05d}.idx"
        write_index(folder / name, pair.dtype, (end - begin)[kept], pointers[kept], indices)
        own = pair.bin_path.parent == folder
        bin_name = pair.bin_path.name if own else str(storable(pair.bin_path.absolute()))
        parts.append(Part(bin=bin_name, idx=name, bin_bytes=pair.bin_path.stat().st_size))
        tokens += int((end - begin).sum())
    sizes = np.array(records.sizes, np.int64) if records.sizes else None
    digests = np.array(records.digests, np.uint8).reshape(-1, DIGEST_BYTES)
    for place, piece in pieces.items():
        digests[place] = np.frombuffer(piece.digest, np.uint8)
        if sizes is not None and piece.size is not None:
            sizes[place] = piece.size
    return SplitInfo(
        parts=tuple(parts),
        documents=int(chosen.sum()),
        tokens=tokens,
        bytes=None if sizes is None else int(sizes[chosen].sum()),
        sha256=hashlib.sha256(digests[chosen].tobytes()).hexdigest(),
    )

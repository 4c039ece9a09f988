"""Megatron's .bin/.idx token files (the MMIDIDX format, version 1): reader and writer.

An .idx is, little-endian and without padding: 9 bytes of magic, u64 version, u8 dtype code, u64 sequences S,
u64 document indices D + 1, then S int32 lengths (tokens), S int64 pointers (bytes into the .bin), and D + 1
int64 document indices: document d is the sequences [index[d], index[d+1]). The .bin is the bare tokens.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mup_tune.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")
DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name) for code, name in enumerate(("<u1", "<i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"), start=1)
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_SEQUENCE = 2**31 - 1  # lengths are int32
CHUNK_TOKENS = 1 << 20
PUT_BACK = "Put it back as it was made, then give the same command again"
Ints = NDArray[np.int64]
Chunk = tuple[int, NDArray[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else int32."""
    return DTYPES[8] if vocab_size <= 2**16 else DTYPES[4]


def mapped(path: Path, dtype: np.dtype[Any], count: int, offset: int = 0) -> NDArray[Any]:
    """``count`` numbers of a file, memory-mapped read-only; an ordinary array where there are none."""
    if not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))


class IndexedTokens:
    """A checked, memory-mapped .bin/.idx pair.

    Attributes: ``dtype`` of the stored ids, ``lengths`` [S] in tokens, ``pointers`` [S] in bytes,
    ``document_indices`` [D + 1].

    Raises:
        UserError: a file is missing, truncated, not this format, or points outside the .bin.
    """

    def __init__(self, bin_path: Path, idx_path: Path) -> None:
        self.bin_path, self.idx_path = bin_path, idx_path
        for path in (idx_path, bin_path):
            if not path.is_file():
                raise UserError("no such file", file=path, fix="A Megatron pair is PREFIX.bin and PREFIX.idx")
        size = idx_path.stat().st_size
        with idx_path.open("rb") as stream:
            head = stream.read(len(MAGIC) + HEADER.size)
        if not head.startswith(MAGIC):
            raise UserError("is not a Megatron index (it does not start with MMIDIDX)", file=idx_path)
        if len(head) < len(MAGIC) + HEADER.size:
            raise UserError(f"is truncated: {size} bytes", file=idx_path)
        version, code, n_sequences, n_indices = HEADER.unpack_from(head, len(MAGIC))
        if version != 1:
            raise UserError(f"{version} is not supported: only version 1 is", file=idx_path, field="version")
        if code not in DTYPES or DTYPES[code].kind not in "iu":
            raise UserError(f"{code} is not the code of an integer type", file=idx_path, field="dtype code")
        self.dtype = DTYPES[code]
        at = len(head)
        expected = at + 12 * n_sequences + 8 * n_indices
        if size < expected:
            raise UserError(f"is truncated: {size} bytes, its header asks for {expected}", file=idx_path)
        self.lengths = mapped(idx_path, np.dtype("<i4"), n_sequences, at)
        self.pointers = mapped(idx_path, np.dtype("<i8"), n_sequences, at + 4 * n_sequences)
        self.document_indices = mapped(idx_path, np.dtype("<i8"), n_indices, at + 12 * n_sequences)
        self._sizes = {idx_path: expected, bin_path: bin_path.stat().st_size}
        self._check()

    def _check(self) -> None:
        indices, item = self.document_indices, self.dtype.itemsize
        # compared, not subtracted: numbers near 2^63 would wrap around
        if (
            not len(indices)
            or indices[0] != 0
            or indices[-1] != len(self.lengths)
            or (indices[1:] < indices[:-1]).any()
        ):
            raise UserError("must rise from 0 to the sequence count", file=self.idx_path, field="document indices")
        if not len(self.lengths):
            return
        if self.lengths.min() < 0:
            at = int(self.lengths.argmin())
            raise UserError(f"{self.lengths[at]} at sequence {at} is negative", file=self.idx_path, field="lengths")
        if self.pointers.min() < 0 or (self.pointers % item).any():
            raise UserError(f"must be multiples of {item}, at least 0", file=self.idx_path, field="pointers")
        size, bytes_S = self._sizes[self.bin_path], self.lengths.astype(np.int64) * item
        beyond = np.flatnonzero(self.pointers > size - bytes_S)
        if len(beyond):
            end = max(int(self.pointers[at]) + int(bytes_S[at]) for at in beyond[:1000])
            raise UserError(
                f"has {size} bytes, but {self.idx_path} points up to byte {end}", file=self.bin_path, fix=PUT_BACK
            )

    @property
    def documents(self) -> int:
        return len(self.document_indices) - 1

    @cached_property
    def bounds(self) -> Ints:
        """[S + 1]: where each sequence starts when all are laid end to end, then the total, in tokens."""
        bounds = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=bounds[1:])
        return bounds

    @cached_property
    def document_starts(self) -> Ints:
        """[D]: first token of each document in the same stream."""
        starts: Ints = self.bounds[self.document_indices[:-1]]
        return starts

    @cached_property
    def document_lengths(self) -> Ints:
        """[D], in tokens."""
        return np.diff(np.append(self.document_starts, self.bounds[-1]))

    def chunks(self, stream: BinaryIO, document: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Tokens [start, stop) of a document, a million at most at a time, with their sequence's number.

        Args:
            stream: the open .bin: read by seek, not by map, so that memory stays flat.
        """
        item, place = self.dtype.itemsize, 0
        for sequence in range(int(self.document_indices[document]), int(self.document_indices[document + 1])):
            length = int(self.lengths[sequence])
            first, last = max(0, start - place), length if stop is None else min(length, stop - place)
            place += length
            if first < last:
                stream.seek(int(self.pointers[sequence]) + first * item)
            for at in range(first, last, CHUNK_TOKENS):
                count = min(last - at, CHUNK_TOKENS)
                yield sequence, np.frombuffer(stream.read(count * item), self.dtype)

    @cached_property
    def _bin(self) -> NDArray[Any]:
        return mapped(self.bin_path, self.dtype, self._sizes[self.bin_path] // self.dtype.itemsize)

    def _refuse_shrunk(self) -> None:
        """Look at sizes before reading: a mapped file beyond its end kills the process without a word."""
        for path, size in self._sizes.items():
            try:
                now = path.stat().st_size
            except OSError as error:
                raise UserError(f"cannot be read any more ({error.strerror})", file=path, fix=PUT_BACK) from None
            if now < size:
                raise UserError(f"has {now} bytes, but had {size} when it was opened", file=path, fix=PUT_BACK)

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Token ids and document ordinals at positions of the stream, both shaped like ``positions``.

        Raises:
            UserError: a file was cut or taken away since it was opened.
        """
        self._refuse_shrunk()
        # side="right" steps over empty sequences and empty documents
        sequence = np.searchsorted(self.bounds[1:], positions, side="right")
        element = self.pointers[sequence] // self.dtype.itemsize + positions - self.bounds[sequence]
        document = np.searchsorted(self.document_starts, positions, side="right") - 1
        return self._bin[element].astype(np.int64), document.astype(np.int64)


def write_index(
    path: Path, dtype: np.dtype[Any], lengths: NDArray[Any], pointers: NDArray[Any], indices: NDArray[Any]
) -> None:
    """An .idx from lengths [S] in tokens, pointers [S] in bytes and document indices [D + 1]."""
    with path.open("wb") as stream:
        stream.write(MAGIC + HEADER.pack(1, CODES[dtype], len(lengths), len(indices)))
        for numbers, stored in ((lengths, "<i4"), (pointers, "<i8"), (indices, "<i8")):
            stream.write(np.ascontiguousarray(numbers, dtype=stored).tobytes())


class PairWriter:
    """Writes documents to PREFIX.bin as they come and PREFIX.idx at the end: one sequence a document."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        self.bin_path, self.idx_path = pair_paths(prefix)
        self.dtype = dtype
        self._lengths = array("i")
        self._stream = self.bin_path.open("wb", buffering=1 << 20)

    def add(self, tokens: NDArray[Any]) -> None:
        self._stream.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(len(tokens))

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if error is None:
            lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.empty(0, np.int32)
            pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * self.dtype.itemsize
            write_index(self.idx_path, self.dtype, lengths, pointers, np.arange(len(lengths) + 1))


def pair_paths(prefix: Path) -> tuple[Path, Path]:
    """The .bin and .idx of a prefix, which may have dots of its own."""
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


def is_index(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC

"""Whether a corpus' files are still those that were prepared: a glance at every use, all bytes when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mup_tune.files import FrozenModel

BLOCK, BLOCKS = 1 << 12, 64  # bytes of a sample, and samples of a file
CHUNK = 1 << 20
DIGEST_BYTES = 16


class Seen(FrozenModel):
    """A file as it was prepared.

    ``mtime_ns`` is its time of change, ``sampled`` a BLAKE2b of its size and of ``BLOCKS`` blocks evenly
    spaced from its first byte to its last, ``whole`` one of all bytes, or null for a .bin that was adopted:
    the digests of its documents stand for that.
    """

    mtime_ns: int
    sampled: str
    whole: str | None = None

    @classmethod
    def of(cls, path: Path, whole: bool) -> Seen:
        return cls(
            mtime_ns=path.stat().st_mtime_ns,
            sampled=sampled_digest(path),
            whole=whole_digest(path, lambda _: None) if whole else None,
        )


def stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written to or replaced; nothing where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def sampled_digest(path: Path) -> str:
    """Reads 256 KiB at most, whatever the size."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=DIGEST_BYTES)
    with path.open("rb", buffering=0) as stream:
        for block in range(BLOCKS) if size > BLOCK * BLOCKS else [0]:
            stream.seek(block * (size - BLOCK) // (BLOCKS - 1) if block else 0)
            digest.update(stream.read(BLOCK if size > BLOCK * BLOCKS else size))
    return digest.hexdigest()


def whole_digest(path: Path, advance: Callable[[int], None]) -> str:
    """Of all bytes; ``advance`` is told of them as they are read."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()

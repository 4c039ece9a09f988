"""Compressed files as streams: gzip with padding, zstd with any window."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from mup_tune.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 1 << 20
WIDEST = 1 << 27  # bytes of a window that Arrow's zstd accepts
LIMIT = 1 << 31  # what `zstd --long=31` needs


def unpacked(raw: BinaryIO, codec: str) -> io.BufferedReader:
    """The content of a gzip or zstd file, of one or several members.

    Raises:
        UserError: its window asks for the package zstandard, which is not installed.
        OSError, EOFError, zlib.error: from this or from reading, where the file is torn or something else.
    """
    if codec == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER)
    window = _window(raw.read(6))
    raw.seek(0)
    if window > WIDEST:
        return io.BufferedReader(_LongZstd(raw), BUFFER)
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, codec), BUFFER)


def _window(head: bytes) -> int:
    """Bytes that a zstd frame may look back, by its header (RFC 8878, 3.1.1.1.2); 0 where it says none."""
    if len(head) < 6 or head[4] & 0x20:
        return 0
    base = 1 << (10 + (head[5] >> 3))
    return base + base // 8 * (head[5] & 7)


class _LongZstd(io.RawIOBase):
    """Zstd frames with windows up to ``LIMIT``, one after the other."""

    def __init__(self, raw: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"is zstd with a window of more than {WIDEST >> 20} MiB, which asks for the package zstandard",
                file=raw.name,
                fix="Install zstandard, or pack the file without --long",
            ) from None
        self._raw, self._error = raw, zstandard.ZstdError
        self._frame: Callable[[], Any] = zstandard.ZstdDecompressor(max_window_size=LIMIT).decompressobj
        self._decoder, self._fed = self._frame(), False
        self._packed, self._ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready and self._fill():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _fill(self) -> bool:
        """Unpack some more; False at the end of the last frame."""
        if self._decoder.eof:
            self._packed = self._decoder.unused_data
            self._decoder, self._fed = self._frame(), False
        packed, self._packed = self._packed or self._raw.read(1 << 14), b""
        if not packed:
            if self._fed:
                raise EOFError("the last frame has no end")
            return False
        self._fed = True
        try:
            self._ready = self._decoder.decompress(packed)
        except self._error as error:
            raise OSError(str(error)) from None
        return True

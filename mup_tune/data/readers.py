"""Documents of one input file, streamed: text, JSON Lines and Parquet, the first two also compressed."""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mup_tune.data.kinds import COLUMN, codec_of, kind_of
from mup_tune.data.unpacking import BUFFER, unpacked
from mup_tune.errors import UserError

Advance = Callable[[int], None]  # told how many input bytes were just read, as they lie on disk
SNIFF = 1 << 13
STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")  # as Arrow says them


def read(path: Path, skipped: Counter[str], advance: Advance) -> Iterator[str]:
    """The documents of ``path``, possibly empty ones, by its kind; holds one of them at a time.

    Raises:
        UserError: names the file, and the line or column, that cannot be read or decompressed.
    """
    codec: str | None = None
    try:
        codec, suffix = codec_of(path)
        with _opened(path, codec) as (content, _):
            kind = kind_of(path, suffix, codec, content)
        reader = {"lines": _lines, "parquet": _rows, "text": _whole}[kind]
        yield from reader(path, codec, skipped, advance)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot be read ({error.strerror})", file=path) from None
        raise UserError(f"is torn, or not {codec or 'Parquet'} ({error})", file=path, fix="Fetch it anew") from None


@contextmanager
def _opened(path: Path, codec: str | None) -> Iterator[tuple[io.BufferedReader, BinaryIO]]:
    """(the content, the file it is read from): the same without a codec."""
    with path.open("rb") as raw:
        if codec is None:
            yield raw, raw
            return
        if not path.stat().st_size:  # arrow takes it for compressed nothing; an interrupted copy leaves such files
            raise UserError(f"is empty, without even a {codec} header", file=path, fix="Fetch it anew")
        with unpacked(raw, codec) as content:
            yield content, raw


def _whole(path: Path, codec: str | None, skipped: Counter[str], advance: Advance) -> Iterator[str]:
    """A text file is one document; what is not UTF-8 text is counted and left out."""
    with _opened(path, codec) as (stream, _):
        content = stream.read(SNIFF)
        if b"\0" not in content:  # a large binary file is not worth reading further
            content += stream.read()
    advance(path.stat().st_size)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        skipped["not UTF-8 text"] += 1
        return
    yield text


def _lines(path: Path, codec: str | None, skipped: Counter[str], advance: Advance) -> Iterator[str]:
    """A line of JSONL is one document, its field ``text``."""
    with _opened(path, codec) as (stream, raw):
        done = 0
        for number, line in enumerate(stream, start=1):
            advance(raw.tell() - done)
            done = raw.tell()
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"is not JSON ({error})", file=path, field=f"line {number}") from None
            text = record.get(COLUMN, 0) if isinstance(record, dict) else 0
            if text is None:  # an empty document, as in Parquet
                yield ""
                continue
            if not isinstance(text, str):
                raise UserError("must be an object with a string field 'text'", file=path, field=f"line {number}")
            try:
                text.encode()
            except UnicodeEncodeError:  # half a surrogate pair
                skipped["not UTF-8 text"] += 1
                continue
            yield text


def _rows(path: Path, _: str | None, skipped: Counter[str], advance: Advance) -> Iterator[str]:
    """A row of Parquet is one document, its column ``text``; progress is counted in rows."""
    import pyarrow
    from pyarrow import parquet

    # pre_buffer would hold a row group's whole column, which may be the file
    options = {"pre_buffer": False, "buffer_size": BUFFER, "page_checksum_verification": True}
    size, rows, done = path.stat().st_size, 0, 0
    try:
        with parquet.ParquetFile(path, **options) as file:
            _check_column(file.schema_arrow, path)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(256, row_groups=[group], columns=[COLUMN], use_threads=False):
                    yield from _values(batch.column(0), skipped)
                    rows += len(batch)
                    advance(size * rows // file.metadata.num_rows - done)
                    done = size * rows // file.metadata.num_rows
    except pyarrow.ArrowException as error:  # some of them are not OSErrors
        raise OSError(str(error).splitlines()[0]) from None


def _check_column(schema: Any, path: Path) -> None:
    import pyarrow

    index = schema.get_field_index(COLUMN)  # -1 also where there are two of them
    kind = schema.types[index] if index >= 0 else None
    if str(kind.value_type if isinstance(kind, pyarrow.DictionaryType) else kind) not in STRINGS:
        there = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise UserError(
            f"must be one column of strings; the file's columns are {there}",
            file=path,
            field=COLUMN,
            fix="Rename or cast the column that holds the documents",
        )


def _values(column: Any, skipped: Counter[str]) -> Iterator[str]:
    for value in column:
        try:
            text = value.as_py() or ""  # null is an empty document
            yield text.decode() if isinstance(text, bytes) else text
        except UnicodeDecodeError:
            skipped["not UTF-8 text"] += 1

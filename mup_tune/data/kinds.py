"""What an input file is: its compression, and text, JSON Lines or Parquet. Its name speaks, then its content.

A file of records that is read as one text trains on raw JSON without complaint, so what could be either is
refused by its name.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

from mup_tune.errors import UserError

Kind = Literal["text", "lines", "parquet"]
COLUMN = "text"  # of a Parquet file, and the field of a JSON Lines record
CODECS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
LINES = (".jsonl", ".ndjson", ".jsonlines")
PARQUET, PARQUET_MAGIC = ".parquet", b"PAR1"
BOM = b"\xef\xbb\xbf"
SNIFF, LONGEST = 1 << 10, 1 << 26  # bytes: of a glance, and of a first line at most
LONGEST_RECORD = 1 << 24  # bytes of one that goes over lines


def codec_of(path: Path) -> tuple[str | None, str]:
    """The compression, and the suffix below it in lower case.

    Raises:
        OSError: the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix in CODECS:
        return CODECS[suffix], path.with_suffix("").suffix.lower()
    with path.open("rb") as raw:
        head = raw.read(4)
    found = (codec for magic, codec in MAGIC.items() if head.startswith(magic))
    return next(found, None), suffix


def kind_of(path: Path, suffix: str, codec: str | None, content: io.BufferedReader) -> Kind:
    """By name, or by the first two lines of ``content``, the file's unpacked bytes from their start.

    Raises:
        UserError: a JSON array of records, records of several lines each, or records that end after the first
        line.
    """
    if suffix in LINES:
        return "lines"
    head = content.peek(SNIFF)
    if suffix == PARQUET or head.startswith(PARQUET_MAGIC):
        if codec:
            fix = "Unpack it: Parquet compresses by itself"
            raise UserError(f"is a Parquet file inside {codec}", file=path, fix=fix)
        return "parquet"
    if head.removeprefix(BOM).lstrip()[:1] not in (b"{", b"["):
        return "text"
    lines = (line.strip() for line in iter(lambda: content.readline(LONGEST), b""))
    filled = (line for line in lines if line)
    first, second = next(filled, b"").removeprefix(BOM), next(filled, b"")
    form = ""
    if first.startswith(b"["):
        records = [*_entries(first), second.rstrip(b",]"), *_over_lines(first, second, content)]
        form = "a JSON array of records" if any(map(_is_record, records)) else ""
    elif len(records := _over_lines(first, second, content)) == 2 and _is_record(records[0]):
        form = "records of several lines each"  # one alone may be a configuration
    if form:
        query = "'.[]'" if first.startswith(b"[") else "."
        raise UserError(
            f"is {form}, not JSON Lines, and would be read as one text of raw JSON",
            file=path,
            fix=f"Write a record a line (`jq -c {query}`), and call it .jsonl",
        )
    if not _is_record(first):
        return "text"
    if second and not _is_record(second):
        raise UserError(
            "may be JSON Lines or a text: its first line is a record with a field 'text', its second is none",
            file=path,
            fix="Call it .jsonl if it holds records, or mend its first line",
        )
    return "lines"


def _entries(line: bytes) -> list[bytes]:
    """What may be the first record of an array that begins on this line, alone or with others."""
    try:
        array = json.loads(line)
    except (ValueError, RecursionError):
        return [line[1:].strip().rstrip(b",")]
    return [json.dumps(array[0]).encode()] if array else []


def _over_lines(first: bytes, second: bytes, content: io.BufferedReader) -> list[bytes]:
    """The first object, where it begins on these lines and ends on a later one, and what begins another."""
    opening = (first + b"\n" + second).removeprefix(b"[").lstrip()
    if not opening.startswith(b"{") or first.endswith(b"}"):
        return []
    begun = (opening + b"\n" + content.read(LONGEST_RECORD)).decode(errors="replace")
    try:
        found, end = json.JSONDecoder().raw_decode(begun)
    except (ValueError, RecursionError):
        return []
    more = begun[end:].lstrip(", \t\r\n")[:1]
    return [json.dumps(found).encode(), *([b"{"] if more == "{" else [])]


def _is_record(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and isinstance(record.get(COLUMN, 0), str | None)

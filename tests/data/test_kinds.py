"""What a file is taken for: by its name in every usual form, else by its content; no guess is silent."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from corpora import write_jsonl
from pyarrow import parquet

from mup_tune.data.readers import read
from mup_tune.errors import UserError

TEXTS = ["one", "two\nlines", "x" * 300_000]  # a first line longer than any glance
RECORDS = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def documents(path: Path, content: bytes | None = None) -> list[str]:
    if content is not None:
        path.write_bytes(content)
    return list(read(path, Counter(), lambda _: None))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.NdJson", "a.jsonlines", "a.json", "a.txt", "a"])
@pytest.mark.parametrize("pack", ["", ".gz", ".GZ", ".gzip"])
def test_json_lines_under_every_usual_name_and_case(tmp_path: Path, name: str, pack: str) -> None:
    assert documents(tmp_path / f"c4.0.{name}{pack}", gzip.compress(RECORDS) if pack else RECORDS) == TEXTS


def test_records_in_another_order_or_after_blank_lines_or_a_byte_order_mark_are_told(tmp_path: Path) -> None:
    backwards = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(reversed(TEXTS)))
    assert documents(tmp_path / "a.json", b"\n \n" + backwards.encode()) == TEXTS[::-1]
    assert documents(tmp_path / "b.json", RECORDS.splitlines()[0]) == TEXTS[:1]


def test_compression_and_parquet_without_their_suffix_are_told(tmp_path: Path) -> None:
    assert documents(tmp_path / "a.jsonl", gzip.compress(RECORDS)) == TEXTS
    assert documents(tmp_path / "a.txt", gzip.compress(b"plain")) == ["plain"]
    parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "part-0")
    assert documents(tmp_path / "part-0") == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "a package", "version": 1}',
        b'{\n  "text": "pretty, and a configuration"\n}\n',
        b'["a", "list"]',
        b"[section]\nkey = 1\n",
        b"{ a brace }\nand more",
        b"",
        b"{",
    ],
)
def test_other_json_and_text_stay_one_text(tmp_path: Path, content: bytes) -> None:
    assert documents(tmp_path / "x.json", content) == [content.decode()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a record"}\nand then prose\n', "may be JSON Lines or a text"),
        (b'{"text": "a record"}\n{"body": "another"}\n', "may be JSON Lines or a text"),
        (b'[{"text": "a"}, {"text": "b"}]', "is a JSON array of records"),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "is a JSON array of records"),
        (b'[{"text": "a"},\n{"text": "b"}]\n', "is a JSON array of records"),
        (json.dumps([{"id": 1, "text": "a"}], indent=2).encode(), "is a JSON array of records"),
        (b'{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "is records of several lines each"),
    ],
)
def test_what_could_be_either_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"x\.json: {said}"):
        documents(tmp_path / "x.json", content)
    with pytest.raises(UserError, match=rf"x\.json\.gz: {said}"):
        documents(tmp_path / "x.json.gz", gzip.compress(content))


def test_a_name_that_says_records_is_held_to_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.ndjson: line 2: must be an object with a string field"):
        documents(tmp_path / "x.ndjson", b'{"text": "a"}\n{"body": "b"}\n')


def test_progress_still_counts_every_byte_once(tmp_path: Path) -> None:
    advances: list[int] = []
    path = write_jsonl(tmp_path / "a.json", TEXTS)
    assert list(read(path, Counter(), advances.append)) == TEXTS
    assert sum(advances) == path.stat().st_size

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import prepared, write_jsonl
from pyarrow import parquet

from mup_tune.data.corpus import Corpus
from mup_tune.data.readers import read
from mup_tune.errors import UserError

TEXTS = [f"text {number}: " + "é𝄞x\n"[number % 4] * (number % 300) for number in range(700)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def write_parquet(path: Path, column: pa.Array, **options: object) -> Path:
    numbers = pa.array(range(len(column)))
    parquet.write_table(pa.table({"id": numbers, "text": column}), path, **options)
    return path


def everything(path: Path) -> tuple[list[str], Counter[str], list[int]]:
    skipped: Counter[str] = Counter()
    advances: list[int] = []
    return list(read(path, skipped, advances.append)), skipped, advances


def tokens(corpus: Corpus) -> list[list[int]]:
    return [corpus.stream(split).at(np.arange(corpus.tokens(split)))[0].tolist() for split in ("train", "val")]  # type: ignore[arg-type]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "plain.jsonl", TEXTS)


def test_every_format_gives_the_tokens_of_the_plain_text(plain: Path, tmp_path: Path) -> None:
    content = plain.read_bytes()
    inputs = [write_parquet(tmp_path / "large.parquet", pa.array(TEXTS, pa.large_string()), row_group_size=90)]
    inputs += [write_parquet(tmp_path / "whole.parquet", pa.array(TEXTS), compression="zstd")]
    for suffix, pack in PACK.items():
        inputs.append(tmp_path / f"x.jsonl{suffix}")
        inputs[-1].write_bytes(pack(content))
        inputs.append(tmp_path / f"members.jsonl{suffix}")  # as `cat` of two compressed files makes them
        cut = content.index(b"\n", len(content) // 2) - 5  # inside a line
        inputs[-1].write_bytes(pack(content[:cut]) + pack(content[cut:]))
    reference = prepared([plain], tmp_path / "out")
    for number, path in enumerate(inputs):
        corpus = prepared([path], tmp_path / f"out-{number}")
        assert tokens(corpus) == tokens(reference), path
        assert corpus.hash == reference.hash


@pytest.mark.parametrize("suffix", list(PACK))
def test_a_compressed_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    for name, content in (("a.txt", b"\xef\xbb\xbfab\ncd"), ("b.bin", b"x\0"), ("none", b"")):
        (tmp_path / f"{name}{suffix}").write_bytes(PACK[suffix](content))
    assert everything(tmp_path / f"a.txt{suffix}")[0] == ["ab\ncd"]
    assert everything(tmp_path / f"b.bin{suffix}")[:2] == ([], Counter({"not UTF-8 text": 1}))
    assert everything(tmp_path / f"none{suffix}")[0] == [""]


def test_progress_counts_the_bytes_on_disk(plain: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(600).hex() for _ in range(2000)]
    paths = [write_parquet(tmp_path / "x.parquet", pa.array(texts)), write_jsonl(tmp_path / "x.jsonl", texts)]
    paths += [tmp_path / "x.jsonl.gz"]
    paths[-1].write_bytes(gzip.compress(paths[-2].read_bytes()))
    for path in paths:
        advances = everything(path)[2]
        assert sum(advances) == path.stat().st_size
        assert max(advances) < 0.8 * path.stat().st_size, "it moves while the file is read"


def test_null_and_broken_values_of_a_column_are_counted(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 3, 5], np.int32).tobytes()), pa.py_buffer(b"ok\xffok")]
    )
    assert everything(write_parquet(tmp_path / "b.parquet", broken))[:2] == (
        ["ok", "ok"],
        Counter({"not UTF-8 text": 1}),
    )
    assert everything(write_parquet(tmp_path / "n.parquet", pa.array(["a", None, ""])))[0] == ["a", "", ""]
    assert everything(write_parquet(tmp_path / "e.parquet", pa.array([], pa.string())))[0] == []


def test_a_parquet_file_without_the_column_names_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for table, there in (
        ({"content": ["a"], "n": [1]}, r"content \(string\), n \(int64\)"),
        ({"text": [1]}, r"text \(int64\)"),
        ({"text": [["a"]]}, r"text \(list<"),
    ):
        parquet.write_table(pa.table(table), path)
        with pytest.raises(UserError, match=rf"x\.parquet: text: must be one column of strings.* {there}"):
            everything(path)
    path.with_name("x.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"x\.parquet\.gz: is a Parquet file inside gzip"):
        everything(path.with_name("x.parquet.gz"))


@pytest.mark.parametrize("suffix", list(PACK))
def test_torn_and_foreign_files_are_named(plain: Path, tmp_path: Path, suffix: str) -> None:
    content, path = plain.read_bytes(), tmp_path / f"x.jsonl{suffix}"
    whole = PACK[suffix](content)
    for wrong in (whole[: len(whole) // 2], whole[:-1], whole[:3], content, whole + b"tail", whole + whole[:20]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"x\.jsonl{suffix}: is torn, or not"):
            everything(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"x\.jsonl{suffix}: is empty"):
        everything(path)
    path.write_bytes(PACK[suffix](b'{"text": "a"}\n{"text": 3}\n'))
    with pytest.raises(UserError, match=rf"x\.jsonl{suffix}: line 2: must be an object"):
        everything(path)


def test_corrupt_gzip_and_parquet_are_named(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    whole = bytearray(gzip.compress(plain.read_bytes()))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"x\.jsonl\.gz: is torn, or not gzip"):
        everything(path)
    path = write_parquet(tmp_path / "x.parquet", pa.array(TEXTS), write_page_checksum=True)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    for wrong in (b"", b"PAR1", good[: len(good) // 2], good[:-1], b"text\n" * 100, bytes(flipped)):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"x\.parquet: is torn, or not Parquet"):
            everything(path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.binary()),
    ],
    ids=str,
)
def test_every_kind_of_string_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    column = (
        pa.array(["é", None, "é", "a"], pa.string()).cast(kind if kind != pa.binary_view() else pa.binary()).cast(kind)
    )
    assert everything(write_parquet(tmp_path / "x.parquet", column))[0] == ["é", "", "é", "a"]


def test_binary_that_is_no_text_and_null_records_are_counted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", pa.array([b"ok", b"\xff"]))
    assert everything(path)[:2] == (["ok"], Counter({"not UTF-8 text": 1}))
    for name in ("x.jsonl", "x.dat"):
        (tmp_path / name).write_text('{"text": null}\n{"text": "a"}\n')
        assert everything(tmp_path / name)[0] == ["", "a"]


def test_zero_padded_gzip_is_whole(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"ab") + bytes(700) + gzip.compress(b"cd") + bytes(300))
    assert everything(tmp_path / "x.txt.gz")[0] == ["abcd"]


def test_zstd_with_the_longest_window_is_read(tmp_path: Path) -> None:
    """Frames by hand (RFC 8878): a window of 2 GiB, and one raw block that is the last."""
    pytest.importorskip("zstandard")
    content = b'{"text": "one"}\n{"text": "two"}\n'
    frame = b"\x28\xb5\x2f\xfd\x00\xa8" + (len(content) << 3 | 1).to_bytes(3, "little") + content
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(2 * frame)
    assert everything(path)[0] == 2 * ["one", "two"]
    for wrong in (frame[:-3], frame + b"tail", frame + frame[:8]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"x\.jsonl\.zst: is torn, or not zstd"):
            everything(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.parquet"])
def test_files_that_may_not_be_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / name).chmod(0)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Permission denied\)"):
        everything(tmp_path / name)

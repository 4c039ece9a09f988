"""Damage that keeps a file's size: what a glance finds, what only reading all does, and what is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from corpora import pack_pair, prepared, words, write_jsonl
from typer.testing import CliRunner

from mup_tune.cli import data as command
from mup_tune.data.corpus import Corpus
from mup_tune.data.integrity import BLOCK, BLOCKS, sampled_digest
from mup_tune.data.verify import verify
from mup_tune.errors import UserError

app = typer.Typer()
command.register(app)


def damaged(path: Path, at: int, keep_time: bool) -> None:
    """One bit of a byte flipped, with the file's old time or a new one."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 10**9)))


def large(folder: Path) -> Corpus:
    """Of more bytes than are sampled."""
    texts = [f"{number:9}" * 9000 for number in range(20)]
    return prepared([write_jsonl(folder / "t.jsonl", texts)], folder / "corpus")


def test_samples_cover_both_ends_and_small_files_whole(tmp_path: Path) -> None:
    path, digests = tmp_path / "x", set()
    for size in (0, 1, BLOCK * BLOCKS, BLOCK * BLOCKS + 1, 10**6):
        for at in ((), (0,), (size - 1,), (size // 2,)) if size else ((),):
            content = bytearray(size)
            for place in at:
                content[place] = 1
            path.write_bytes(content)
            digests.add((size, sampled_digest(path)))
    assert len(digests) == 1 + 2 + 4 + 4 + 3, "the middle of a large file is between two samples"
    with path.open("wb") as stream:
        stream.truncate(10**11)
    sampled_digest(path)  # a hundred gigabytes, in no time


def test_a_use_refuses_zeros_of_the_same_size(tmp_path: Path) -> None:
    corpus = large(tmp_path)
    for name in ("tokens.bin", "train.idx", "val.idx"):
        path = corpus.path / name
        content = path.read_bytes()
        path.write_bytes(bytes(len(content)))
        with pytest.raises(UserError, match=rf"{name}: has other content"):
            Corpus.open(corpus.path)
        path.write_bytes(content)
    assert Corpus.open(corpus.path).hash == corpus.hash


def test_a_bit_between_samples_is_noted_by_time_and_found_by_verify(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = large(tmp_path)
    tokens, middle = corpus.path / "tokens.bin", corpus.path.joinpath("tokens.bin").stat().st_size // 2
    damaged(tokens, middle, keep_time=False)
    Corpus.open(corpus.path)
    assert "tokens.bin was written or copied since" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"tokens\.bin: is not what it was"):
        verify(corpus.path, lambda *_: None)
    damaged(tokens, middle, keep_time=True)  # whole again, at another time
    reports: list[tuple[int, int]] = []
    verify(corpus.path, lambda *done: reports.append(done))
    sizes = sum((corpus.path / name).stat().st_size for name in ("tokens.bin", "train.idx", "val.idx"))
    assert reports[-1] == (sizes, sizes)
    capfd.readouterr()
    Corpus.open(corpus.path)
    assert capfd.readouterr().err == "", "what proved whole is trusted from then on"


@pytest.mark.parametrize("recorded", [True, False])
def test_an_adopted_pair_is_verified_by_its_documents(tmp_path: Path, recorded: bool) -> None:
    pair = pack_pair(
        tmp_path / "p", [[list(range(1000)) * 20, [1000]] for _ in range(2)] + [[[5] * 40_000 + [1000]]], code=4
    )  # more bytes than are sampled
    corpus = prepared([pair], tmp_path / "out", 0.3, name=None, vocab_size=1001, eod="1000")
    assert not recorded or verify(corpus.path, lambda *_: None).documents == 5, "two copies are cut"
    if not recorded:
        forget(corpus)
        found = verify(corpus.path, lambda *_: None)
        assert len(found.unrecorded) == 3
    damaged(tmp_path / "p.bin", 10_000, keep_time=True)
    Corpus.open(corpus.path)
    with pytest.raises(UserError, match=r"p\.bin: its (train|val) documents are not those that were prepared"):
        verify(corpus.path, lambda *_: None)
    (tmp_path / "p.bin").write_bytes(bytes((tmp_path / "p.bin").stat().st_size))
    if recorded:
        with pytest.raises(UserError, match=r"p\.bin: has other content"):
            Corpus.open(corpus.path)


def forget(corpus: Corpus) -> None:
    """Make corpus.json what it was before digests of files were recorded."""
    file = corpus.path / "corpus.json"
    new = {"files", "eods_inside", "lost_characters", "cut_documents"}
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key not in new}))


def test_a_corpus_from_before_still_loads_and_says_what_cannot_be_checked(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    forget(corpus)
    assert Corpus.open(corpus.path).hash == corpus.hash
    result = CliRunner().invoke(app, ["data", "verify", str(corpus.path)])
    assert (result.exit_code, "no digest was recorded" in result.stdout) == (0, True)
    (corpus.path / "tokens.bin").write_bytes(b"\xff" * (corpus.path / "tokens.bin").stat().st_size)
    with pytest.raises(UserError, match="outside the vocabulary of 257"):
        verify(corpus.path, lambda *_: None)


def test_verify_prints_json_alone(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    result = CliRunner().invoke(app, ["data", "verify", str(corpus.path), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {
        "path": str(corpus.path),
        "hash": corpus.hash,
        "files": ["tokens.bin", "train.idx", "val.idx"],
        "adopted_documents": 0,
        "unrecorded": [],
    }

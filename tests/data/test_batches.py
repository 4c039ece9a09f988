from __future__ import annotations

import hashlib
import itertools
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from corpora import pack_pair, prepared, words
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data.batches import Batches
from mup_tune.data.corpus import Corpus
from mup_tune.errors import UserError


def stream_of(corpus: Corpus) -> list[tuple[int, int]]:
    """The training split as (token, document), read one by one."""
    stream = corpus.stream("train")
    return [tuple(int(each[0]) for each in stream.at(np.array([at]))) for at in range(stream.tokens)]  # type: ignore[misc]


def reference_row(stream: list[tuple[int, int]], start: int, seq_len: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, targets and document numbers of one row, the slow and obvious way."""
    tokens, targets, documents, current = [], [], [], 0
    for offset in range(seq_len):
        token, document = stream[start + offset]
        following, following_document = stream[start + offset + 1]
        if offset and document != stream[start + offset - 1][1]:
            current += 1
        tokens.append(token)
        targets.append(following if following_document == document else -100)
        documents.append(current)
    return tokens, targets, documents


nested = st.lists(
    st.lists(st.lists(st.integers(0, 98), max_size=9), max_size=3),
    min_size=4,
    max_size=12,
    unique_by=lambda document: tuple(itertools.chain(*document)),  # two equal documents alone cannot be split
)


@settings(deadline=None, max_examples=60)
@given(first=nested, second=nested, gap=st.integers(0, 2), seq_len=st.integers(1, 9), seed=st.integers(0, 3))
def test_rows_equal_the_slow_reference(
    first: list[list[list[int]]], second: list[list[list[int]]], gap: int, seq_len: int, seed: int
) -> None:
    """Adopted pairs with scattered, empty and many-sequence documents; one epoch holds every row once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [pack_pair(folder / "a", first, gap=gap), pack_pair(folder / "b", second, code=5, gap=gap)]
        corpus = prepared(
            pairs,
            folder / "out",
            name=None,
            vocab_size=100,
            eod="98",
        )
        stream = stream_of(corpus)
        if len(stream) <= seq_len:
            with pytest.raises(UserError, match="fewer than one row"):
                Batches(corpus, "train", seq_len, 1, seed)
            return
        batches = Batches(corpus, "train", seq_len, 3, seed)
        rows = (len(stream) - 1) // seq_len
        assert batches.epoch_rows == rows
        seen = []
        for step in range(-(-rows // 3)):
            batch = batches.batch(step)
            seen += list(
                zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), batch.documents_BT.tolist(), strict=True)
            )
        expected = [reference_row(stream, row * seq_len, seq_len) for row in range(rows)]
        assert sorted(seen[:rows]) == sorted(expected)


def test_boundaries_come_from_the_index_and_eod_is_predicted(tmp_path: Path) -> None:
    # 9 is the EOD; it also stands inside a document, where it is no boundary, and the last document lacks it
    documents = [[[1, 9, 2], [3, 9]], [[4, 9]], [[5, 6]]]
    keys = [int.from_bytes(hashlib.blake2b(packed(doc), digest_size=16).digest()[:8], "little") for doc in documents]
    # a fourth document with the smallest hash, and a quarter of the tokens: it is held out alone
    held_out = next(
        doc
        for doc in ([[0, number, 9]] for number in itertools.count(10))
        if int.from_bytes(hashlib.blake2b(packed(doc), digest_size=16).digest()[:8], "little") < min(keys)
    )
    pair = pack_pair(tmp_path / "p", [documents[0], held_out, *documents[1:]], gap=1)
    corpus = prepared([pair], tmp_path / "out", 0.25, name=None, vocab_size=10_000, eod="9")
    assert corpus.stream("val").at(np.arange(3))[0].tolist() == held_out[0]
    batch = Batches(corpus, "train", 8, 1, 0).batch(0)
    assert batch.tokens_BT.tolist() == [[1, 9, 2, 3, 9, 4, 9, 5]]
    assert batch.targets_BT.tolist() == [[9, 2, 3, 9, -100, 9, -100, 6]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2]]
    assert corpus.manifest.without_eod == 1


def packed(document: list[list[int]]) -> bytes:
    """What a document's hash covers: its ids as int32, whatever the stored type and sequences."""
    return b"".join(struct.pack("<i", token) for sequence in document for token in sequence)


def test_types_and_shapes(tmp_path: Path) -> None:
    batch = Batches(words(tmp_path), "train", 16, 5, 0).batch(2)
    assert batch.tokens_BT.shape == batch.targets_BT.shape == batch.documents_BT.shape == (5, 16)
    assert (batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.documents_BT.dtype) == (np.int64, np.int64, np.int32)
    assert all(each.flags.c_contiguous for each in (batch.tokens_BT, batch.targets_BT, batch.documents_BT))


def test_epochs_have_different_orders_and_batches_run_across_them(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    batches = Batches(corpus, "train", 16, 7, seed=3)
    assert batches.epoch_rows % 7, "the test wants an epoch that ends inside a batch"
    rows = [row for step in range(batches.epoch_rows * 2) for row in batches.batch(step).tokens_BT.tolist()]
    epochs = [
        rows[start : start + batches.epoch_rows] for start in range(0, 3 * batches.epoch_rows, batches.epoch_rows)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_fixed_by_seed_and_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    corpus = words(tmp_path)

    def rows(batch_rows: int, steps: int, seed: int) -> list[list[int]]:
        batches = Batches(corpus, "train", 8, batch_rows, seed)
        return [row for step in range(steps) for row in batches.batch(step).tokens_BT.tolist()]

    assert rows(4, 6, seed=1) == rows(4, 9, seed=1)[:24] == rows(3, 8, seed=1)
    assert rows(4, 6, seed=1) != rows(4, 6, seed=2)


def test_a_batch_larger_than_an_epoch_repeats_rows_only_across_epochs(tmp_path: Path) -> None:
    corpus = words(tmp_path, count=4)
    one = Batches(corpus, "train", 16, 1, 0).epoch_rows
    rows = Batches(corpus, "train", 16, 3 * one, 0).batch(0).tokens_BT.tolist()
    assert sorted(rows[:one]) == sorted(rows[one : 2 * one]) == sorted(rows[2 * one :])


def test_too_short_a_split_is_refused(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    with pytest.raises(UserError, match=f"its val split has {corpus.tokens('val')} tokens, fewer than one row of 9999"):
        Batches(corpus, "val", 9999, 1, 0)


def test_ids_that_changed_under_the_corpus_are_caught(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    data = corpus.path / "tokens.bin"
    data.write_bytes(b"\xff" * data.stat().st_size)
    with pytest.raises(UserError, match=r"tokens\.bin: holds ids outside the vocabulary of 257"):
        Batches(corpus, "train", 8, 1, 0).batch(0)

from __future__ import annotations

import pickle
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from corpora import pack_pair, prepared, words, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data.batches import Batches
from mup_tune.data.corpus import Corpus
from mup_tune.data.draw import Draw
from mup_tune.data.mixture import Data, Mixture, Source, open_mixture
from mup_tune.data.shares import apportioned, check_epochs, row_counts
from mup_tune.errors import UserError
from mup_tune.trial import Budget


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """Three bytes corpora; every document of one starts with a letter that the others do not hold."""
    found = []
    for letter in "abc":
        folder = tmp_path_factory.mktemp(letter)
        texts = [letter * 5 + str(number) * (1 + number % 13) for number in range(120)]
        found.append(prepared([write_jsonl(folder / "t.jsonl", texts)], folder / letter))
    return found


def mixture(corpora: list[Corpus], *weights: float, max_epochs: float = 1.0) -> Mixture:
    chosen = zip(corpora, weights, strict=False)
    return Mixture(tuple(Source(corpus.path.name, weight, corpus, max_epochs) for corpus, weight in chosen))


@settings(max_examples=150)
@given(parts=st.lists(st.integers(1, 997), min_size=1, max_size=6), rows=st.integers(1, 600), first=st.integers(0, 600))
def test_after_any_number_of_rows_each_source_is_within_one_row_of_its_share(
    parts: list[int], rows: int, first: int
) -> None:
    draw = Draw(parts)
    draw.rows(0, first)  # however far it was drawn before
    source_N, rank_N = draw.rows(0, rows)
    for source, part in enumerate(parts):
        mine = source_N == source
        share = Fraction(part, sum(parts))
        assert all(abs(int(count) - share * n) < 1 for n, count in enumerate(np.cumsum(mine), start=1))
        assert rank_N[mine].tolist() == list(range(int(mine.sum())))


def test_weights_are_taken_as_they_are_written() -> None:
    corpus = Corpus.__new__(Corpus)  # never looked into
    thirds = Mixture(tuple(Source(str(i), 0.3333333, corpus) for i in range(3)))
    assert thirds.parts == (3333333,) * 3
    assert thirds.shares == (1 / 3,) * 3
    tenths = Mixture((Source("a", 0.7, corpus), Source("b", 0.2, corpus), Source("c", 0.1, corpus)))
    assert tenths.parts == (7, 2, 1)
    assert np.bincount(Draw(tenths.parts).rows(0, 100_000)[0]).tolist() == [70_000, 20_000, 10_000]


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_source_gives_the_batches_of_its_corpus_bit_for_bit(corpora: list[Corpus], split: str) -> None:
    mixed = Mixture.of(corpora[0]).batches(split, 16, 3, 5)  # type: ignore[arg-type]
    alone = Batches(corpora[0], split, 16, 3, 5)  # type: ignore[arg-type]
    for step in (0, 1, 40, 7):  # across epochs, and back
        one, other = mixed.batch(step), alone.batch(step)
        for name in ("tokens_BT", "targets_BT", "documents_BT"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
            assert getattr(one, name).dtype == getattr(other, name).dtype
    assert Mixture.of(corpora[0]).hash == corpora[0].hash


@pytest.mark.parametrize("span", [(0, 6), (39, 42), (7, 8), (3, 3)])
def test_batches_that_are_read_together_are_those_that_are_read_alone(
    corpora: list[Corpus], span: tuple[int, int]
) -> None:
    mixed = mixture(corpora, 0.5, 0.3, 0.2).batches("train", 8, 10, 3)
    together = mixed.batches(*span)
    assert len(together) == span[1] - span[0]
    for step, batch in enumerate(together, span[0]):
        for name, alone in vars(mixed.batch(step)).items():
            found = vars(batch)[name]
            assert (found.tobytes(), found.dtype, found.shape) == (alone.tobytes(), alone.dtype, alone.shape)


def test_every_source_is_read_in_its_own_order_whatever_the_batch_size(corpora: list[Corpus]) -> None:
    mixed = mixture(corpora, 0.5, 0.3, 0.2)
    sources = mixed.batches("train", 8, 10, 3)
    by_ten = [row for step in range(6) for row in sources.batch(step).tokens_BT.tolist()]
    by_four = [row for step in range(15) for row in mixed.batches("train", 8, 4, 3).batch(step).tokens_BT.tolist()]
    assert by_ten == by_four
    alone = [
        [row for step in range(60) for row in Batches(corpus, "train", 8, 1, 3).batch(step).tokens_BT.tolist()]
        for corpus in corpora
    ]
    expected = Counter({tuple(row): 0 for rows in alone for row in rows})
    for rows, count in zip(alone, (30, 18, 12), strict=True):
        expected.update(map(tuple, rows[:count]))
    assert Counter(map(tuple, by_ten)) == +expected


def test_a_mixture_travels_and_its_hash_covers_corpora_and_weights(corpora: list[Corpus]) -> None:
    mixed = mixture(corpora, 0.5, 0.5)
    there = pickle.loads(pickle.dumps(mixed))
    assert there.hash == mixed.hash
    assert np.array_equal(
        there.batches("train", 8, 4, 0).batch(2).tokens_BT, mixed.batches("train", 8, 4, 0).batch(2).tokens_BT
    )
    assert mixed.hash not in (mixture(corpora, 0.6, 0.4).hash, mixture(corpora[::-1], 0.5, 0.5).hash, corpora[0].hash)
    assert mixed.record()["name"] == "a + b"
    assert [each["weight"] for each in mixed.record()["sources"]] == [0.5, 0.5]


def test_epochs_are_counted_by_source(corpora: list[Corpus]) -> None:
    tokens = corpora[1].tokens("train")
    total = 10 * tokens
    with pytest.raises(UserError, match=rf"0\.9 of {total:,} training tokens are .* epochs"):
        check_epochs(mixture(corpora, 0.9, 0.1), total)
    few = mixture(corpora[:2], 0.9, 0.1, max_epochs=20.0)
    check_epochs(few, total)
    first, second = few.sources
    strict = Mixture((first, Source(second.name, 0.1, second.corpus, 0.99)))
    with pytest.raises(UserError, match=rf"0\.1 of .* are 1 epochs of {tokens:,} tokens; at most 0.99.*less weight"):
        check_epochs(strict, total)


def test_epochs_of_one_corpus_are_told_in_its_own_tokens(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    tokens = corpus.tokens("train")
    alone = Mixture((Source("words", 1.0, corpus, 2.0),))
    check_epochs(alone, 2 * tokens)
    with pytest.raises(
        UserError, match=rf"{2 * tokens + 1:,} training tokens are 2 epochs of {tokens:,}.*at most 2 are"
    ):
        check_epochs(alone, 2 * tokens + 1)


@given(parts=st.lists(st.integers(1, 20), min_size=1, max_size=5), rows=st.integers(1, 200))
def test_validation_rows_are_all_given_out_and_near_the_share(parts: list[int], rows: int) -> None:
    corpus = Corpus.__new__(Corpus)
    mixed = Mixture(tuple(Source(str(i), part / 100, corpus) for i, part in enumerate(parts)))
    if rows * min(parts) < sum(parts):
        with pytest.raises(ValueError, match="of one for"):
            apportioned(mixed, rows)
        return
    shares = apportioned(mixed, rows)
    assert sum(shares) == rows
    assert all(
        share >= 1 and abs(share - rows * part / sum(parts)) < 1 for share, part in zip(shares, parts, strict=True)
    )


def budget(val_tokens: int, **more: object) -> Budget:
    fixed = {"seq_len": 8, "batch_tokens": 32, "total_tokens": 64, "warmup_tokens": 0, "decay_tokens": 0}
    return Budget.model_validate({**fixed, "val_tokens": val_tokens, **more})


def test_too_few_and_too_many_validation_tokens_are_refused_with_the_number(corpora: list[Corpus]) -> None:
    mixed = mixture(corpora, 0.9, 0.1)
    assert row_counts(mixed, budget(80)).each == [9, 1]
    with pytest.raises(UserError, match=r"val_tokens: 72 is too small: .*'b' \(weight 0\.1\).*Use at least 80$"):
        row_counts(mixed, budget(72))
    with pytest.raises(UserError, match=r"a row is 32 tokens \(4 × seq_len\)\. Use at least 320"):
        row_counts(mixed, budget(96, val_lengths=(1, 4)))
    assert row_counts(mixed, budget(320, val_lengths=(2, 4))).longest == [9, 1]
    with pytest.raises(UserError, match=r"asks 'a' for 7,200 and its validation split holds") as refused:
        row_counts(mixed, budget(8000))
    (most,) = re.findall(r"--set budget\.val_tokens=(\d+)", str(refused.value))
    row_counts(mixed, budget(int(most)))
    with pytest.raises(UserError, match="validation split holds"):
        row_counts(mixed, budget(int(most) + 2 * 8))


def test_what_cannot_be_mixed_is_named(corpora: list[Corpus], tmp_path: Path) -> None:
    a, b = (str(corpus.path) for corpus in corpora[:2])
    mixed = open_mixture([Data(corpus=a, weight=0.5), Data(corpus=b, weight=0.5)])
    assert [source.name for source in mixed.sources] == ["a", "b"]
    assert mixed.hash == mixture(corpora, 0.5, 0.5).hash
    pack_pair(tmp_path / "p", [[[1, 9]], [[2, 9]], [[3, 9]]])
    other = prepared([tmp_path / "p"], tmp_path / "ids", name=None, vocab_size=10, eod="9")
    with pytest.raises(UserError, match=r"data\[1\]\.corpus: '.*ids' has a ids tokenizer with 10 ids and EOD 9, but"):
        open_mixture([Data(corpus=a, weight=0.5), Data(corpus=str(other.path), weight=0.5)])
    copy = prepared([Path(a).parent / "t.jsonl"], tmp_path / "copy")
    with pytest.raises(UserError, match=r"data\[1\]\.corpus: '.*copy' holds the same text as '.*/a'"):
        open_mixture([Data(corpus=a, weight=0.5), Data(corpus=str(copy.path), weight=0.5)])
    with pytest.raises(UserError, match="nowhere: no such corpus folder"):
        open_mixture([Data(corpus="/nowhere")])


def test_a_relative_corpus_keeps_its_name_when_it_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = Data(corpus="text/wiki/").absolute()
    assert (there.corpus, there.name) == (str(tmp_path / "text" / "wiki"), "wiki")
    assert Data().absolute().corpus == Data().name == "python-stdlib"

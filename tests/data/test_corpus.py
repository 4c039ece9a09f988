from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from corpora import pack_pair, prepared, tokens_of, words, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data import stdlib as stdlib_corpus
from mup_tune.data.corpus import Corpus
from mup_tune.data.sources import discover
from mup_tune.data.split import FEWEST, TOLERANCE, validation_starts
from mup_tune.data.stdlib import default_corpus, open_corpus
from mup_tune.errors import UserError


def texts_of(corpus: Corpus, split: str) -> list[str]:
    """Documents of a bytes corpus, decoded, their EOD checked and dropped."""
    documents = tokens_of(corpus, split)
    assert all(document[-1] == 256 for document in documents)
    return [bytes(document[:-1]).decode() for document in documents]


utf8 = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(utf8, min_size=2, max_size=15, unique=True), fraction=st.floats(0.2, 0.8))
def test_round_trip_of_random_documents(texts: list[str], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            corpus = prepared([write_jsonl(folder / "t.jsonl", texts)], folder / "out", fraction)
        except UserError:
            assert sum(len(text.encode()) + 1 for text in texts) < 40
            return
        sides = {split: tokens_of(corpus, split) for split in ("train", "val")}  # type: ignore[arg-type]
        whole = [[*text.encode(), 256] for text in texts]
        for split, held in sides.items():
            pieces = [document for document in held if document not in whole]
            assert len(pieces) == corpus.manifest.cut_documents
            assert [document for document in whole if document in held] == [
                document for document in held if document not in pieces
            ], "file order is kept"
            info = corpus.info(split)  # type: ignore[arg-type]
            size = sum(token < 256 for document in held for token in document)
            assert (info.documents, info.bytes, info.tokens) == (len(held), size, sum(map(len, held)))
            assert corpus.bytes_per_token(split) == size / info.tokens  # type: ignore[arg-type]
        assert sum(map(len, sides["train"] + sides["val"])) == sum(map(len, whole))
        if not corpus.manifest.cut_documents:
            assert sorted(sides["train"] + sides["val"]) == sorted(whole)


def test_split_ignores_order_company_and_copies(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(400)]
    whole = prepared([write_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "a", 0.2)
    part = prepared([write_jsonl(tmp_path / "b.jsonl", texts[::-2] * 2)], tmp_path / "b", 0.2)
    held_out = set(texts_of(whole, "val"))
    assert 50 < len(held_out) < 110
    assert set(texts_of(part, "val")) == held_out & set(texts[::-2])
    assert not set(texts_of(part, "val")) & set(texts_of(part, "train"))
    assert part.documents("val") == 2 * len(set(texts_of(part, "val")))
    assert part.hash != whole.hash


@given(
    documents=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 10**6)), min_size=1, max_size=20),
    copies=st.integers(1, 3),
    fraction=st.floats(1e-3, 1 - 1e-3),
)
def test_the_share_of_tokens_is_met_or_refused(documents: list[tuple[int, int]], copies: int, fraction: float) -> None:
    documents = list(dict(documents).items()) * copies
    keys, lengths = np.array([key for key, _ in documents], np.uint64), np.array([length for _, length in documents])
    total = int(lengths.sum())
    slack = TOLERANCE * min(fraction, 1 - fraction) * total
    try:
        starts = validation_starts(keys, lengths, fraction)
    except UserError:
        assert slack < FEWEST + 0.5 * copies, "only what is too short cannot be split"
        return
    held_out = int((lengths - starts).sum())
    assert abs(held_out - fraction * total) <= slack
    assert FEWEST <= held_out <= total - FEWEST
    assert ((starts >= 0) & (starts <= lengths)).all()
    cut = (starts > 0) & (starts < lengths)
    assert len(set(keys[cut].tolist())) <= 1, "one document at most is cut"
    for key in set(keys.tolist()):
        assert len(set(starts[keys == key].tolist())) == 1, "copies share a side"
    assert np.array_equal(validation_starts(keys[::-1], lengths[::-1], fraction), starts[::-1]), "order plays no part"


def test_a_document_too_long_for_a_side_is_cut_and_its_end_held_out(tmp_path: Path) -> None:
    """Two long texts and a short one: by documents, 99 % of the tokens could be held out."""
    texts = ["é𝄞" * 5000, "ab" * 15000, "short"]
    for name, inputs in (("both", texts), ("alone", texts[:1])):
        corpus = prepared([write_jsonl(tmp_path / f"{name}.jsonl", inputs)], tmp_path / name, 0.1)
        train, val = (tokens_of(corpus, split) for split in ("train", "val"))
        total = sum(len(text.encode()) + 1 for text in inputs)
        assert corpus.tokens("val") == pytest.approx(0.1 * total, abs=4), "to the next character"
        assert corpus.manifest.cut_documents == 1
        assert corpus.tokens("train") + corpus.tokens("val") == total
        (head,) = (bytes(document) for document in train if document[-1] != 256)
        tails = (bytes(document[:-1]) for document in val if document[-1] == 256)
        assert any(head + tail in [text.encode() for text in inputs] for tail in tails)
        for split, documents in (("train", train), ("val", val)):
            held = sum(token != 256 for document in documents for token in document)
            assert corpus.info(split).bytes == held  # type: ignore[arg-type]


def test_an_adopted_document_is_cut_inside_a_sequence(tmp_path: Path) -> None:
    pair = pack_pair(tmp_path / "p", [[list(range(40)), list(range(40, 100))]] * 2, gap=3)
    corpus = prepared([pair], tmp_path / "out", 0.3, name=None, vocab_size=100, eod="99")
    assert tokens_of(corpus, "train") == [list(range(70))] * 2
    assert tokens_of(corpus, "val") == [list(range(70, 100))] * 2


def test_folders_are_walked_in_order_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / ".git").mkdir()
    (source / ".git" / "x.txt").write_text("hidden")
    (source / ".env").write_text("hidden")
    (source / "b.py").write_bytes("bé\r\n".encode())
    (source / "a.md").write_bytes(b"\xef\xbb\xbfa")
    (source / "sub" / "c.txt").write_text("c")
    (source / "sub" / "empty.txt").write_text("")
    (source / "sub" / "latin.txt").write_bytes("é".encode("latin-1"))
    (source / "sub" / "late.dat").write_bytes(b"x" * 10_000 + b"\0")
    (source / "sub" / "z.jsonl").write_text(
        '{"text": "z1", "id": 1}\n\n{"text": ""}\n{"text": "\\ud800"}\n{"text": "z2"}\n'
    )
    (source / "sub" / "dangling").symlink_to(source / "nowhere")
    corpus = prepared([source, source / "b.py"], tmp_path / "out", 0.5)
    documents = ["a", "bé\r\n", "c", "z1", "z2"]
    held = {split: texts_of(corpus, split) for split in ("train", "val")}
    for texts in held.values():
        assert texts == [text for text in documents if text in texts]
    assert sorted(held["train"] + held["val"]) == sorted(documents)
    assert corpus.manifest.skipped == {"empty": 2, "hidden": 2, "not UTF-8 text": 3, "not a file": 1}


def test_linked_folders_are_followed_and_every_file_is_read_once(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "src", tmp_path / "elsewhere"
    for folder in (source / "sub", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    (source / "sub" / "again").symlink_to(elsewhere)
    (source / "link").symlink_to(elsewhere)
    (source / "sub" / "up").symlink_to(source)
    (elsewhere / "back").symlink_to(source / "sub")
    (elsewhere / "same.txt").symlink_to(elsewhere / "a.txt")
    for inputs in ([source], [source / "link", source, source / "sub"]):
        found = discover(inputs)
        assert [path.read_text() for path in found.texts].count("elsewhere") == 1
        assert sorted(path.read_text() for path in found.texts) == ["elsewhere", "sub"]
        assert not +found.skipped


def test_a_pair_is_adopted_without_copying_and_split_like_any_other(tmp_path: Path) -> None:
    documents = [[[number, number + 1], [7]] for number in range(30)]
    pack_pair(tmp_path / "p", documents, code=4, gap=2)
    before = (tmp_path / "p.bin").read_bytes()
    for spelling in ("p", "p.bin", "p.idx"):
        corpus = prepared([tmp_path / spelling], tmp_path / f"o-{spelling}", name=None, vocab_size=50, eod="7")
        assert sorted(path.name for path in corpus.path.iterdir()) == ["corpus.json", "train.idx", "val.idx"]
        assert {part.bin for part in corpus.manifest.train.parts} == {str(tmp_path / "p.bin")}
    assert (tmp_path / "p.bin").read_bytes() == before
    found = []
    for split in ("train", "val"):
        stream = corpus.stream(split)  # type: ignore[arg-type]
        tokens, ordinals = stream.at(np.arange(stream.tokens))
        found += [tokens[ordinals == number].tolist() for number in range(int(ordinals[-1]) + 1)]
    assert sorted(found) == [[number, number + 1, 7] for number in range(30)]
    assert corpus.bytes_per_token("train") is None
    assert corpus.manifest.without_eod == 0
    other = prepared([pack_pair(tmp_path / "q", documents, code=8)], tmp_path / "q8", name=None, vocab_size=50, eod="7")
    assert other.hash == corpus.hash, "the stored type and gaps do not matter"


def test_our_own_pair_can_be_adopted_again(tmp_path: Path) -> None:
    first = words(tmp_path)
    again = prepared([first.path / "tokens"], tmp_path / "again")
    texts = [sorted(texts_of(corpus, "train") + texts_of(corpus, "val")) for corpus in (first, again)]
    assert texts[0] == texts[1]


def test_bad_ids_in_a_pair_are_named(tmp_path: Path) -> None:
    for code, document, wrong in ((8, [1, 50], 50), (3, [1, -4], -4)):
        pair = pack_pair(tmp_path / f"p{code}", [[[1, 2]], [[3], document]], code=code)
        with pytest.raises(UserError, match=rf"p{code}\.bin: id {wrong} in sequence 2 is outside the vocabulary of 50"):
            prepared([pair], tmp_path / "out", name=None, vocab_size=50, eod="7")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: is not JSON"),
        ('{"content": "x"}', "line 2: must be an object with a string field 'text'"),
        ('{"text": 3}', "line 2: must be"),
        ("[1]", "line 2: must be"),
    ],
)
def test_wrong_jsonl_is_named_by_line_and_leaves_nothing(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"t\.jsonl: {problem}"):
        prepared([tmp_path / "t.jsonl"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_wrong_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "lone.idx").write_bytes(b"")
    pair = pack_pair(tmp_path / "p", [[[1]], [[2]]])
    for inputs, problem in (
        ([tmp_path / "nothing"], "nothing: no such file or folder"),
        ([tmp_path / "lone"], "lone.bin: no such file"),
        ([tmp_path / "empty"], "no text, JSONL, Parquet or Megatron pair in"),
        ([tmp_path / "one.txt", pair], "cannot be mixed"),
        ([tmp_path / "one.txt"], "cannot be held out of the inputs' 4 tokens"),
    ):
        with pytest.raises(UserError, match=problem):
            prepared(inputs, tmp_path / "out")
    with pytest.raises(UserError, match="--vocab-size: is for Megatron pairs"):
        prepared([tmp_path / "one.txt"], tmp_path / "out", name=None, vocab_size=9, eod="1")
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="--val-fraction"):
            prepared([pair], tmp_path / "out", fraction)
    assert not (tmp_path / "out").exists()


def test_a_path_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    pair = pack_pair(odd / "p", [[[number, 7]] for number in range(9)])
    texts = write_jsonl(odd / "t.jsonl", [f"text {number}" for number in range(9)])
    prepared([texts], tmp_path / "text")
    for inputs, out, eod in (([pair], tmp_path / "out", "7"), ([texts], odd / "out", None)):
        with pytest.raises(UserError, match=r"udcff.* is not a path in UTF-8"):
            prepared(inputs, out, name=None if eod else "bytes", vocab_size=10 if eod else None, eod=eod)
        assert not out.exists()


def test_pairs_in_a_folder_are_found_once(tmp_path: Path) -> None:
    for name in ("a", "b.c"):
        pack_pair(tmp_path / name, [[[1]]])
    found = discover([tmp_path, tmp_path / "a.bin"])
    assert [path.name for path in found.pairs] == ["a", "b.c"]
    assert found.texts == []


def test_out_is_never_overwritten(tmp_path: Path) -> None:
    corpus = words(tmp_path)
    with pytest.raises(UserError, match=r"holds a corpus already\. Choose another --out or delete it"):
        words(tmp_path)
    (tmp_path / "other").mkdir()
    source = write_jsonl(tmp_path / "t.jsonl", ["a", "b"])
    prepared([source], tmp_path / "other", 0.5)  # an empty folder is as good as none
    (corpus.path / "corpus.json").unlink()
    with pytest.raises(UserError, match="is not empty and not a corpus"):
        words(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        prepared([source], source)


def test_a_failure_half_way_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mup_tune.data import prepare as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(UserError, match=r"corpus: cannot be read or written \(No space left"):
        words(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["words.jsonl"]


def test_what_is_not_a_corpus_any_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such corpus folder.*data prepare"):
        open_corpus(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no corpus\.json"):
        open_corpus(str(tmp_path))
    corpus = words(tmp_path)
    assert open_corpus(str(corpus.path)) == corpus
    file, data, index = (corpus.path / name for name in ("corpus.json", "tokens.bin", "val.idx"))
    manifest, tokens = file.read_text(), data.read_bytes()
    data.write_bytes(tokens + b"\0\0")
    with pytest.raises(UserError, match=r"tokens\.bin: has \d+ bytes, but had"):
        Corpus.open(corpus.path)
    data.write_bytes(tokens)
    file.write_text(json.dumps(json.loads(manifest) | {"format_version": 2}))
    with pytest.raises(UserError, match=r"corpus\.json: format_version"):
        Corpus.open(corpus.path)
    file.write_text(manifest[:40])
    with pytest.raises(UserError, match=r"corpus\.json: is not JSON"):
        Corpus.open(corpus.path)
    file.write_text(manifest)
    index.write_bytes((corpus.path / "train.idx").read_bytes())
    with pytest.raises(UserError, match=r"val\.idx: has other content than when the corpus"):
        Corpus.open(corpus.path)
    file.write_text(json.dumps({key: value for key, value in json.loads(manifest).items() if key != "files"}))
    with pytest.raises(UserError, match="its val index files hold"):
        Corpus.open(corpus.path).stream("val")
    index.unlink()
    with pytest.raises(UserError, match=r"val\.idx: no such file"):
        Corpus.open(corpus.path)


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    for name, content in {
        "os.py": b"import bz2\n" * 12,  # the other is 5 % of all
        "json/__init__.py": b"x = 2\n",
        "test/bad.py": "# é".encode("latin-1"),
        "site-packages/other.py": b"no",
        "__pycache__/os.py": b"no",
        "data.txt": b"no",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_default_corpus_is_prepared_once_for_each_content(
    tmp_path: Path, stdlib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = default_corpus(tmp_path / "cache", stdlib)
    assert sorted(texts_of(first, "train") + texts_of(first, "val")) == ["import bz2\n" * 12, "x = 2\n"]
    assert first.manifest.skipped == {"not UTF-8 text": 1}
    with monkeypatch.context() as patch:
        patch.setattr(stdlib_corpus, "write_corpus", None)  # not called again
        assert default_corpus(tmp_path / "cache", stdlib) == first
    (stdlib / "os.py").write_bytes(b"import re \n" * 12)
    second = default_corpus(tmp_path / "cache", stdlib)
    assert (second.path != first.path, second.hash != first.hash) == (True, True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(stdlib_corpus.sysconfig, "get_path", lambda _: str(stdlib))
    assert open_corpus("python-stdlib").path.parent == tmp_path / "xdg" / "mup-tune"
    with pytest.raises(UserError, match="has no Python source"):
        default_corpus(tmp_path / "cache", tmp_path / "cache")


def test_a_slower_process_takes_the_faster_ones_corpus(
    tmp_path: Path, stdlib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mup_tune.data import prepare as module

    cache, write = tmp_path / "cache", module.write_atomic

    def overtaken(path: Path, content: str) -> None:
        monkeypatch.setattr(module, "write_atomic", write)
        default_corpus(cache, stdlib)  # the other process, just before our rename
        write(path, content)

    monkeypatch.setattr(module, "write_atomic", overtaken)
    corpus = default_corpus(cache, stdlib)
    assert os.listdir(cache) == [corpus.path.name]
    assert corpus.documents("val") == 1

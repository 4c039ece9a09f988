from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpora import pack_pair, prepared, words, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data import stdlib as stdlib_corpus
from mup_tune.data.corpus import Corpus
from mup_tune.data.sources import discover
from mup_tune.data.split import validation_side
from mup_tune.data.stdlib import default_corpus, open_corpus
from mup_tune.data.tokenizer import load_tokenizer
from mup_tune.errors import UserError


def texts_of(corpus: Corpus, split: str) -> list[str]:
    """Documents of a bytes corpus, cut at the index, decoded, their EOD checked and dropped."""
    stream = corpus.stream(split)  # type: ignore[arg-type]
    tokens, ordinals = stream.at(np.arange(stream.tokens))
    documents = [tokens[ordinals == number] for number in range(int(ordinals[-1]) + 1)]
    assert all(document[-1] == 256 for document in documents)
    return [bytes(document[:-1].astype(np.uint8)).decode() for document in documents]


utf8 = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(utf8, min_size=2, max_size=15, unique=True), fraction=st.floats(0.01, 0.99))
def test_round_trip_of_random_documents(texts: list[str], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = prepared([write_jsonl(folder / "t.jsonl", texts)], folder / "out", fraction)
        sides = {split: texts_of(corpus, split) for split in ("train", "val")}
        assert sides["train"]
        assert sides["val"]
        assert Counter(sides["train"] + sides["val"]) == Counter(texts)
        assert sides["train"] == [text for text in texts if text in set(sides["train"])], "file order is kept"
        for split, held in sides.items():
            info = corpus.info(split)  # type: ignore[arg-type]
            size = sum(len(text.encode()) for text in held)
            assert (info.documents, info.bytes, info.tokens) == (len(held), size, size + len(held))
            assert corpus.bytes_per_token(split) == size / (size + len(held))  # type: ignore[arg-type]


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


@given(keys=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=20), fraction=st.floats(1e-9, 1 - 1e-9))
def test_no_side_is_empty_and_copies_stay_together(keys: list[int], fraction: float) -> None:
    array = np.array(keys, np.uint64)
    if len(set(keys)) == 1:
        with pytest.raises(UserError, match="copies of one document"):
            validation_side(array, fraction)
        return
    side = validation_side(array, fraction)
    assert 0 < side.sum() < len(keys)
    assert not set(array[side].tolist()) & set(array[~side].tolist())
    assert np.array_equal(validation_side(array[::-1], fraction), side[::-1])


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


def save_tokenizer(path: Path, tokens: dict[str, int], **settings: object) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    return str(path)


def test_a_tokenizer_file_is_used_whole(tmp_path: Path) -> None:
    """No truncation or padding from the file; ids with gaps; EOD by its usual name, or named."""
    file = save_tokenizer(tmp_path / "tok.json", {"<unk>": 0, "a": 1, "b": 2, "</s>": 70_000, "END": 3})
    texts = write_jsonl(tmp_path / "t.jsonl", ["a b a b a", "b", "a a"])
    corpus = prepared([texts], tmp_path / "out", name=file)
    assert (corpus.vocab_size, corpus.eod) == (70_001, 70_000)
    assert corpus.tokens("train") + corpus.tokens("val") == 5 + 1 + 2 + 3
    assert (corpus.path / "tokens.idx").read_bytes()[17] == 4, "int32 where uint16 is too small"
    assert corpus.manifest.tokenizer.sha256 == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert load_tokenizer(file, "END").info.eod == 3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"name": "none.json"}, "none.json: no such tokenizer file"),
        ({"name": "."}, "is a folder"),
        ({"name": "broken.json"}, "broken.json: is not a Hugging Face tokenizer.json"),
        ({"name": "tok.json"}, "none of the usual end-of-document tokens.*--eod TOKEN"),
        ({"name": "tok.json", "eod": "<e>"}, "--eod: '<e>' is not in the vocabulary"),
        ({"name": "bytes", "eod": "3"}, "--eod: is fixed at 256"),
        ({"name": "bytes", "vocab_size": 9}, "--vocab-size: cannot be combined"),
        ({"name": None}, "--tokenizer: is missing"),
        ({"name": None, "vocab_size": 1}, "--vocab-size: 1 is not allowed"),
        ({"name": None, "vocab_size": 10}, "--eod: is missing"),
        ({"name": None, "vocab_size": 10, "eod": "10"}, "--eod: '10' is not an id below"),
        ({"name": None, "vocab_size": 10, "eod": "-1"}, "--eod: '-1' is not an id below"),
    ],
)
def test_wrong_tokenizer_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    save_tokenizer(Path("tok.json"), {"<unk>": 0, "a": 1})
    Path("broken.json").write_text("{}")
    with pytest.raises(UserError, match=problem):
        load_tokenizer(**flags)


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
        ([tmp_path / "one.txt"], "hold one document"),
    ):
        with pytest.raises(UserError, match=problem):
            prepared(inputs, tmp_path / "out")
    with pytest.raises(UserError, match="--vocab-size: is for Megatron pairs"):
        prepared([tmp_path / "one.txt"], tmp_path / "out", name=None, vocab_size=9, eod="1")
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="--val-fraction"):
            prepared([pair], tmp_path / "out", fraction)
    assert not (tmp_path / "out").exists()


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
    prepared([source], tmp_path / "other")  # an empty folder is as good as none
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
    with pytest.raises(UserError, match="its val index files hold"):
        Corpus.open(corpus.path).stream("val")
    index.unlink()
    with pytest.raises(UserError, match=r"val\.idx: no such file"):
        Corpus.open(corpus.path)


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    for name, content in {
        "os.py": b"import sys\n",
        "json/__init__.py": b"x = 1\n",
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
    assert sorted(texts_of(first, "train") + texts_of(first, "val")) == ["import sys\n", "x = 1\n"]
    assert first.manifest.skipped == {"not UTF-8 text": 1}
    with monkeypatch.context() as patch:
        patch.setattr(stdlib_corpus, "write_corpus", None)  # not called again
        assert default_corpus(tmp_path / "cache", stdlib) == first
    (stdlib / "os.py").write_bytes(b"import re \n")
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

"""Tokenizers: what is asked of them, and what they cannot say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event, Timer

import pytest
from corpora import pack_pair, prepared, tokens_of, write_jsonl

from mup_tune.data.encoding import in_order
from mup_tune.data.tokenizer import load_tokenizer
from mup_tune.errors import UserError


def byte_level(path: Path, without: str = "", **model: object) -> str:
    """A BPE of single bytes, less those that stand for the characters ``without``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without))
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, [], **model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|start|>"])
    tokenizer.save(str(path))
    return str(path)


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


def test_a_tokenizer_file_cuts_between_characters_and_knows_their_bytes(tmp_path: Path) -> None:
    file, text = byte_level(tmp_path / "tok.json"), "aé𝄞" * 300
    corpus = prepared([write_jsonl(tmp_path / "t.jsonl", [text])], tmp_path / "out", 0.2, name=file)
    train, val = (corpus.info(split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert (train.bytes + val.bytes, train.tokens + val.tokens) == (2100, 2101)
    assert (val.bytes, val.tokens - 1) == (val.tokens - 1, val.bytes), "an id is a byte"
    assert val.bytes % 7 in (0, 4, 6), "no character is torn"


def test_an_end_written_out_in_a_text_is_plain_text_and_other_special_tokens_are_not(tmp_path: Path) -> None:
    file, text = byte_level(tmp_path / "tok.json"), "a<|endoftext|><|start|>b" * 9
    corpus = prepared([write_jsonl(tmp_path / "t.jsonl", [text, text[::-1]])], tmp_path / "out", 0.5, name=file)
    found = tokens_of(corpus, "train") + tokens_of(corpus, "val")
    assert sum(map(len, found)) == 9 * (1 + 13 + 1 + 1) + len(text) + 2
    ids = [token for document in found for token in document]
    assert (ids.count(corpus.eod), ids.count(257)) == (2, 9)
    assert corpus.manifest.eods_inside == 0


def test_ends_inside_documents_are_counted_where_they_cannot_be_plain_text(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path / "tok.json", {"<unk>": 0, "a": 1, "</s>": 2})
    corpus = prepared([write_jsonl(tmp_path / "t.jsonl", ["a </s> a", "a a a"])], tmp_path / "out", 0.5, name=file)
    assert corpus.manifest.eods_inside == 1
    pair = pack_pair(tmp_path / "p", [[[1, 2, 1], [2]], [[2, 1, 1, 2]], [[1, 1, 2, 1]]])
    adopted = prepared([pair], tmp_path / "adopted", name=None, vocab_size=3, eod="2").manifest
    assert (adopted.eods_inside, adopted.without_eod) == (3, 1)


def test_characters_that_a_vocabulary_drops_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    """é is two bytes, Ã and © in the alphabet: losing the second one loses the character."""
    for name, file in (
        ("dropped", byte_level(tmp_path / "a.json", without="©")),
        ("unknown", byte_level(tmp_path / "b.json", without="©", unk_token="!")),
    ):
        for lost in (10, 11):
            texts = write_jsonl(tmp_path / "t.jsonl", ["x" * 499 + "é", "y" * (501 - lost) + "é" * (lost - 1)])
            if lost == 11:
                said = rf"tokenizer {Path(file).name} cannot encode 1\.10% of the characters \(11, as 'é' in .*t\.jsonl"
                with pytest.raises(UserError, match=said):
                    prepared([texts], tmp_path / "refused", name=file)
                assert not (tmp_path / "refused").exists()
            else:
                corpus = prepared([texts], tmp_path / name, name=file)
                assert corpus.manifest.lost_characters == 10
    whole = prepared([texts], tmp_path / "whole", name=byte_level(tmp_path / "c.json"))
    assert whole.manifest.lost_characters == 0


def test_a_model_without_an_unknown_token_is_named_with_the_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    (tmp_path / "known.txt").write_text("a a")
    (tmp_path / "strange.txt").write_text("a z")
    for model in (
        models.WordLevel({"a": 0, "</s>": 1}),
        models.WordPiece({"a": 0, "</s>": 1}),
        models.Unigram([("a", -1.0), ("</s>", -2.0)]),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / "tok.json"))
        with pytest.raises(UserError, match=r"strange\.txt: the tokenizer .*tok\.json cannot encode it \("):
            prepared(sorted(tmp_path.glob("*.txt")), tmp_path / "out", name=str(tmp_path / "tok.json"))


def test_work_is_handed_out_in_order_and_little_of_it_is_held() -> None:
    free, begun = Event(), []

    def numbers() -> object:
        for number in range(9):
            begun.append(number)
            yield number

    def slow_at_first(number: int) -> int:
        return number if number or free.wait() else -1

    result = in_order(numbers(), slow_at_first, 2)
    Timer(0.01, free.set).start()
    assert next(result) == 0
    assert begun == [0, 1, 2, 3]
    assert list(result) == list(range(1, 9))
    with pytest.raises(ZeroDivisionError):
        list(in_order([1, 0, 1], lambda number: 1 // number, 2))

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from corpora import pack_pair, write_jsonl
from typer.testing import CliRunner

from mup_tune.cli import data as command
from mup_tune.data.corpus import Corpus
from mup_tune.errors import UserError

app = typer.Typer()
command.register(app)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["data", "prepare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_prepare_prints_json_alone_on_stdout(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "t.jsonl", ["one", "two", "three", ""])
    printed = json.loads(run(texts, "--out", tmp_path / "out", "--tokenizer", "bytes", "--val-fraction", 0.3, "--json"))
    corpus = Corpus.open(tmp_path / "out")
    assert printed.pop("path") == str(corpus.path)
    assert printed == corpus.manifest.model_dump(mode="json")
    assert printed["skipped"] == {"empty": 1}


def test_prepare_says_what_it_made_and_skipped(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "t.jsonl", ["one", "two", "three", ""])
    output = run(texts, "--out", tmp_path / "out", "--tokenizer", "bytes", "--val-fraction", 0.3)
    corpus = Corpus.open(tmp_path / "out")
    assert str(corpus.tokens("train")) in output
    assert corpus.hash in output
    assert "skipped, empty: 1" in output


def test_prepare_adopts_a_pair_and_notes_missing_eods(tmp_path: Path) -> None:
    pack_pair(tmp_path / "p", [[[1, 9]], [[2, 3]], [[4, 9]]])
    output = run(tmp_path / "p", "--out", tmp_path / "out", "--vocab-size", 10, "--eod", 9, "--val-fraction", 0.3)
    assert "1 documents do not end in EOD 9" in output
    assert Corpus.open(tmp_path / "out").vocab_size == 10


def test_wrong_input_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        run(tmp_path / "none", "--out", tmp_path / "out", "--tokenizer", "bytes")

"""Small corpora for tests: Megatron pairs packed by hand, so that no code under test writes what it reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mup_tune.data.corpus import Corpus, Split
from mup_tune.data.prepare import prepare

FORMATS = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}


def pack_pair(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], code: int = 8, gap: int = 0) -> Path:
    """PREFIX.bin/.idx of documents made of sequences, with ``gap`` tokens of rubbish between sequences."""
    token = FORMATS[code]
    sequences = [sequence for document in documents for sequence in document]
    body, pointers = b"", []
    for sequence in sequences:
        body += struct.pack(f"<{gap}{token}", *[99] * gap)
        pointers.append(len(body))
        body += struct.pack(f"<{len(sequence)}{token}", *sequence)
    indices = [0]
    for document in documents:
        indices.append(indices[-1] + len(document))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(indices))
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(pointers)}q", *pointers) + struct.pack(f"<{len(indices)}q", *indices)
    Path(f"{prefix}.bin").write_bytes(body)
    Path(f"{prefix}.idx").write_bytes(index)
    return prefix


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(
    inputs: Sequence[Path],
    out: Path,
    val_fraction: float = 0.3,
    name: str | None = "bytes",
    vocab_size: int | None = None,
    eod: str | None = None,
) -> Corpus:
    return prepare(inputs, out, name, val_fraction, eod=eod, vocab_size=vocab_size)


def words(folder: Path, count: int = 60) -> Corpus:
    """A bytes corpus of numbered short documents."""
    texts = [f"document {number} " + "x" * (number * 7 % 23) for number in range(count)]
    return prepared([write_jsonl(folder / "words.jsonl", texts)], folder / "corpus")


def tokens_of(corpus: Corpus, split: Split) -> list[list[int]]:
    """Documents, cut at the index."""
    stream = corpus.stream(split)
    tokens, ordinals = stream.at(np.arange(stream.tokens))
    return [tokens[ordinals == number].tolist() for number in range(int(ordinals[-1]) + 1)]

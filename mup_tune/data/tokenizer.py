"""Tokenizers: raw bytes, a Hugging Face ``tokenizer.json``, or just a vocabulary where tokens are given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mup_tune.data.encoded import Encoded
from mup_tune.data.paths import storable
from mup_tune.errors import UserError
from mup_tune.files import FrozenModel

BYTES_VOCAB, BYTES_EOD = 257, 256
MAX_VOCAB = 2**31 - 1  # ids are stored as int32 at most
# Usual names of the token that ends a document, the most specific first.
END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|endofdocument|>",
    "<|eod|>",
    "<|eos|>",
    "<eod>",
    "<eos>",
    "</s>",
    "[EOD]",
    "[EOS]",
)


class TokenizerInfo(FrozenModel):
    """What a corpus remembers. ``ids``: the tokens came from elsewhere and only the vocabulary is known."""

    kind: Literal["bytes", "file", "ids"]
    file: str = ""
    sha256: str = ""
    vocab_size: Annotated[int, Field(ge=2, le=MAX_VOCAB)]
    eod: Annotated[int, Field(ge=0)]

    @property
    def identity(self) -> tuple[int, int, str]:
        """Equal where an id means the same."""
        return self.vocab_size, self.eod, self.sha256

    @property
    def told(self) -> str:
        which = f" of SHA-256 {self.sha256[:12]}…" if self.sha256 else ""
        return f"a {self.kind} tokenizer{which} with {self.vocab_size:,} ids and EOD {self.eod}"


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, and how text becomes its ids; both functions are None where only the vocabulary is known.

    ``encode``: of many texts; may be called from several threads.

    ``cut(text, tokens)``: the first place from ``tokens`` on where no character is torn, as the tokens and
    the UTF-8 bytes before it; None where there is none before the text's end.
    """

    info: TokenizerInfo
    encode: Callable[[Sequence[str]], list[Encoded]] | None
    cut: Callable[[str, int], tuple[int, int] | None] | None = None


def load_tokenizer(name: str | None, eod: str | None = None, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that the flags ask for.

    Args:
        name: ``bytes`` (ids 0..255, EOD 256) or the path of a ``tokenizer.json``.
        eod: the token that ends a document in that file's vocabulary; with ``vocab_size`` its id.
        vocab_size: without ``name``, for Megatron pairs only.
    """
    if name is not None and vocab_size is not None:
        raise UserError("cannot be combined with --tokenizer, which knows it", field="--vocab-size")
    if name is None:
        return _ids_only(vocab_size, eod)
    if name != "bytes":
        return _from_file(Path(name), eod)
    if eod is not None:
        raise UserError(f"is fixed at {BYTES_EOD} for the bytes tokenizer", field="--eod", fix="Leave it out")
    return Tokenizer(TokenizerInfo(kind="bytes", vocab_size=BYTES_VOCAB, eod=BYTES_EOD), _encode_bytes, _cut_bytes)


def _encode_bytes(texts: Sequence[str]) -> list[Encoded]:
    return [Encoded(np.frombuffer(text.encode(), np.uint8)) for text in texts]


def _cut_bytes(text: str, tokens: int) -> tuple[int, int] | None:
    content = text.encode()
    inside = (place for place in range(tokens, len(content)) if content[place] & 0xC0 != 0x80)
    place = next(inside, None)
    return None if place is None else (place, place)


def _ids_only(vocab_size: int | None, eod: str | None) -> Tokenizer:
    if vocab_size is None:
        raise UserError(
            "is missing",
            field="--tokenizer",
            fix="Give bytes, a tokenizer.json, or for Megatron pairs --vocab-size and --eod",
        )
    if not 2 <= vocab_size <= MAX_VOCAB:
        raise UserError(f"{vocab_size} is not allowed: 2 to {MAX_VOCAB}", field="--vocab-size")
    if eod is None or not eod.isdecimal() or int(eod) >= vocab_size:
        problem = "is missing" if eod is None else f"{eod!r} is not an id below the vocabulary size {vocab_size}"
        raise UserError(problem, field="--eod", fix="With --vocab-size, give the id of the end-of-document token")
    return Tokenizer(TokenizerInfo(kind="ids", vocab_size=vocab_size, eod=int(eod)), None)


def _from_file(path: Path, eod: str | None) -> Tokenizer:
    if path.is_dir():
        raise UserError("is a folder", file=path, fix="Name the tokenizer.json inside it")
    if not path.is_file():
        raise UserError("no such tokenizer file", file=path, fix="Give a Hugging Face tokenizer.json, or bytes")
    from tokenizers import Tokenizer as HFTokenizer

    from mup_tune.data.vocabulary import Vocabulary

    content = path.read_bytes()
    try:
        vocabulary: dict[str, int] = HFTokenizer.from_buffer(content).get_vocab(with_added_tokens=True)
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"is not a Hugging Face tokenizer.json ({error})", file=path) from None
    end = eod if eod is not None else next((token for token in END_TOKENS if token in vocabulary), None)
    if end is None:
        raise UserError("has none of the usual end-of-document tokens", file=path, fix="Name one with --eod TOKEN")
    if end not in vocabulary:
        raise UserError(f"{end!r} is not in the vocabulary of {path}", field="--eod")
    # ids may have gaps, so the largest one counts, not how many there are
    info = TokenizerInfo(
        kind="file",
        file=storable(Path(path.name)).name,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        eod=vocabulary[end],
    )
    known = Vocabulary(path, json.loads(content), end)
    return Tokenizer(info, known.encode, known.cut)

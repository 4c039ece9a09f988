"""A Hugging Face tokenizer as a corpus needs it.

Documents are encoded whole, their end is never read out of a text, and what the vocabulary lacks is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer

from mup_tune.data.encoded import Encoded
from mup_tune.errors import UserError

UNSEEN, KNOWN, DROPPED = 0, 1, 2


class Vocabulary:
    """Encodes with the content of a ``tokenizer.json``.

    ``end``, written out in a text, is encoded as the plain text that it is there, as far as the model allows;
    other special tokens keep their meaning. Characters are lost in two ways: as the unknown token, which is
    then in the ids, or, in a BPE without one, without a trace.
    """

    def __init__(self, path: Path, content: dict[str, Any], end: str) -> None:
        for token in content.get("added_tokens") or ():
            token["special"] = token["content"] == end
        self._path, self._hf = path, _loaded(content)
        self._hf.encode_special_tokens = True  # as plain text, those that are special
        model = content["model"]
        named = model.get("unk_token")
        self._unknown: int | None = model.get("unk_id") if named is None else self._hf.token_to_id(named)
        drops = type(self._hf.model).__name__ == "BPE" and named is None and bool(model["vocab"])
        self._letters = _Letters(self._hf, content) if drops else None

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's ids and what they lose.

        Raises:
            UserError: the model has no token for a part of a text, and none for what it does not know.
        """
        try:
            batch = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the package raises bare Exception
            raise UserError(f"the tokenizer {self._path} cannot encode it ({error})", fix="Use another one") from None
        ids = [np.asarray(each.ids, np.int64) for each in batch]
        return [Encoded(each, self._lost(text, each)) for text, each in zip(texts, ids, strict=True)]

    def cut(self, text: str, tokens: int) -> tuple[int, int] | None:
        """The first place from ``tokens`` on between two characters, in tokens and in bytes."""
        spans = _spans(self._hf, text)
        starts, ends = spans[:, 0], np.maximum.accumulate(spans[:, 1])
        places = np.flatnonzero(starts[tokens:] >= ends[tokens - 1 : -1])
        if not len(places):
            return None
        place = tokens + int(places[0])
        return place, len(text[: starts[place]].encode())

    def _lost(self, text: str, ids: NDArray[np.int64]) -> str:
        if self._letters:
            return self._letters.dropped(text)
        if self._unknown is None or not (ids == self._unknown).any():
            return ""
        unknown = np.zeros(len(text) + 1, bool)
        for start, end in _spans(self._hf, text)[ids == self._unknown]:
            unknown[start:end] = True
        return "".join(text[place] for place in np.flatnonzero(unknown))


class _Letters:
    """Which characters a BPE without an unknown token drops: those that a twin with one marks.

    BPE starts from single characters (or their bytes), so whether one is known does not depend on others.
    Thrice, since some vocabularies tell the first and the last of a word from the others.
    """

    def __init__(self, hf: HFTokenizer, content: dict[str, Any]) -> None:
        self._hf = hf
        self._twin = _loaded(content)
        self._twin.encode_special_tokens = True
        self._twin.model.unk_token = next(iter(content["model"]["vocab"]))
        self._state = np.zeros(0x110000, np.uint8)  # of every code point

    def dropped(self, text: str) -> str:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        state = self._state[codes]
        if (state == UNSEEN).any():
            for code in np.unique(codes[state == UNSEEN]):
                thrice = 3 * chr(code)
                plain, marked = (each.encode(thrice, add_special_tokens=False).ids for each in (self._hf, self._twin))
                self._state[code] = KNOWN if plain == marked else DROPPED
            state = self._state[codes]
        return "".join(map(chr, codes[state == DROPPED]))


def _loaded(content: dict[str, Any]) -> HFTokenizer:
    hf = HFTokenizer.from_buffer(json.dumps(content).encode())
    hf.no_truncation()  # a file saved with truncation would cut documents silently
    hf.no_padding()
    return hf


def _spans(hf: HFTokenizer, text: str) -> NDArray[np.int64]:
    """[tokens, 2]: the characters that each token covers, from and up to."""
    return np.array(hf.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)

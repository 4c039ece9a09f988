"""A prepared corpus: a folder whose corpus.json says what its token files hold."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mup_tune.data.indexed import IndexedTokens, Ints
from mup_tune.data.integrity import Seen, sampled_digest, stamp
from mup_tune.data.tokenizer import TokenizerInfo
from mup_tune.errors import UserError
from mup_tune.files import FrozenModel, content_hash, validated

CORPUS_FILE = "corpus.json"
Split = Literal["train", "val"]


class Part(FrozenModel):
    """One index and the .bin it points into: beside corpus.json, or a user's own by its absolute path."""

    bin: str
    idx: str
    bin_bytes: int


class SplitInfo(FrozenModel):
    """``bytes`` of UTF-8 text (EODs count as none), null where only tokens were given.

    ``sha256`` covers the digests of the split's documents in order, so it changes with any of them or their
    order.
    """

    parts: tuple[Part, ...]
    documents: int
    tokens: int
    bytes: int | None
    sha256: str


class Manifest(FrozenModel):
    """What corpus.json holds.

    ``without_eod`` counts adopted documents that do not end in the EOD token, ``eods_inside`` the EOD tokens
    before a document's last one, ``lost_characters`` those that no token of the vocabulary stands for, and
    ``cut_documents`` those that lie on both sides of the split. ``files`` says what each file of
    a part was, by the part's name for it; it is empty in corpora from before that was recorded.
    """

    format_version: Literal[1] = 1
    tokenizer: TokenizerInfo
    train: SplitInfo
    val: SplitInfo
    skipped: dict[str, int]
    without_eod: int = 0
    eods_inside: int = 0
    lost_characters: int = 0
    cut_documents: int = 0
    files: dict[str, Seen] = Field(default_factory=dict)
    hash: str

    @classmethod
    def of(cls, tokenizer: TokenizerInfo, train: SplitInfo, val: SplitInfo, **facts: Any) -> Manifest:
        """The hash covers vocabulary and content, not where the files lie."""
        known = tokenizer.model_dump(mode="json", exclude={"file"})
        content = {"tokenizer": known, "train": train.sha256, "val": val.sha256}
        return cls(tokenizer=tokenizer, train=train, val=val, hash=content_hash(content), **facts)


@dataclass(frozen=True)
class Corpus:
    """A corpus folder, opened. Holds no open files, so it can be sent to another process."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Corpus:
        """Read corpus.json and glance at its token files: size, time, and samples of their content.

        A file of another time whose samples are right, as after a copy, is told on stderr.

        Raises:
            UserError: not a corpus folder, or files are missing or have changed.
        """
        folder = Path(path)
        file = folder / CORPUS_FILE
        if not file.is_file():
            what = (
                f"has no {CORPUS_FILE}, so it is not a prepared corpus" if folder.is_dir() else "no such corpus folder"
            )
            raise UserError(what, file=folder, fix="Make one with `mup-tune data prepare INPUT… --out DIR`")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=file) from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"is not JSON ({error})", file=file) from None
        corpus = cls(folder, validated(Manifest, content, file))
        for part in (*corpus.manifest.train.parts, *corpus.manifest.val.parts):
            corpus._check(part)
        touched = [name for name, seen in corpus.manifest.files.items() if corpus._check_content(name, seen)]
        if touched:
            note = (
                f"note: {folder}: {touched[0]} was written or copied since the corpus was prepared, and samples of it"
            )
            print(f"{note} are right. `mup-tune data verify {folder}` reads all of it", file=sys.stderr)
        return corpus

    def _check_content(self, name: str, seen: Seen) -> bool:
        """Whether the file has another time than it had; refuse other content."""
        path = self.path / name
        try:
            same, time = sampled_digest(path) == seen.sampled, path.stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=path) from None
        if not same:
            problem = f"has other content than when the corpus {self.path} was prepared"
            raise UserError(problem, file=path, fix="Prepare the corpus anew")
        return time != seen.mtime_ns

    def _check(self, part: Part) -> None:
        for name in (part.bin, part.idx):
            if not (self.path / name).is_file():
                raise UserError("no such file", file=self.path / name, fix=f"Prepare the corpus {self.path} anew")
        size = (self.path / part.bin).stat().st_size
        if size != part.bin_bytes:
            problem = f"has {size} bytes, but had {part.bin_bytes} when the corpus {self.path} was prepared"
            raise UserError(problem, file=self.path / part.bin, fix="Prepare the corpus anew")

    def stamps(self) -> tuple[tuple[int, ...], ...]:
        """Of all its files: where they are what they were, nothing was written since."""
        parts = (*self.manifest.train.parts, *self.manifest.val.parts)
        names = dict.fromkeys([CORPUS_FILE, *(name for part in parts for name in (part.bin, part.idx))])
        return tuple(stamp(self.path / name) for name in names)

    @property
    def vocab_size(self) -> int:
        return self.manifest.tokenizer.vocab_size

    @property
    def eod(self) -> int:
        return self.manifest.tokenizer.eod

    @property
    def hash(self) -> str:
        """16 hex digits over the vocabulary and both splits' content."""
        return self.manifest.hash

    def info(self, split: Split) -> SplitInfo:
        return self.manifest.train if split == "train" else self.manifest.val

    def tokens(self, split: Split) -> int:
        return self.info(split).tokens

    def documents(self, split: Split) -> int:
        return self.info(split).documents

    def bytes_per_token(self, split: Split) -> float | None:
        """UTF-8 bytes of text per token, EODs included as tokens; None where the text is unknown.

        bits/byte = (loss in nats/token) / ln 2 / bytes_per_token.
        """
        info = self.info(split)
        return None if info.bytes is None else info.bytes / info.tokens

    def stream(self, split: Split) -> TokenStream:
        return TokenStream(self, split)


class TokenStream:
    """A split's documents laid end to end in file order, memory-mapped; ``tokens`` is its length."""

    def __init__(self, corpus: Corpus, split: Split) -> None:
        self._vocab_size = corpus.vocab_size
        info = corpus.info(split)
        self._parts = [IndexedTokens(corpus.path / part.bin, corpus.path / part.idx) for part in info.parts]
        counts = [int(part.bounds[-1]) for part in self._parts]
        self._starts = np.cumsum([0, *counts])
        self._first_document = np.cumsum([0, *(part.documents for part in self._parts)])
        self.tokens = int(self._starts[-1])
        if (self.tokens, int(self._first_document[-1])) != (info.tokens, info.documents):
            problem = f"its {split} index files hold {self.tokens} tokens, corpus.json says {info.tokens}"
            raise UserError(problem, file=corpus.path, fix="Prepare the corpus anew")

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Ids and document ordinals at ``positions`` (any shape, 0 ≤ position < tokens).

        Raises:
            UserError: an id outside the vocabulary, which can only be if the .bin was changed since.
        """
        tokens, documents = np.empty_like(positions), np.empty_like(positions)
        owner = np.searchsorted(self._starts[1:], positions, side="right")
        for index in np.unique(owner):
            part, inside = self._parts[index], owner == index
            ids, ordinals = part.at(positions[inside] - self._starts[index])
            if ids.min() < 0 or ids.max() >= self._vocab_size:
                raise UserError(
                    f"holds ids outside the vocabulary of {self._vocab_size}", file=part.bin_path, fix="Prepare it anew"
                )
            tokens[inside], documents[inside] = ids, ordinals + self._first_document[index]
        return tokens, documents

"""Documents to a Megatron pair, tokenized on all allowed cores, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mup_tune.cores import usable_cores
from mup_tune.data.encoded import Encoded
from mup_tune.data.indexed import MAX_SEQUENCE, PairWriter, token_dtype
from mup_tune.data.integrity import DIGEST_BYTES
from mup_tune.data.sources import Document
from mup_tune.data.split import Records
from mup_tune.data.tokenizer import Tokenizer
from mup_tune.errors import UserError

GROUP_CHARS = 1 << 18  # texts are tokenized in groups of about this size, or alone where they are longer
LOST_SHARE = 0.01  # of all characters: a loss in nats/token says nothing about a text that the model never sees
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Account:
    """What tokenizing did not keep: characters in all, those lost, and EOD ids inside documents."""

    characters: int = 0
    lost: int = 0
    example: str = ""
    eods_inside: int = 0

    def add(self, document: Document, encoded: Encoded, eod: int) -> None:
        self.characters += len(document.text)
        self.lost += len(encoded.lost)
        self.example = self.example or (f"{encoded.lost[0]!r} in {document.path}" if encoded.lost else "")
        self.eods_inside += int((encoded.ids == eod).sum())

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a vocabulary that lacks more than ``LOST_SHARE`` of the characters."""
        share = self.lost / max(1, self.characters)
        if share > LOST_SHARE:
            raise UserError(
                f"the tokenizer {tokenizer.info.file} cannot encode {share:.2%} of the characters ({self.lost:,}, "
                f"as {self.example}); at most {LOST_SHARE:.0%} are allowed",
                fix="Use a tokenizer with all bytes in its vocabulary, or another text",
            )


def write_pair(prefix: Path, texts: Iterable[Document], tokenizer: Tokenizer, records: Records) -> Account:
    """Tokenize into PREFIX.bin/.idx with an EOD after every document; the hash is of the text.

    Groups of documents are encoded in threads, since the package leaves Python's lock while it works. There
    are as many as cores, and one group more than threads is held.

    Raises:
        UserError: a document cannot be encoded or is too long, or too many characters are lost.
    """
    eod, account = tokenizer.info.eod, Account()

    def work(group: list[Document]) -> list[tuple[Document, Encoded, bytes, int]]:
        done = []
        for document, encoded in zip(group, _encoded(group, tokenizer), strict=True):
            content = document.text.encode()
            done.append((document, encoded, hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), len(content)))
        return done

    with PairWriter(prefix, token_dtype(tokenizer.info.vocab_size)) as writer:
        for group in in_order(_grouped(texts), work, usable_cores()):
            for document, encoded, digest, size in group:
                if len(encoded.ids) >= MAX_SEQUENCE:
                    raise UserError(
                        f"a document of {len(encoded.ids)} tokens is too long: {document.text[:40]!r}…",
                        file=document.path,
                        fix="Split it, for example by line",
                    )
                account.add(document, encoded, eod)
                records.add(digest, size)
                writer.add(np.append(encoded.ids.astype(writer.dtype), writer.dtype.type(eod)))
    account.check(tokenizer)
    return account


def in_order(items: Iterable[Item], work: Callable[[Item], Result], threads: int) -> Iterator[Result]:
    """``work`` of every item, in the items' order; at most ``threads`` + 1 are begun and not handed out."""
    pool, pending = ThreadPoolExecutor(threads), deque[Future[Result]]()
    try:
        for item in items:
            if len(pending) > threads:
                yield pending.popleft().result()
            pending.append(pool.submit(work, item))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _encoded(group: list[Document], tokenizer: Tokenizer) -> list[Encoded]:
    assert tokenizer.encode is not None
    try:
        return tokenizer.encode([document.text for document in group])
    except UserError as error:
        if len(group) > 1:  # which of them is it?
            return [each for document in group for each in _encoded([document], tokenizer)]
        raise UserError(error.problem, file=group[0].path, fix=error.fix) from None


def _grouped(texts: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    chars = 0
    for document in texts:
        if group and chars + len(document.text) > GROUP_CHARS:
            yield group
            group, chars = [], 0
        group.append(document)
        chars += len(document.text)
    if group:
        yield group

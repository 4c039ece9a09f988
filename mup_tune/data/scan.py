"""Reading all of a Megatron pair: digests of its documents, and what their ids are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from mup_tune.data.indexed import IndexedTokens
from mup_tune.data.integrity import DIGEST_BYTES
from mup_tune.data.split import Records
from mup_tune.data.tokenizer import TokenizerInfo
from mup_tune.errors import UserError


@dataclass
class Scanned:
    """Documents that do not end in EOD, and EODs before a document's last token."""

    without_eod: int = 0
    eods_inside: int = 0


def scan(pair: IndexedTokens, info: TokenizerInfo, records: Records, advance: Callable[[int], None]) -> Scanned:
    """Hash every document of a pair and check its ids.

    Raises:
        UserError: an id is outside the vocabulary.
    """
    found = Scanned()
    with pair.bin_path.open("rb", buffering=1 << 20) as stream:
        for document in range(pair.documents):
            digest, end, eods = hashlib.blake2b(digest_size=DIGEST_BYTES), -1, 0
            for sequence, ids in pair.chunks(stream, document):
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= info.vocab_size:
                    wrong = low if low < 0 else high
                    problem = f"id {wrong} in sequence {sequence} is outside the vocabulary of {info.vocab_size}"
                    raise UserError(problem, file=pair.bin_path, fix="Is this the right tokenizer?")
                digest.update(ids.astype("<i4").tobytes())  # as int32: the stored type does not matter
                end, eods = int(ids[-1]), eods + int((ids == info.eod).sum())
                advance(ids.nbytes)
            records.add(digest.digest(), None)
            found.without_eod += end != info.eod
            found.eods_inside += eods - (end == info.eod)
    return found


def digest_of(pair: IndexedTokens, document: int, start: int, stop: int) -> bytes:
    """What :func:`scan` would find for a document of the tokens [start, stop) alone."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with pair.bin_path.open("rb") as stream:
        for _, ids in pair.chunks(stream, document, start, stop):
            digest.update(ids.astype("<i4").tobytes())
    return digest.digest()

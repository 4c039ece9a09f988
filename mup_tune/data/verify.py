"""``data verify``: every byte of a corpus against what was recorded when it was prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mup_tune.data.corpus import CORPUS_FILE, Corpus, Manifest, Split
from mup_tune.data.indexed import IndexedTokens
from mup_tune.data.integrity import whole_digest
from mup_tune.data.scan import scan
from mup_tune.data.split import Records
from mup_tune.errors import UserError
from mup_tune.files import write_atomic

SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Verified:
    """``files`` were compared by all their bytes, ``documents`` by the digests of their ids.

    ``unrecorded`` files were prepared before digests were: only their form and their ids were checked.
    """

    corpus: Corpus
    files: tuple[str, ...]
    documents: int
    unrecorded: tuple[str, ...]


def verify(path: Path, report: Callable[[int, int], None]) -> Verified:
    """Read all of a corpus; one that is whole gets the present times of its files, so that a use trusts them.

    Args:
        report: told of bytes read so far, and of all there are.

    Raises:
        UserError: names the first file that is not what was prepared.
    """
    corpus = Corpus.open(path)
    seen, done = corpus.manifest.files, 0
    whole = sorted(name for name, file in seen.items() if file.whole)
    by_ids = [split for split in SPLITS if corpus.info(split).bytes is None]
    by_form = [split for split in SPLITS if split not in by_ids and not seen]
    scanned = [part for split in (*by_ids, *by_form) for part in corpus.info(split).parts]
    total = sum((corpus.path / name).stat().st_size for name in whole)
    total += sum(corpus.tokens(split) for split in (*by_ids, *by_form)) * (4 if corpus.vocab_size > 2**16 else 2)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(min(done, total), total)

    for name in whole:
        if whole_digest(corpus.path / name, advance) != seen[name].whole:
            raise UserError(CHANGED, file=corpus.path / name, fix="Prepare the corpus anew")
    for split in SPLITS:
        corpus.stream(split)  # its files fit together
    for split in (*by_ids, *by_form):
        _check_ids(corpus, split, by_ids, advance)
    _trust(corpus)
    names = {name for part in scanned for name in (part.bin, part.idx)}
    documents = sum(corpus.documents(split) for split in by_ids)
    return Verified(corpus, tuple(whole), documents, tuple(sorted(names - seen.keys())))


CHANGED = "is not what it was when the corpus was prepared"


def _check_ids(corpus: Corpus, split: Split, by_ids: list[Split], advance: Callable[[int], None]) -> None:
    records, info = Records(), corpus.info(split)
    for part in info.parts:
        scan(IndexedTokens(corpus.path / part.bin, corpus.path / part.idx), corpus.manifest.tokenizer, records, advance)
    if split in by_ids and hashlib.sha256(records.digests).hexdigest() != info.sha256:
        bins = ", ".join(sorted({str(corpus.path / part.bin) for part in info.parts}))
        raise UserError(f"its {split} documents are not those that were prepared", file=bins, fix="Adopt it anew")


def _trust(corpus: Corpus) -> None:
    """Record the times of files that proved whole; a folder that cannot be written stays as it is."""
    files = {
        name: file.model_copy(update={"mtime_ns": (corpus.path / name).stat().st_mtime_ns})
        for name, file in corpus.manifest.files.items()
    }
    if files != corpus.manifest.files:
        content = Manifest.model_copy(corpus.manifest, update={"files": files}).model_dump_json(indent=2)
        try:
            write_atomic(corpus.path / CORPUS_FILE, content + "\n")
        except OSError:
            return

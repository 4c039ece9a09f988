"""From inputs to a corpus folder.

Text is tokenized into a Megatron pair, and a pair is taken as it is; the split is two indices into either.
Memory is a few megabytes of buffers, the documents that the cores are at, and about 100 bytes a document for
its hash and index.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from mup_tune.data.corpus import CORPUS_FILE, Corpus, Manifest
from mup_tune.data.encoding import Account, write_pair
from mup_tune.data.indexed import IndexedTokens, Ints, pair_paths
from mup_tune.data.integrity import Seen
from mup_tune.data.paths import storable
from mup_tune.data.readers import Advance
from mup_tune.data.scan import digest_of, scan
from mup_tune.data.sources import Found, discover, documents
from mup_tune.data.split import Piece, Records, validation_starts, write_split
from mup_tune.data.tokenizer import Tokenizer, load_tokenizer
from mup_tune.errors import UserError
from mup_tune.files import write_atomic
from mup_tune.scratch import scratch_folder


def prepare(
    inputs: Sequence[Path],
    out: Path,
    tokenizer: str | None,
    val_fraction: float = 0.01,
    *,
    eod: str | None = None,
    vocab_size: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Make the corpus ``out`` from files, folders or Megatron pairs.

    Args:
        tokenizer: ``bytes`` or a tokenizer.json; ``eod`` and ``vocab_size`` as in :func:`load_tokenizer`.
        report: told of input bytes read so far, and of all there are.
    """
    loaded, found = load_tokenizer(tokenizer, eod, vocab_size), discover(inputs)
    total, done = found.total_bytes, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if report:
            report(done, total)

    return write_corpus(found, out, loaded, val_fraction, advance)


def write_corpus(found: Found, out: Path, tokenizer: Tokenizer, val_fraction: float, advance: Advance) -> Corpus:
    """Write the corpus ``out``. It appears whole, under its name, or not at all.

    Args:
        found: files of documents, or Megatron pairs, which stay where they are.
        val_fraction: share of tokens held out, as :func:`~mup_tune.data.split.validation_starts` says.
        advance: told of input bytes as they are read.

    Raises:
        UserError: ``out`` is taken, inputs cannot be used, or the disk is full.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"{val_fraction:g} is not allowed: between 0 and 1", field="--val-fraction")
    if found.texts and tokenizer.encode is None:
        raise UserError("is for Megatron pairs, and the inputs are text", field="--vocab-size", fix="Give --tokenizer")
    out = storable(Path(os.path.realpath(out)))
    check_free(out)
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(beside, f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}"):
            _fill(beside, found, tokenizer, val_fraction, advance)
            if not publish(beside, out):
                raise UserError("appeared while the corpus was prepared", file=out, fix="Choose another --out")
    except OSError as error:
        theirs = error.filename and not str(error.filename).startswith(str(beside))
        raise UserError(
            f"cannot be read or written ({error.strerror})", file=error.filename if theirs else out
        ) from None
    return Corpus.open(out)


def check_free(out: Path) -> None:
    """Refuse an ``out`` that holds anything."""
    if (out / CORPUS_FILE).exists():
        raise UserError("holds a corpus already", file=out, fix="Choose another --out or delete it")
    if out.exists() and not out.is_dir():
        raise UserError("is not a folder", file=out, fix="Choose another --out")
    if out.is_dir() and any(out.iterdir()):
        raise UserError("is not empty and not a corpus", file=out, fix="Choose another --out")
    if out.is_mount():
        raise UserError("is a mount point, which cannot be replaced", file=out, fix="Name a folder inside it")


def publish(beside: Path, out: Path) -> bool:
    """Rename a finished folder to its name; False if something is there by now."""
    try:
        beside.rename(out)
    except OSError:
        if out.exists():
            return False
        raise
    return True


def _fill(folder: Path, found: Found, tokenizer: Tokenizer, val_fraction: float, advance: Advance) -> None:
    records, skipped, without_eod, account = Records(), Counter(found.skipped), 0, Account()
    if found.texts:
        prefix = folder / "tokens"
        account = write_pair(prefix, documents(found.texts, skipped, advance), tokenizer, records)
        pairs = [IndexedTokens(*pair_paths(prefix))]
    else:
        pairs = [IndexedTokens(*pair_paths(prefix)) for prefix in found.pairs]
        for pair in pairs:
            scanned = scan(pair, tokenizer.info, records, advance)
            without_eod += scanned.without_eod
            account.eods_inside += scanned.eods_inside
    lengths = np.concatenate([pair.document_lengths for pair in pairs])
    bounds = validation_starts(records.keys(), lengths, val_fraction)
    cut = np.flatnonzero((bounds > 0) & (bounds < lengths))
    pieces = _pieces(found, tokenizer, pairs, bounds, cut)
    train = write_split("train", pairs, records, np.zeros_like(bounds), bounds, pieces[0], folder)
    val = write_split("val", pairs, records, bounds, lengths, pieces[1], folder)
    names = {name for part in (*train.parts, *val.parts) for name in (part.bin, part.idx)}
    manifest = Manifest.of(
        tokenizer.info,
        train=train,
        val=val,
        files={name: Seen.of(folder / name, whole=not Path(name).is_absolute()) for name in sorted(names)},
        skipped={reason: count for reason, count in sorted(skipped.items()) if count},
        without_eod=without_eod,
        eods_inside=account.eods_inside,
        lost_characters=account.lost,
        cut_documents=len(cut),
    )
    write_atomic(folder / CORPUS_FILE, manifest.model_dump_json(indent=2) + "\n")


def _pieces(
    found: Found, tokenizer: Tokenizer, pairs: Sequence[IndexedTokens], bounds: Ints, cut: Ints
) -> tuple[dict[int, Piece], dict[int, Piece]]:
    """What either side holds of the documents that are cut, all copies of one.

    Where the documents are text, that one is read again, and ``bounds`` move to a place between characters.
    """
    if not len(cut):
        return {}, {}
    head_bytes = tail_bytes = None
    if found.texts:
        path, text = next(islice(documents(found.texts, Counter(), lambda _: None), int(cut[0]), None))
        place = tokenizer.cut(text, int(bounds[cut[0]])) if tokenizer.cut else None
        if place is None:
            raise UserError("is too short to hold out its end", file=path, fix="Use a larger --val-fraction")
        bounds[cut], head_bytes = place
        tail_bytes = len(text.encode()) - head_bytes
    ends = np.cumsum([pair.documents for pair in pairs])
    heads, tails = {}, {}
    for document in cut.tolist():
        owner = int(np.searchsorted(ends, document, side="right"))
        pair, number, bound = pairs[owner], document - int(ends[owner] - pairs[owner].documents), int(bounds[document])
        heads[document] = Piece(digest_of(pair, number, 0, bound), head_bytes)
        tails[document] = Piece(digest_of(pair, number, bound, int(pair.document_lengths[number])), tail_bytes)
    return heads, tails

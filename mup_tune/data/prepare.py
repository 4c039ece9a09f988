"""From inputs to a corpus folder.

Text is tokenized into a Megatron pair, and a pair is taken as it is; the split is two indices into either.
Memory is a few megabytes of buffers, the document at hand, and about 50 bytes a document for its hash and
index.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mup_tune.data.corpus import CORPUS_FILE, Corpus, Manifest
from mup_tune.data.indexed import MAX_SEQUENCE, IndexedTokens, PairWriter, pair_paths, token_dtype
from mup_tune.data.readers import Advance
from mup_tune.data.sources import Found, discover, documents
from mup_tune.data.split import DIGEST_BYTES, Records, validation_side, write_split
from mup_tune.data.tokenizer import Tokenizer, TokenizerInfo, load_tokenizer
from mup_tune.errors import UserError
from mup_tune.files import write_atomic

GROUP_CHARS = 1 << 20  # texts are tokenized in groups of about this size, which the package spreads over cores
CHUNK_TOKENS = 1 << 20


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
        val_fraction: share of documents held out, chosen by hash.
        advance: told of input bytes as they are read.

    Raises:
        UserError: ``out`` is taken, inputs cannot be used, or the disk is full.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"{val_fraction:g} is not allowed: between 0 and 1", field="--val-fraction")
    if found.texts and tokenizer.encode is None:
        raise UserError("is for Megatron pairs, and the inputs are text", field="--vocab-size", fix="Give --tokenizer")
    out = Path(os.path.realpath(out))
    check_free(out)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir(parents=True)
        _fill(beside, found, tokenizer, val_fraction, advance)
        if not publish(beside, out):
            raise UserError("appeared while the corpus was prepared", file=out, fix="Choose another --out")
    except OSError as error:
        theirs = error.filename and not str(error.filename).startswith(str(beside))
        raise UserError(
            f"cannot be read or written ({error.strerror})", file=error.filename if theirs else out
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
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
    records, skipped, without_eod = Records(), Counter(found.skipped), 0
    if found.texts:
        prefix = folder / "tokens"
        _write_pair(prefix, documents(found.texts, skipped, advance), tokenizer, records)
        pairs = [IndexedTokens(*pair_paths(prefix))]
    else:
        pairs = [IndexedTokens(*pair_paths(prefix)) for prefix in found.pairs]
        without_eod = sum(_scan(pair, tokenizer.info, records, advance) for pair in pairs)
    on_val = validation_side(records.keys(), val_fraction)
    manifest = Manifest.of(
        tokenizer.info,
        train=write_split("train", pairs, records, ~on_val, folder),
        val=write_split("val", pairs, records, on_val, folder),
        skipped={reason: count for reason, count in sorted(skipped.items()) if count},
        without_eod=without_eod,
    )
    write_atomic(folder / CORPUS_FILE, manifest.model_dump_json(indent=2) + "\n")


def _write_pair(prefix: Path, texts: Iterable[str], tokenizer: Tokenizer, records: Records) -> None:
    """Tokenize into PREFIX.bin/.idx with an EOD after every document; the hash is of the text."""
    assert tokenizer.encode is not None
    eod = tokenizer.info.eod
    with PairWriter(prefix, token_dtype(tokenizer.info.vocab_size)) as writer:
        for group in _grouped(texts):
            for text, ids in zip(group, tokenizer.encode(group), strict=True):
                if len(ids) >= MAX_SEQUENCE:
                    raise UserError(
                        f"a document of {len(ids)} tokens is too long: {text[:40]!r}…",
                        fix="Split it, for example by line",
                    )
                content = text.encode()
                records.add(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), len(content))
                writer.add(np.append(ids.astype(writer.dtype), writer.dtype.type(eod)))


def _grouped(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    group: list[str] = []
    chars = 0
    for text in texts:
        group.append(text)
        chars += len(text)
        if chars >= GROUP_CHARS:
            yield group
            group, chars = [], 0
    if group:
        yield group


def _scan(pair: IndexedTokens, info: TokenizerInfo, records: Records, advance: Advance) -> int:
    """Hash every document of a pair and check its ids; returns how many do not end in EOD.

    Read by seek, not by map, so that memory stays flat; hashed as int32, so that the stored type does not
    matter.
    """
    without_eod = 0
    with pair.bin_path.open("rb", buffering=1 << 20) as stream:
        for first, last in zip(pair.document_indices[:-1].tolist(), pair.document_indices[1:].tolist(), strict=True):
            digest, end = hashlib.blake2b(digest_size=DIGEST_BYTES), -1
            for sequence in range(first, last):
                stream.seek(int(pair.pointers[sequence]))
                left = int(pair.lengths[sequence])
                while left:
                    count = min(left, CHUNK_TOKENS)
                    ids = np.frombuffer(stream.read(count * pair.dtype.itemsize), pair.dtype)
                    low, high = int(ids.min()), int(ids.max())
                    if low < 0 or high >= info.vocab_size:
                        wrong = low if low < 0 else high
                        problem = f"id {wrong} in sequence {sequence} is outside the vocabulary of {info.vocab_size}"
                        raise UserError(problem, file=pair.bin_path, fix="Is this the right tokenizer?")
                    digest.update(ids.astype("<i4").tobytes())
                    left, end = left - count, int(ids[-1])
                    advance(ids.nbytes)
            records.add(digest.digest(), None)
            without_eod += end != info.eod
    return without_eod

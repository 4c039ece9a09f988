"""Corpora by name: a folder, or ``python-stdlib``, which every machine can make for itself."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

from mup_tune.data.corpus import Corpus
from mup_tune.data.prepare import write_corpus
from mup_tune.data.sources import Found
from mup_tune.data.tokenizer import load_tokenizer
from mup_tune.errors import UserError
from mup_tune.files import cache_dir

DEFAULT_CORPUS = "python-stdlib"
EXCLUDED = {"site-packages", "dist-packages", "__pycache__"}
VAL_FRACTION = 0.05  # a small corpus: 1 % would be too few documents to validate on


def open_corpus(name_or_path: str) -> Corpus:
    """The corpus ``python-stdlib``, prepared at first use, or the one in a folder."""
    return default_corpus() if name_or_path == DEFAULT_CORPUS else Corpus.open(name_or_path)


def default_corpus(cache: Path | None = None, stdlib: Path | None = None) -> Corpus:
    """Python's own standard library on this machine, as bytes; prepared once into the user's cache.

    The folder is named by Python version and content, so that a changed library is another corpus. Two
    processes may prepare at once: each writes beside, the first to rename wins.

    Args:
        cache: instead of $XDG_CACHE_HOME/mup-tune or ~/.cache/mup-tune.
        stdlib: instead of this interpreter's library folder.
    """
    out, paths = default_folder(cache, stdlib)
    if not out.is_dir():
        print(f"preparing the corpus {DEFAULT_CORPUS} ({len(paths)} files) in {out}", file=sys.stderr)
        try:
            write_corpus(Found(texts=paths), out, load_tokenizer("bytes"), VAL_FRACTION, lambda _: None)
        except UserError:
            if not out.is_dir():  # else another process was faster, with the same content
                raise
    return Corpus.open(out)


def default_folder(cache: Path | None = None, stdlib: Path | None = None) -> tuple[Path, list[Path]]:
    """Where the corpus is, or would be prepared, and the files it is made from; prepares nothing."""
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    paths = _sources(root)
    if not paths:
        raise UserError(
            f"has no Python source to make {DEFAULT_CORPUS!r} from", file=root, fix="Prepare a corpus of your own"
        )
    return (cache or cache_dir()) / f"{DEFAULT_CORPUS}-{platform.python_version()}-{_fingerprint(root, paths)}", paths


def _sources(root: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - EXCLUDED)
        found += [Path(parent, name) for name in sorted(names) if name.endswith(".py")]
    return [path for path in found if path.is_file()]


def _fingerprint(root: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", file=path) from None
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:12]

"""From what the user names (files, folders, Megatron pairs) to documents, one at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mup_tune.data.indexed import is_index, pair_paths
from mup_tune.data.readers import Advance, read
from mup_tune.errors import UserError


class Document(NamedTuple):
    """A text and the file it is from."""

    path: Path
    text: str


@dataclass
class Found:
    """Files of documents in reading order, or prefixes of Megatron pairs; ``skipped`` counts by reason."""

    texts: list[Path] = field(default_factory=list)
    pairs: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in (*self.texts, *(pair_paths(prefix)[0] for prefix in self.pairs)))


def discover(inputs: Iterable[Path]) -> Found:
    """Everything the inputs name, each file once; a folder is walked in sorted order, with links.

    Raises:
        UserError: an input does not exist, nothing is found, or text and Megatron pairs are mixed.
    """
    found, walked = Found(), set[str]()
    for given in inputs:
        if given.is_dir():
            walked.add(os.path.realpath(given))
            for path in _walk(given, walked, found.skipped):
                _take(path, found)
        elif given.is_file() and given.suffix not in (".bin", ".idx"):
            _take(given, found)
        else:
            prefix = given.with_suffix("") if given.suffix in (".bin", ".idx") else given
            there = [path for path in pair_paths(prefix) if path.is_file()]
            if not there:
                raise UserError("no such file or folder, nor PREFIX of a Megatron pair", file=given)
            if len(there) == 1:
                missing = next(path for path in pair_paths(prefix) if path not in there)
                raise UserError("no such file", file=missing, fix="A Megatron pair is PREFIX.bin and PREFIX.idx")
            found.pairs.append(prefix)
    found.texts, found.pairs = _unique(found.texts), _unique(found.pairs)
    if found.texts and found.pairs:
        problem = f"text ({found.texts[0]}) and Megatron pairs ({found.pairs[0]}) cannot be mixed"
        raise UserError(problem, fix="Prepare them apart")
    if not found.texts and not found.pairs:
        raise UserError(f"no text, JSONL, Parquet or Megatron pair in {', '.join(str(given) for given in inputs)}")
    return found


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list({os.path.realpath(path): path for path in paths}.values())


def _take(path: Path, found: Found) -> None:
    if path.suffix in (".bin", ".idx"):
        prefix = path.with_suffix("")
        if all(each.is_file() for each in pair_paths(prefix)) and is_index(pair_paths(prefix)[1]):
            found.pairs.append(prefix)
            return
    found.texts.append(path)


def _walk(folder: Path, walked: set[str], skipped: Counter[str]) -> Iterator[Path]:
    """The files below a folder in sorted order; linked folders too, but none that was ``walked`` before."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot be read ({error.strerror})", file=error.filename)

    def new(name: str) -> bool:
        place = os.path.realpath(os.path.join(parent, name))
        known = place in walked
        walked.add(place)
        return not known

    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        skipped["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and new(name)]
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if path.is_file():
                yield path
            else:  # a dangling link, a socket
                skipped["not a file"] += 1


def documents(paths: Iterable[Path], skipped: Counter[str], advance: Advance) -> Iterator[Document]:
    """The non-empty documents of the files, in order; holds one of them at a time."""
    for path in paths:
        for text in read(path, skipped, advance):
            if text:
                yield Document(path, text)
            else:
                skipped["empty"] += 1

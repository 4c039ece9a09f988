"""Mixtures: several corpora read side by side, each with its share of the rows.

Shape suffixes: S steps, B rows of a batch, R = S · B, T tokens of a row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mup_tune.data.batches import Batch, Batches
from mup_tune.data.corpus import Corpus, Split
from mup_tune.data.draw import Draw
from mup_tune.data.stdlib import DEFAULT_CORPUS, open_corpus
from mup_tune.errors import UserError
from mup_tune.files import FrozenModel, content_hash

TOLERANCE = 1e-6  # of a sum of weights: thirds may be written with seven digits


class Data(FrozenModel):
    """One corpus of the plan.

    ``corpus``: a folder that ``mup-tune data prepare`` wrote, or ``python-stdlib``, the real text that every
    machine has. ``weight``: its share of a mixture's rows. A trial that would read its training tokens more
    than ``max_epochs`` times is refused.
    """

    corpus: str = DEFAULT_CORPUS
    weight: Annotated[float, Field(gt=0)] = 1.0
    max_epochs: Annotated[float, Field(gt=0)] = 1.0

    def absolute(self) -> Data:
        """The same corpus for a process with another working directory."""
        named = self.corpus == DEFAULT_CORPUS
        return self if named else self.model_copy(update={"corpus": os.path.abspath(self.corpus)})

    @property
    def name(self) -> str:
        """What people call the corpus: its folder's name."""
        return self.corpus if self.corpus == DEFAULT_CORPUS else Path(os.path.abspath(self.corpus)).name


def check_weights(data: Sequence[Data]) -> None:
    """Refuse weights that do not sum to 1, and corpora that could not be told apart.

    Raises:
        ValueError: names the sum, or the two corpora, and the fix.
    """
    weights = [each.weight for each in data]
    total = sum(weights)
    if abs(total - 1) > TOLERANCE:
        fix = ", ".join(f"{weight / total:.7g}" for weight in weights)
        raise ValueError(
            f"the weights {' + '.join(f'{each:g}' for each in weights)} sum to {total:.7g}, not to 1. "
            f"In the same proportion they are {fix}"
        )
    places = Counter(os.path.realpath(each.corpus) for each in data)
    for each in data:
        if places[os.path.realpath(each.corpus)] > 1:
            raise ValueError(f"{each.corpus!r} is given twice. Give it once, with the sum of its weights")
    named = Counter(each.name for each in data)
    for name, count in named.items():
        if count > 1:
            both = " and ".join(repr(each.corpus) for each in data if each.name == name)
            raise ValueError(f"{both} are both called {name!r}. Rename a folder: sources are told apart by its name")


@dataclass(frozen=True)
class Source:
    """A corpus of a mixture; ``field`` is where the plan names it."""

    name: str
    weight: float
    corpus: Corpus
    max_epochs: float = 1.0
    field: str = "data.corpus"


@dataclass(frozen=True)
class Mixture:
    """What a run trains on. Holds no open files, so it can be sent to another process."""

    sources: tuple[Source, ...]

    @classmethod
    def of(cls, corpus: Corpus) -> Mixture:
        """One corpus alone."""
        return cls((Source(corpus.path.name, 1.0, corpus),))

    @cached_property
    def hash(self) -> str:
        """Of the corpora and their weights, not of their names; a single corpus' own hash."""
        if len(self.sources) == 1:
            return self.sources[0].corpus.hash
        return content_hash([[source.corpus.hash, source.weight] for source in self.sources])

    @property
    def vocab_size(self) -> int:
        return self.sources[0].corpus.vocab_size

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """The weights as whole numbers in exactly the proportion in which they are written."""
        written = [Fraction(repr(source.weight)) for source in self.sources]
        whole = lcm(*(each.denominator for each in written))
        return tuple(int(each * whole) for each in written)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, divided by their sum."""
        return tuple(part / sum(self.parts) for part in self.parts)

    def stamps(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Of all files of all corpora (:meth:`Corpus.stamps`)."""
        return tuple(source.corpus.stamps() for source in self.sources)

    def batches(self, split: Split, seq_len: int, rows: int, seed: int) -> MixedBatches:
        return MixedBatches(self, split, seq_len, rows, seed)

    def record(self) -> dict[str, Any]:
        """Facts for ``run.json``: ``hash`` is the data's identity, the rest is for people."""
        sources = [
            {
                "name": source.name,
                "corpus": os.path.abspath(source.corpus.path),
                "weight": source.weight,
                "hash": source.corpus.hash,
                "train_tokens": source.corpus.tokens("train"),
                "val_tokens": source.corpus.tokens("val"),
                "vocab_size": source.corpus.vocab_size,
            }
            for source in self.sources
        ]
        return {"name": " + ".join(source.name for source in self.sources), "hash": self.hash, "sources": sources}


def open_mixture(data: Sequence[Data]) -> Mixture:
    """Open every corpus; those of one mixture must agree on what an id means.

    Raises:
        UserError: a corpus is missing or broken, holds what another one holds, or has another tokenizer.
    """
    fields = ["data.corpus"] if len(data) == 1 else [f"data[{index}].corpus" for index in range(len(data))]
    opened = [open_corpus(each.corpus) for each in data]
    known = [corpus.manifest.tokenizer for corpus in opened]
    for index, corpus in enumerate(opened):
        if corpus.hash in (before.hash for before in opened[:index]):
            twin = next(each.corpus for each, before in zip(data, opened, strict=True) if before.hash == corpus.hash)
            problem = f"{data[index].corpus!r} holds the same text as {twin!r}"
            raise UserError(problem, field=fields[index], fix="Give it once, with the sum of its weights")
        if known[index].identity != known[0].identity:
            problem = (
                f"{data[index].corpus!r} has {known[index].told}, but {data[0].corpus!r} has {known[0].told}: "
                "one id would mean two things"
            )
            raise UserError(problem, field=fields[index], fix="Prepare both with the same --tokenizer")
    return Mixture(
        tuple(
            Source(each.name, each.weight, corpus, each.max_epochs, field)
            for each, corpus, field in zip(data, opened, fields, strict=True)
        )
    )


class MixedBatches:
    """Batches over a mixture, a pure function of (mixture, split, sizes, seed, step).

    Rows come from the sources in proportion to their weights (:class:`Draw`), each source's in its own order
    (:class:`~mup_tune.data.batches.Batches`): with one source these are its batches, bit for bit.
    """

    def __init__(self, mixture: Mixture, split: Split, seq_len: int, rows: int, seed: int) -> None:
        self._batches = [Batches(source.corpus, split, seq_len, rows, seed) for source in mixture.sources]
        self._draw, self.rows, self.seq_len = Draw(mixture.parts), rows, seq_len

    def batch(self, step: int) -> Batch:
        return self.batches(step, step + 1)[0]

    def batches(self, start: int, stop: int) -> list[Batch]:
        """The batches of the steps [start, stop). All their rows are read in one call a source."""
        source_R, rank_R = self._draw.rows(start * self.rows, stop * self.rows)
        sizes = stop - start, self.rows, self.seq_len
        tokens_SBT, targets_SBT = np.empty(sizes, np.int64), np.empty(sizes, np.int64)
        documents_SBT = np.empty(sizes, np.int32)
        for index in np.unique(source_R):
            mine_R = source_R == index
            part, mine_SB = self._batches[index].at(rank_R[mine_R]), mine_R.reshape(sizes[:2])
            tokens_SBT[mine_SB] = part.tokens_BT
            targets_SBT[mine_SB] = part.targets_BT
            documents_SBT[mine_SB] = part.documents_BT
        return [Batch(*each) for each in zip(tokens_SBT, targets_SBT, documents_SBT, strict=True)]

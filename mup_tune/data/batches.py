"""Batches of packed documents, a pure function of (corpus, split, sizes, seed, step).

Shape suffixes: B rows of a batch, T = seq_len tokens of a row, W = T + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mup_tune.data.corpus import Corpus, Split
from mup_tune.data.permutation import permuted
from mup_tune.errors import UserError
from mup_tune.trial import IGNORED_TARGET


@dataclass(frozen=True)
class Batch:
    """``tokens_BT`` int64 ids; ``targets_BT`` int64, the next token, or ``IGNORED_TARGET`` where that starts
    another document; ``documents_BT`` int32, 0 at a row's first token and one more at each document start
    inside the row."""

    tokens_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    documents_BT: NDArray[np.int32]


class Batches:
    """The rows of a split in a pseudo-random order that ``seed`` fixes, another one each epoch.

    Row i covers tokens [i·T, i·T + T] of the split's documents laid end to end, so neighbouring rows share
    one token, as target of the one and input of the other; what is left at the end of the stream is not read.
    Batch ``step`` takes rows [step·B, step·B + B) of the endless order: a longer budget starts with the same
    batches.
    """

    def __init__(self, corpus: Corpus, split: Split, seq_len: int, rows: int, seed: int) -> None:
        self._stream = corpus.stream(split)
        self.seq_len, self.rows, self.seed = seq_len, rows, seed
        self.epoch_rows = (self._stream.tokens - 1) // seq_len
        if self.epoch_rows < 1:
            raise UserError(
                f"its {split} split has {self._stream.tokens} tokens, fewer than one row of {seq_len} and its target",
                file=corpus.path,
                fix="Use a shorter seq_len, more text, or a larger --val-fraction",
            )

    def batch(self, step: int) -> Batch:
        return self.at(np.arange(step * self.rows, (step + 1) * self.rows, dtype=np.int64))

    def at(self, order_B: NDArray[np.int64]) -> Batch:
        """The rows at these places of the endless order, whatever :attr:`rows` is."""
        row_B = self._row_numbers(order_B)
        ids_BW, documents_BW = self._stream.at(row_B[:, None] * self.seq_len + np.arange(self.seq_len + 1))
        starts_BT = documents_BW[:, 1:] != documents_BW[:, :-1]  # of the next token
        documents_BT = np.zeros(starts_BT.shape, np.int32)
        np.cumsum(starts_BT[:, :-1], axis=1, out=documents_BT[:, 1:])
        targets_BT = np.where(starts_BT, IGNORED_TARGET, ids_BW[:, 1:])
        return Batch(np.ascontiguousarray(ids_BW[:, :-1]), targets_BT, documents_BT)

    def _row_numbers(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, index = np.divmod(order, self.epoch_rows)
        rows = np.empty_like(order)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = permuted(index[inside], self.epoch_rows, f"{self.seed}/{epoch}")
        return rows

"""Validation on fixed rows: per source of a mixture, and on one text cut into rows of several lengths.

Shape suffixes: S sources, P members, B rows, R rows of a source, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import isnan, log, nan
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mup_tune.data.batches import Batch, Batches
from mup_tune.data.mixture import Mixture, Source
from mup_tune.data.shares import VALIDATION_SEED, row_counts
from mup_tune.trial import IGNORED_TARGET, Budget, length_loss, source_loss


class LanguageModel(Protocol):
    """What is validated: summed losses of every member on every row, in nats, [P, B]."""

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Validation:
    """Per member, float64 on the CPU: ``loss_P`` that decides, its standard error, and metrics by name."""

    loss_P: Tensor
    se_P: Tensor
    metrics: dict[str, Tensor]


def to_device(batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """tokens [B, T], targets [B, T] and documents [B, T], None where every row is one document."""

    def placed(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor

    documents = placed(batch.documents_BT) if batch.documents_BT.any() else None
    return placed(batch.tokens_BT), placed(batch.targets_BT), documents


@torch.no_grad()
def validate(model: LanguageModel, data: Mixture, budget: Budget, device: str) -> Validation:
    """Losses of all members in nats/token.

    The deciding loss is Σ weight · loss of the source, each the mean over the targets of that source's own
    rows; with several sources each is a metric, :func:`source_loss`. ``bits_per_byte`` is weighted likewise,
    where every source knows its bytes. :func:`length_loss` is on one text at every one of ``val_lengths``,
    and so on other rows than the loss.
    """
    rows = row_counts(data, budget)
    share_S1 = torch.tensor(data.shares, dtype=torch.float64)[:, None]
    found = [
        mean_and_se(*_on_rows(model, source, budget, count, device))
        for source, count in zip(data.sources, rows.each, strict=True)
    ]
    loss_SP, se_SP = (torch.stack(each) for each in zip(*found, strict=True))
    metrics: dict[str, Tensor] = {}
    if len(data.sources) > 1:
        metrics = {source_loss(source.name): loss_P for source, loss_P in zip(data.sources, loss_SP, strict=True)}
    bytes_S = [source.corpus.bytes_per_token("val") or nan for source in data.sources]
    if not any(isnan(each) for each in bytes_S):
        bits_SP = loss_SP / log(2) / torch.tensor(bytes_S, dtype=torch.float64)[:, None]
        metrics["bits_per_byte"] = (share_S1 * bits_SP).sum(0)
    for factor in budget.val_lengths:
        at_length = [
            _at_length(model, source, budget, factor, count, device)
            for source, count in zip(data.sources, rows.longest, strict=True)
        ]
        metrics[length_loss(factor)] = (share_S1 * torch.stack(at_length)).sum(0)
    # Sources are validated on rows of their own, so their errors are independent.
    return Validation((share_S1 * loss_SP).sum(0), reduce(torch.hypot, share_S1 * se_SP), metrics)


def mean_and_se(nll_PR: Tensor, count_R: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss per target [P] and its standard error [P]; the rows are the sample.

    A ratio estimator, for rows hold unequal numbers of targets; the SE of a single row is NaN.
    """
    rows = len(count_R)
    loss_P = nll_PR.sum(1) / count_R.sum()
    residual_PR = (nll_PR - loss_P[:, None] * count_R) / count_R.mean()
    return loss_P, residual_PR.std(dim=1) / rows**0.5 if rows > 1 else torch.full_like(loss_P, nan)


def _on_rows(model: LanguageModel, source: Source, budget: Budget, rows: int, device: str) -> tuple[Tensor, Tensor]:
    """Summed loss [P, R] and targets [R] of the first ``rows`` validation rows of a source."""
    at_once = min(rows, budget.rows)
    batches = Batches(source.corpus, "val", budget.seq_len, at_once, VALIDATION_SEED)
    found = [_sums(model, batches.batch(index), device) for index in range(-(-rows // at_once))]
    nll, counts = zip(*found, strict=True)
    return torch.cat(nll, dim=1)[:, :rows], torch.cat(counts)[:rows]


def _at_length(
    model: LanguageModel, source: Source, budget: Budget, factor: int, longest_rows: int, device: str
) -> Tensor:
    """Mean loss per target [P] on ``longest_rows`` rows of the largest length, cut into rows of this one."""
    length, longest = factor * budget.seq_len, max(budget.val_lengths) * budget.seq_len
    batches = Batches(source.corpus, "val", longest, 1, VALIDATION_SEED)
    # About as many tokens at once as in training, which also holds gradients.
    at_once = max(1, budget.batch_tokens // longest)
    nll_P: Tensor | None = None
    targets = 0.0
    for start in range(0, longest_rows, at_once):
        text = batches.at(np.arange(start, min(start + at_once, longest_rows), dtype=np.int64))
        for batch in chunks(cut(text, length), max(1, budget.batch_tokens // length)):
            nll_PB, count_B = _sums(model, batch, device)
            nll_P = nll_PB.sum(1) if nll_P is None else nll_P + nll_PB.sum(1)
            targets += float(count_B.sum())
    assert nll_P is not None
    return nll_P / targets


def cut(batch: Batch, length: int) -> Batch:
    """The same tokens and targets in rows of ``length``, documents numbered from 0 in each.

    The target of a row's last token stays the token that follows it, and a document that is cut goes on
    without what came before.
    """
    documents_BT = batch.documents_BT.reshape(-1, length)
    return Batch(
        batch.tokens_BT.reshape(-1, length),
        batch.targets_BT.reshape(-1, length),
        documents_BT - documents_BT[:, :1],
    )


def chunks(batch: Batch, rows: int) -> Iterator[Batch]:
    """``rows`` rows at a time."""
    for start in range(0, len(batch.tokens_BT), rows):
        part = slice(start, start + rows)
        yield Batch(batch.tokens_BT[part], batch.targets_BT[part], batch.documents_BT[part])


def _sums(model: LanguageModel, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
    """Summed loss [P, B] and number of targets [B] of every row, float64 on the CPU."""
    nll_PB = model.nll(*to_device(batch, device)).double().cpu()
    return nll_PB, torch.from_numpy((batch.targets_BT != IGNORED_TARGET).sum(1)).double()

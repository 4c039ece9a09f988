from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mup_tune.data.batches import Batch, Batches
from mup_tune.data.corpus import Corpus
from mup_tune.data.mixture import Mixture, Source
from mup_tune.data.prepare import prepare
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published, untuned
from mup_tune.shape import load_shape
from mup_tune.train.device import Device
from mup_tune.train.population import new_population
from mup_tune.train.trainer import train_pack
from mup_tune.train.validation import cut, validate
from mup_tune.trial import Budget, Pack, Trial

SHAPE = load_shape("cpu-32")
BUDGET = Budget(seq_len=16, batch_tokens=64, total_tokens=64 * 8, warmup_tokens=0, decay_tokens=128, val_tokens=16 * 40)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    found = []
    for words in (["alpha", "beta", "gamma"], ["0", "11", "222", "3333"]):
        folder = tmp_path_factory.mktemp(words[0])
        rng = np.random.default_rng(len(words))
        for index in range(40):
            (folder / f"{index:02d}.txt").write_text(" ".join(rng.choice(words, size=rng.integers(5, 60))))
        found.append(prepare([folder], folder / words[0], tokenizer="bytes", val_fraction=0.4))
    return found


@pytest.fixture(scope="module")
def population() -> Population:
    torch.set_num_threads(1)
    settings = [untuned(SHAPE), falcon_h1_published()]
    return new_population(SHAPE, [role_table(SHAPE, each) for each in settings], [0, 1], "cpu")


def mixed(corpora: Sequence[Corpus], *weights: float) -> Mixture:
    return Mixture(
        tuple(Source(corpus.path.name, weight, corpus) for corpus, weight in zip(corpora, weights, strict=False))
    )


def with_(**fields: object) -> Budget:
    return Budget.model_validate({**BUDGET.model_dump(), **fields})


def by_hand(population: Population, corpus: Corpus, rows: int, seq_len: int, first: int = 0) -> Tensor:
    """Mean loss per target [P] of rows of the validation order, one at a time."""
    batches, nll, targets = Batches(corpus, "val", seq_len, 1, 0), torch.zeros(2, dtype=torch.float64), 0
    for index in range(first, first + rows):
        batch = batches.batch(index)
        with torch.no_grad():
            nll += population.nll(*(torch.from_numpy(each) for each in vars(batch).values())).double()[:, 0]
        targets += int((batch.targets_BT >= 0).sum())
    return nll / targets


def test_the_deciding_loss_is_the_weighted_sum_of_the_sources_losses(
    corpora: list[Corpus], population: Population
) -> None:
    found = validate(population, mixed(corpora, 0.75, 0.25), BUDGET, "cpu")
    alone = [
        validate(population, Mixture.of(corpus), with_(val_tokens=16 * rows), "cpu")
        for corpus, rows in zip(corpora, (30, 10), strict=True)
    ]
    for corpus, own, rows in zip(corpora, alone, (30, 10), strict=True):
        torch.testing.assert_close(found.metrics[f"loss.{corpus.path.name}"], own.loss_P)
        torch.testing.assert_close(own.loss_P, by_hand(population, corpus, rows, 16), rtol=1e-6, atol=0)
    assert float((alone[0].loss_P - alone[1].loss_P).abs().min()) > 1e-4, "the sources differ"
    torch.testing.assert_close(found.loss_P, 0.75 * alone[0].loss_P + 0.25 * alone[1].loss_P)
    torch.testing.assert_close(found.se_P, torch.sqrt((0.75 * alone[0].se_P) ** 2 + (0.25 * alone[1].se_P) ** 2))
    bits = [
        own.loss_P / log(2) / (corpus.bytes_per_token("val") or 0) for own, corpus in zip(alone, corpora, strict=True)
    ]
    torch.testing.assert_close(found.metrics["bits_per_byte"], 0.75 * bits[0] + 0.25 * bits[1])
    assert not [name for name in alone[0].metrics if name.startswith("loss")]


def test_the_standard_error_is_what_other_rows_would_show(corpora: list[Corpus], population: Population) -> None:
    """Against the scatter of the same estimate on disjoint rows."""
    count = min(24, Batches(corpora[0], "val", 16, 4, 0).epoch_rows // 4)
    parts = [float(by_hand(population, corpora[0], 4, 16, first=4 * index)[0]) for index in range(count)]
    told = validate(population, Mixture.of(corpora[0]), with_(val_tokens=16 * 4 * count), "cpu").se_P[0]
    assert float(told) == pytest.approx(float(np.std(parts, ddof=1)) / sqrt(count), rel=0.5)


def test_without_bytes_there_are_no_bits_per_byte(corpora: list[Corpus], population: Population) -> None:
    info = corpora[1].manifest.val.model_copy(update={"bytes": None})
    blind = Corpus(corpora[1].path, corpora[1].manifest.model_copy(update={"val": info}))
    found = validate(population, mixed([corpora[0], blind], 0.5, 0.5), BUDGET, "cpu")
    assert "bits_per_byte" not in found.metrics


def test_every_length_reads_one_text(corpora: list[Corpus], population: Population) -> None:
    budget = with_(val_lengths=(1, 2, 8), val_tokens=16 * 8 * 5)
    found = validate(population, Mixture.of(corpora[0]), budget, "cpu")
    torch.testing.assert_close(found.metrics["loss_x8"], by_hand(population, corpora[0], 5, 128), rtol=1e-6, atol=0)
    long = Batches(corpora[0], "val", 128, 5, 0).batch(0)
    for factor in (1, 2):
        rows = cut(long, 16 * factor)
        tensors = [torch.from_numpy(each) for each in (rows.tokens_BT, rows.targets_BT, rows.documents_BT)]
        with torch.no_grad():
            nll = population.nll(*tensors).double().sum(1)
        expected = nll / float((rows.targets_BT >= 0).sum())
        torch.testing.assert_close(found.metrics[f"loss_x{factor}"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        found.loss_P, validate(population, Mixture.of(corpora[0]), with_(val_tokens=640), "cpu").loss_P
    )


def test_lengths_of_a_mixture_are_weighted_like_its_loss(corpora: list[Corpus], population: Population) -> None:
    budget = with_(val_lengths=(1, 4), val_tokens=16 * 4 * 4)
    found = validate(population, mixed(corpora, 0.5, 0.5), budget, "cpu")
    parts = [by_hand(population, corpus, 2, 64) for corpus in corpora]
    torch.testing.assert_close(found.metrics["loss_x4"], (parts[0] + parts[1]) / 2, rtol=1e-6, atol=0)


@given(
    starts=st.lists(st.lists(st.booleans(), min_size=16, max_size=16), min_size=1, max_size=4),
    length=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_cutting_keeps_tokens_and_targets_and_numbers_documents_anew(starts: list[list[bool]], length: int) -> None:
    documents = np.cumsum(np.array(starts), axis=1).astype(np.int32)
    documents -= documents[:, :1]
    size = documents.shape
    long = Batch(np.arange(documents.size).reshape(size), np.arange(documents.size).reshape(size) + 1, documents)
    rows = cut(long, length)
    assert rows.tokens_BT.ravel().tolist() == long.tokens_BT.ravel().tolist()
    assert rows.targets_BT.ravel().tolist() == long.targets_BT.ravel().tolist(), "no target is lost at a cut"
    assert (rows.documents_BT[:, 0] == 0).all()
    inside = np.diff(documents, axis=1)[:, [at for at in range(15) if (at + 1) % length]]
    assert np.diff(rows.documents_BT, axis=1).ravel().tolist() == inside.ravel().tolist()


def test_no_more_tokens_at_once_than_in_training(
    corpora: list[Corpus], population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    nll = Population.nll

    def watched(self: Population, tokens: Tensor, *rest: Tensor) -> Tensor:
        seen.append(tuple(tokens.shape))
        return nll(self, tokens, *rest)

    monkeypatch.setattr(Population, "nll", watched)
    validate(population, Mixture.of(corpora[0]), with_(val_lengths=(1, 2, 8), val_tokens=16 * 8 * 5), "cpu")
    assert {length for _, length in seen} == {16, 32, 128}
    assert all(rows * length <= BUDGET.batch_tokens or rows == 1 for rows, length in seen)


def test_a_pack_reports_its_members_sources_and_lengths(corpora: list[Corpus], tmp_path: Path) -> None:
    budget = with_(val_lengths=(1, 2), val_tokens=16 * 16)
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    members = (untuned(SHAPE), wild, falcon_h1_published())
    trials = tuple(Trial(shape=SHAPE, budget=budget, settings=each, seed=0) for each in members)
    data, device = mixed(corpora, 0.75, 0.25), Device("cpu", 1, {"float32": 1e10})
    first, again = (train_pack(Pack.of("s", trials), data, device, lambda *_: None) for _ in range(2))
    names = {"loss.alpha", "loss.0", "loss_x1", "loss_x2", "bits_per_byte"}
    for row, same in zip(first.rows, again.rows, strict=True):
        assert row.metrics["members"] == 3
        if row.ok:
            assert names <= row.metrics.keys()
            assert row.loss == pytest.approx(0.75 * row.metrics["loss.alpha"] + 0.25 * row.metrics["loss.0"], rel=1e-12)
            assert (row.loss, [row.metrics[name] for name in names]) == (
                same.loss,
                [same.metrics[name] for name in names],
            )
        else:
            assert not names & row.metrics.keys()
    assert [row.ok for row in first.rows] == [True, False, True]
    assert first.curves["loss"][:8] == again.curves["loss"][:8]

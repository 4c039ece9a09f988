from __future__ import annotations

from math import isnan, log

import numpy as np
import pytest
import torch

from mup_tune.data.corpus import Corpus
from mup_tune.data.mixture import Mixture
from mup_tune.settings import Settings, falcon_h1_published, untuned
from mup_tune.shape import load_shape
from mup_tune.train import fed
from mup_tune.train.device import Device
from mup_tune.train.population import new_population
from mup_tune.train.trainer import PackTraining, train_pack
from mup_tune.trial import Budget, Pack, PackResult, Trial

SHAPE = load_shape("cpu-32")
BUDGET = Budget(
    seq_len=32,
    batch_tokens=128,
    total_tokens=128 * 30,
    warmup_tokens=128 * 3,
    decay_tokens=128 * 9,
    val_tokens=32 * 10,
)
DEVICE = Device("cpu", 1, {"float32": 1e10})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta"]
    for index in range(40):
        text = " ".join(rng.choice(words, size=60))
        (folder / f"{index:02d}.txt").write_text(text)
    prepare([folder], folder / "out", tokenizer="bytes", val_fraction=0.2)
    return Corpus.open(folder / "out")


def train(corpus: Corpus, *members: tuple[Settings, int], budget: Budget = BUDGET) -> PackResult:
    torch.set_num_threads(1)
    trials = tuple(Trial(shape=SHAPE, budget=budget, settings=settings, seed=seed) for settings, seed in members)
    return train_pack(Pack.of("stage", trials), Mixture.of(corpus), DEVICE, lambda *_: None)


def test_it_learns_and_says_what_ran(corpus: Corpus) -> None:
    result = train(corpus, (untuned(SHAPE).scaled({"elr": 4.0}), 0))
    row = result.rows[0]
    assert row.ok
    assert row.loss < 3.5 < log(264)
    assert 0 < row.loss_se < 0.5
    assert row.metrics["bits_per_byte"] == pytest.approx(
        row.loss / log(2) * corpus.tokens("val") / (corpus.tokens("val") - corpus.documents("val"))
    )
    assert row.metrics["eta_lambda_T"] == pytest.approx(row.trial.settings.elr**2 * 30)
    assert result.record["backend"] == "torch"
    assert result.record["steps"] == 30
    assert {len(column) for column in result.curves.values()} == {30}


def test_same_pack_same_machine_same_threads_is_bitwise_the_same(corpus: Corpus) -> None:
    members = [(untuned(SHAPE), 0), (falcon_h1_published(), 1)]
    first, second = train(corpus, *members), train(corpus, *members)
    assert [row.loss for row in first.rows] == [row.loss for row in second.rows]
    assert first.curves == second.curves


def test_fused_members_train_as_they_would_alone(corpus: Corpus) -> None:
    members = [
        (untuned(SHAPE), 0),
        (falcon_h1_published(), 0),
        (untuned(SHAPE).scaled({"key": 2, "rope_base": 1e-6}), 1),
    ]
    fused = train(corpus, *members)
    for row, member in zip(fused.rows, members, strict=True):
        assert row.loss == pytest.approx(train(corpus, member).rows[0].loss, rel=2e-5)


def test_a_diverging_member_is_masked_with_its_reason_and_the_others_do_not_change(corpus: Corpus) -> None:
    good, other = untuned(SHAPE), falcon_h1_published()
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    with_wild = train(corpus, (good, 0), (wild, 0), (other, 1))
    without = train(corpus, (good, 0), (other, 0), (other, 1))
    assert [with_wild.rows[i].loss for i in (0, 2)] == [without.rows[i].loss for i in (0, 2)]
    row = with_wild.rows[1]
    assert (row.status, isnan(row.loss)) == ("diverged", True)
    assert "at step 1 of 30" in row.reason


def test_training_stops_early_when_no_member_is_left(corpus: Corpus) -> None:
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    result = train(corpus, (wild, 0), (wild, 1))
    assert result.record["steps"] == 20
    assert not any(row.ok for row in result.rows)


class Later:
    """A GPU's event: what it marks is done when it is asked a second time."""

    def __init__(self, said: list[str]) -> None:
        self._said, self._asked = said, 0

    def record(self) -> None:
        self._said.append("queued")

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 1:
            self._said.append("done")
        return self._asked > 1


def trained(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, settings: Settings, *, ahead: bool
) -> tuple[PackTraining, list[str]]:
    """A pack in stretches of 4 steps, and what happened; ``ahead``: queued as on a GPU."""
    monkeypatch.setattr(fed, "FED_STEPS", 4)
    run = PackTraining((Trial(shape=SHAPE, budget=BUDGET, settings=settings, seed=0),), Mixture.of(corpus), DEVICE)
    said: list[str] = []
    if ahead:
        monkeypatch.setattr(run, "_on_gpu", True)
        monkeypatch.setattr(torch.cuda, "Event", lambda: Later(said))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("waited"))
    run.train(lambda done, _: said.append(f"{round(30 * done)} steps"))
    return run, said


@pytest.mark.parametrize(("tokens", "steps"), [(16, 20), (2**18, 20), (2**20, 5), (2**26, 1)])
def test_no_more_steps_are_fed_than_fit(tokens: int, steps: int) -> None:
    assert fed.fed_steps(tokens // 16, 16) == steps
    assert steps == 1 or steps * tokens * 12 <= fed.FED_BYTES


def test_a_gpu_has_steps_queued_while_it_is_waited_for(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    (there, said), (here, reports) = (
        trained(corpus, monkeypatch, untuned(SHAPE), ahead=each) for each in (True, False)
    )
    assert reports == [f"{stop} steps" for stop in (4, 8, 12, 16, 20, 24, 28, 30)]
    middle = [each for stop in range(4, 25, 4) for each in ("queued", "done", f"{stop} steps")]
    assert said == ["queued", *middle, "queued", "done", "28 steps", "done", "30 steps", "waited"]
    assert there.curves() == here.curves()


def test_steps_that_were_queued_behind_the_last_member_do_not_count(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    (there, said), (here, _) = (trained(corpus, monkeypatch, wild, ahead=each) for each in (True, False))
    assert said == ["queued", "queued", "done", "4 steps", "waited"]
    assert there.steps_done == here.steps_done == 4
    assert repr(there.curves()) == repr(here.curves())  # NaN is not itself


def test_members_with_one_seed_share_their_draws_scaled_by_their_init() -> None:
    from mup_tune.roles import role_table

    settings = [untuned(SHAPE), falcon_h1_published(), untuned(SHAPE)]
    tables = [role_table(SHAPE, each) for each in settings]
    population = new_population(SHAPE, tables, [5, 5, 6], "cpu")
    lm_head = dict(population.named_parameters())["lm_head_weight"]
    stds = [table.of("lm_head.weight")[0].init_std or 0.0 for table in tables]
    torch.testing.assert_close(lm_head[0] / stds[0], lm_head[1] / stds[1])
    assert not torch.allclose(lm_head[0], lm_head[2])
    assert all(bool(parameter.isfinite().all()) for parameter in population.parameters())


def test_validation_reads_the_same_rows_whatever_the_data_order(corpus: Corpus) -> None:
    still = untuned(SHAPE).scaled({"elr": 1e-9})
    a = train(corpus, (still, 0)).rows[0]
    b = train(corpus, (still, 0), budget=BUDGET.model_copy(update={"data_seed": 7})).rows[0]
    assert a.loss == pytest.approx(b.loss, abs=1e-5)

"""The example trains an export as our own trainer trains the Shape, and resumes where it left off."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers

from mup_tune.data.mixture import Data, Mixture, open_mixture
from mup_tune.data.prepare import prepare
from mup_tune.errors import UserError
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape
from mup_tune.train.device import Device
from mup_tune.train.trainer import PackTraining
from mup_tune.transfer.hf import export_hf
from mup_tune.transfer.resolve import Tuned
from mup_tune.trial import Budget, Trial

SCRIPT = Path(__file__).parents[2] / "examples" / "train_hf.py"
SHAPE = Shape(
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ssm=16,
    ssm_head_dim=4,
    d_state=8,
    n_groups=2,
    d_ff=32,
    vocab_size=260,
    gated_norm=True,
)
SEQ_LEN, ROWS, STEPS = 32, 4, 20
BUDGET = Budget(
    seq_len=SEQ_LEN,
    batch_tokens=ROWS * SEQ_LEN,
    total_tokens=STEPS * ROWS * SEQ_LEN,
    warmup_tokens=5 * ROWS * SEQ_LEN,
    decay_tokens=5 * ROWS * SEQ_LEN,
    power_onset_tokens=8 * ROWS * SEQ_LEN,
    val_tokens=SEQ_LEN,
    data_seed=3,
    clip_norm=0.5,
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_hf", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings() -> Settings:
    start = untuned(SHAPE)
    values = {name: 0.9 + 0.01 * index for index, name in enumerate(start.multipliers)}
    return start.with_values({**values, "elr": 2 * start.elr})


@pytest.fixture(scope="module")
def export(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "tuned"
    export_hf(Tuned(settings, "a test", BUDGET, SHAPE), SHAPE, out)
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of exactly one row each, the EOD included."""
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    for index in range(60):
        letters = generator.choice(list("abcde "), size=SEQ_LEN - 1)
        (folder / f"{index:02d}.txt").write_text("".join(letters))
    prepare([folder], folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    return folder / "corpus"


def losses(script: ModuleType, export: Path, corpus: Path, *more: str, steps: int = STEPS) -> list[float]:
    tokens = steps * BUDGET.batch_tokens
    sizes = ("--seq-len", SEQ_LEN, "--rows", ROWS, "--tokens", tokens, "--data-seed", BUDGET.data_seed)
    args = script.arguments([str(export), "--corpus", str(corpus), *map(str, sizes), *more])
    return [loss for _, loss in script.train(args)]


def own_losses(settings: Settings, data: Mixture, seed: int) -> list[float]:
    trial = Trial(shape=SHAPE, budget=BUDGET, settings=settings, seed=seed)
    run = PackTraining((trial,), data, Device("cpu", 1, {"float32": 1e10}))
    run.train(lambda *_: None)
    return run.loss_SP[:, 0].tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the example computes in bfloat16 there")
def test_its_losses_are_those_of_our_own_trainer(
    script: ModuleType, export: Path, corpus: Path, settings: Settings
) -> None:
    data = open_mixture([Data(corpus=str(corpus))])
    assert not data.batches("train", SEQ_LEN, ROWS, BUDGET.data_seed).batch(0).documents_BT.any()
    ours = own_losses(settings, data, seed=5)
    theirs = losses(script, export, corpus, "--seed", "5", "--rows-at-once", "3")
    assert len(ours) == len(theirs) == STEPS
    assert ours[-1] < ours[0] - 1
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)


def test_it_resumes_where_it_left_off_and_leaves_a_model(
    script: ModuleType, export: Path, corpus: Path, tmp_path: Path
) -> None:
    kept = ("--out", str(tmp_path), "--save-every", "2")
    straight = losses(script, export, corpus, steps=6)
    first = losses(script, export, corpus, *kept, "--stop-at", "3", steps=6)
    assert not (tmp_path / "model").exists()
    assert first + losses(script, export, corpus, *kept, steps=6) == straight
    assert losses(script, export, corpus, *kept, steps=6) == []
    with pytest.raises(UserError, match=r"state\.pt: was trained with .*Name another --out"):
        losses(script, export, corpus, *kept, steps=7)
    model = transformers.FalconH1ForCausalLM.from_pretrained(tmp_path / "model")
    state = torch.load(tmp_path / "state.pt")
    assert state["step"] == 6
    assert all(torch.equal(parameter, state["model"][name]) for name, parameter in model.named_parameters())


def test_a_corpus_with_more_tokens_than_the_model_is_refused(
    script: ModuleType, settings: Settings, corpus: Path, tmp_path: Path
) -> None:
    small = SHAPE.model_copy(update={"vocab_size": 100})
    export_hf(Tuned(settings, "a test", BUDGET, SHAPE), small, tmp_path / "small")
    with pytest.raises(UserError, match="the model 100"):
        losses(script, tmp_path / "small", corpus)

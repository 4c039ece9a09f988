"""The example trains an export as our own trainer trains the Shape, and resumes where it left off."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from mup_tune import load_transfer
from mup_tune.cli import app
from mup_tune.data.mixture import Data, Mixture, open_mixture
from mup_tune.data.prepare import prepare
from mup_tune.errors import UserError
from mup_tune.files import dump_yaml
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape
from mup_tune.train.device import Device
from mup_tune.train.trainer import PackTraining
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
BATCH, DATA_SEED = ROWS * SEQ_LEN, 3


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


def exported(settings: Settings, shape: Shape, folder: Path) -> Path:
    """What the command line writes, with a warmup, a power schedule and a clip that act in a few steps."""
    (folder / "settings.yaml").write_text(settings.to_yaml())
    (folder / "shape.yaml").write_text(dump_yaml(shape.model_dump(mode="json")))
    out = folder / "tuned"
    arguments = ("transfer", folder / "settings.yaml", "--target", folder / "shape.yaml", "--out", out)
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    text = (out / "optimizer.yaml").read_text()
    for field, value in {"warmup_fraction": 0.25, "power_onset_fraction": 0.4, "clip_norm": 0.5}.items():
        text, count = re.subn(rf"{field}: .*", f"{field}: {value}", text)
        assert count == 1
    (out / "optimizer.yaml").write_text(text)
    return out


@pytest.fixture(scope="module")
def export(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(settings, SHAPE, tmp_path_factory.mktemp("export"))


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
    sizes = ("--seq-len", SEQ_LEN, "--rows", ROWS, "--tokens", steps * BATCH, "--data-seed", DATA_SEED)
    args = script.arguments([str(export), "--corpus", str(corpus), *map(str, sizes), *more])
    return [loss for _, loss in script.train(args)]


def own_losses(export: Path, settings: Settings, data: Mixture, seed: int) -> list[float]:
    transfer = load_transfer(export, batch_tokens=BATCH, total_tokens=STEPS * BATCH)
    assert transfer.schedule is not None
    budget = Budget(
        **transfer.schedule.model_dump(),
        seq_len=SEQ_LEN,
        val_tokens=SEQ_LEN,
        data_seed=DATA_SEED,
        clip_norm=transfer.clip_norm,
    )
    trial = Trial(shape=SHAPE, budget=budget, settings=settings, seed=seed)
    run = PackTraining((trial,), data, Device("cpu", 1, {"float32": 1e10}))
    run.train(lambda *_: None)
    return run.loss_SP[:, 0].tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the example computes in bfloat16 there")
def test_its_losses_are_those_of_our_own_trainer(
    script: ModuleType, export: Path, corpus: Path, settings: Settings
) -> None:
    data = open_mixture([Data(corpus=str(corpus))])
    assert not data.batches("train", SEQ_LEN, ROWS, DATA_SEED).batch(0).documents_BT.any()
    ours = own_losses(export, settings, data, seed=5)
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
    small = exported(settings, SHAPE.model_copy(update={"vocab_size": 100}), tmp_path)
    with pytest.raises(UserError, match="the model 100"):
        losses(script, small, corpus)

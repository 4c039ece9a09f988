"""The population on a GPU: the same numbers as on the CPU, and training that masks and learns there too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from mup_tune.data.corpus import Corpus
from mup_tune.data.mixture import Mixture
from mup_tune.data.prepare import prepare
from mup_tune.engine.runner import calibrate
from mup_tune.engine.work import Calibrate
from mup_tune.model import backends, hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import role_table
from mup_tune.settings import Settings, falcon_h1_published, untuned
from mup_tune.shape import load_shape
from mup_tune.train import fed, fused_step
from mup_tune.train.device import Device
from mup_tune.train.population import new_population
from mup_tune.train.step import Steps
from mup_tune.train.trainer import train_pack
from mup_tune.trial import Budget, Pack, Trial

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
SHAPE = load_shape("cpu-64")


def both() -> tuple[Population, Population]:
    settings = [untuned(SHAPE), falcon_h1_published().scaled({"rope_base": 1e-7, "key": 8.0})]
    tables = [role_table(SHAPE, each) for each in settings]
    on_cpu = new_population(SHAPE, tables, [0, 1], "cpu")
    on_gpu = Population(SHAPE, 2, device="cuda")
    on_gpu.set_roles(tables)
    for member in range(2):
        hf.load_state_dict_(on_gpu, member, hf.state_dict(on_cpu, member))
    return on_cpu, on_gpu


@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_gradients_are_the_cpus(packed: bool) -> None:
    on_cpu, on_gpu = both()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 257, (4, 96), generator=generator)
    targets = tokens.roll(-1, 1)
    documents = (torch.arange(96) // 17).expand(4, -1).contiguous().int() if packed else None
    results = []
    for population in (on_cpu, on_gpu):
        device = population.lm_head_weight.device
        placed = [each if each is None else each.to(device) for each in (tokens, targets, documents)]
        nll = population.nll(*placed)
        nll.sum(1).sum().backward()
        results.append(nll.detach().cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)
    for member in range(2):
        theirs = hf.gradients(on_cpu, member)
        for name, gradient in hf.gradients(on_gpu, member).items():
            scale = float(theirs[name].norm()) + 1e-12
            assert float((gradient.cpu() - theirs[name]).norm()) / scale < 1e-4, name


@pytest.fixture
def data(tmp_path: Path) -> Mixture:
    for index in range(40):
        (tmp_path / f"{index}.txt").write_text(f"{index} is followed by {index + 1}. " * 30)
    prepare([tmp_path], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    return Mixture.of(Corpus.open(tmp_path / "corpus"))


BUDGET = Budget(seq_len=32, batch_tokens=128, total_tokens=3840, warmup_tokens=384, decay_tokens=1280, val_tokens=320)
DEVICE = Device("cuda", 1, {"float32": 1e14, "bfloat16": 1e15})


def pack(members: list[Settings], dtype: str) -> Pack:
    budget = BUDGET.model_copy(update={"dtype": dtype})
    return Pack.of("s", tuple(Trial(shape=SHAPE, budget=budget, settings=each, seed=0) for each in members))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pack_trains_and_masks_a_diverged_member(data: Mixture, dtype: str) -> None:
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    members = [untuned(SHAPE).scaled({"elr": 4.0}), wild, falcon_h1_published()]
    result = train_pack(pack(members, dtype), data, DEVICE, lambda *_: None)
    assert result.record["backend"] == "triton"
    assert [row.status for row in result.rows] == ["ok", "diverged", "ok"]
    assert result.rows[0].loss < 3.0


def test_losses_are_the_same_however_many_steps_are_queued(data: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads what the device kept while the device goes on, and refills what it has read."""
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    members = [untuned(SHAPE).scaled({"elr": 4.0}), wild, falcon_h1_published()]
    found = []
    for at_once in (20, 7, 1):
        monkeypatch.setattr(fed, "FED_STEPS", at_once)
        reports: list[float] = []
        found.append(train_pack(pack(members, "float32"), data, DEVICE, lambda done, _, to=reports: to.append(done)))
        assert reports == [min(30, stop) / 30 for stop in range(at_once, 30 + at_once, at_once)]
    for other in found[1:]:
        assert other.rows[1].reason == found[0].rows[1].reason
        for name, rtol in (("loss", 2e-3), ("grad_norm", 2e-2)):
            wanted, told = (torch.tensor(each.curves[name]) for each in (found[0], other))
            for member in (slice(0, 30), slice(60, 90)):
                torch.testing.assert_close(told[member], wanted[member], rtol=rtol, atol=0)


def test_kernels_train_as_pytorch_does(data: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [untuned(SHAPE).scaled({"elr": 4.0}), falcon_h1_published()]
    ours = train_pack(pack(members, "float32"), data, DEVICE, lambda *_: None)
    monkeypatch.setattr(backends, "choose", lambda device: "torch")
    theirs = train_pack(pack(members, "float32"), data, DEVICE, lambda *_: None)
    assert theirs.record["backend"] == "torch"
    for row, expected in zip(ours.rows, theirs.rows, strict=True):
        assert row.loss == pytest.approx(expected.loss, rel=2e-3)


def test_other_values_compile_and_record_nothing(data: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings, compiled = [], []
    record = fused_step._recorded
    monkeypatch.setattr(fused_step, "_recorded", lambda run: recordings.append(run) or record(run))
    steps = Steps("cuda")
    first = [untuned(SHAPE), untuned(SHAPE).scaled({"elr": 2.0})]
    train_pack(pack(first, "bfloat16"), data, DEVICE, lambda *_: None, steps)
    assert len(recordings) == 1
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **info: compiled.append(info["repr"]))
    changes = {"elr": 0.7, "ewd": 1.3, "embedding": 1.1, "ssm_dt": 0.9, "rope_base": 1e-3, "qkv.elr": 1.2, "D.lr": 0.8}
    other = [untuned(SHAPE).scaled({name: value}) for name, value in changes.items()][:2]
    for members in (other, [untuned(SHAPE).scaled(changes), falcon_h1_published()]):
        again = train_pack(pack(members, "bfloat16"), data, DEVICE, lambda *_: None, steps)
        assert len(recordings) == 1
        assert compiled == []
    fresh = train_pack(again.pack, data, DEVICE, lambda *_: None)
    assert len(recordings) == 2
    for row, expected in zip(again.rows, fresh.rows, strict=True):
        assert row.loss == pytest.approx(expected.loss, rel=2e-3)


def test_a_calibration_tells_the_memory_of_each_size(data: Mixture) -> None:
    trial = pack([untuned(SHAPE)], "bfloat16").trials[0]
    found = calibrate(Calibrate(trial, (1, 8, 64)), data, DEVICE)
    assert found.gib.keys() == found.tokens_per_s.keys() >= {1, 8}
    assert found.gib[8] > found.gib[1] > 0
    assert not found.full


def test_a_calibration_ends_where_memory_does(data: Mixture) -> None:
    large = load_shape("gpu-256")
    trial = pack([untuned(SHAPE)], "bfloat16").trials[0].model_copy(update={"shape": large, "settings": untuned(large)})
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free) / total + 4 * 2**30 / total))
    try:
        found = calibrate(Calibrate(trial, (1, 2, 512)), data, DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.full
    assert found.tokens_per_s.keys() == {1, 2}


COLD = """
import sys, torch
from mup_tune.data.batches import Batch
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.train.fused_step import FusedStep
shape = load_shape("cpu-32")
step = FusedStep(shape, 2, 2, 64, dtype=torch.float32)
step.load([role_table(shape, untuned(shape))] * 2, [0, 1])
tokens = torch.randint(0, shape.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0)).numpy()
step.feed([Batch(tokens, tokens, 0 * tokens.astype("int32"))], [(1.0, 1.0)])
step.step()
print(*step.loss_P.tolist())
"""


def test_kernels_that_were_compiled_ahead_compute_the_same_and_stay_in_the_cache(tmp_path: Path) -> None:
    environ = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    said, kept = [], []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", COLD], env=environ, capture_output=True, text=True, check=True)
        said.append([float(each) for each in done.stdout.split()])
        kept.append(set(tmp_path.rglob("*.cubin")))
        assert "cuBLAS" not in done.stderr
    assert said[0] == pytest.approx(said[1], rel=1e-6)
    assert kept[0] == kept[1] != set()

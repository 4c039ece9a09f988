"""The population on a GPU: the same numbers as on the CPU, and training that masks and learns there too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published, untuned
from mup_tune.shape import load_shape
from mup_tune.train.trainer import Device, new_population, train_pack
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


def test_a_pack_trains_and_masks_a_diverged_member(tmp_path: Path) -> None:
    from mup_tune.data.corpus import Corpus
    from mup_tune.data.mixture import Mixture
    from mup_tune.data.prepare import prepare

    for index in range(40):
        (tmp_path / f"{index}.txt").write_text(f"{index} is followed by {index + 1}. " * 30)
    prepare([tmp_path], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    budget = Budget(
        seq_len=32, batch_tokens=128, total_tokens=3840, warmup_tokens=384, decay_tokens=1280, val_tokens=320
    )
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    members = [untuned(SHAPE).scaled({"elr": 4.0}), wild, falcon_h1_published()]
    trials = tuple(Trial(shape=SHAPE, budget=budget, settings=each, seed=0) for each in members)
    data = Mixture.of(Corpus.open(tmp_path / "corpus"))
    result = train_pack(Pack.of("s", trials), data, Device("cuda", 1, 1e14), lambda *_: None)
    assert [row.status for row in result.rows] == ["ok", "diverged", "ok"]
    assert result.rows[0].loss < 3.0

"""A member's checkpoint is a model that ``transformers`` loads as its own, and one of its own is a member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_models import TINY, random_population, random_table, random_tokens, variant
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model import hf
from mup_tune.model.checkpoint import load_checkpoint_, save_checkpoint
from mup_tune.model.falcon_h1 import Population
from mup_tune.shape import Shape

SEED = 4
SHAPES = [TINY, variant(gated_norm=True, n_groups=1)]
TOKENS = random_tokens(TINY, 2, 13)[0]


def saved(shape: Shape, folder: Path) -> tuple[Population, Any]:
    """A population whose member 1 lies in ``folder``, and what ``transformers`` loads from there."""
    population = random_population(shape, 2, seed=SEED)
    save_checkpoint(population, 1, random_table(shape, SEED + 1), folder)
    return population, transformers.FalconH1ForCausalLM.from_pretrained(folder)


def logits(model: Any) -> Tensor:
    return model(TOKENS, use_cache=False).logits


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "gated"])
def test_transformers_loads_the_member_and_gives_its_logits(shape: Shape, tmp_path: Path) -> None:
    population, model = saved(shape, tmp_path / "new" / "folder")
    ours = hf.state_dict(population, 1)
    assert all(torch.equal(parameter, ours[name]) for name, parameter in model.named_parameters())
    torch.testing.assert_close(population.logits(TOKENS)[1], logits(model), rtol=1e-4, atol=1e-4)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "gated"])
@pytest.mark.parametrize("largest_file", ["1GB", "10KB"])
def test_what_transformers_saves_becomes_a_member(shape: Shape, largest_file: str, tmp_path: Path) -> None:
    population, model = saved(shape, tmp_path / "ours")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=largest_file)
    assert (tmp_path / "theirs" / "model.safetensors").is_file() == (largest_file == "1GB")
    before = hf.state_dict(population, 0)["lm_head.weight"].clone()
    load_checkpoint_(population, 1, random_table(shape, SEED + 1), tmp_path / "theirs")
    torch.testing.assert_close(population.logits(TOKENS)[1], logits(model), rtol=1e-4, atol=1e-4)
    assert torch.equal(hf.state_dict(population, 0)["lm_head.weight"], before)


def test_half_precision_is_converted(tmp_path: Path) -> None:
    population, model = saved(TINY, tmp_path / "ours")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    load_checkpoint_(population, 1, random_table(TINY, SEED + 1), tmp_path / "theirs")
    weight = hf.state_dict(population, 1)["lm_head.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.lm_head.weight.float())


def test_another_function_is_refused_and_nothing_is_copied(tmp_path: Path) -> None:
    population, _ = saved(TINY, tmp_path)
    before = hf.state_dict(population, 0)["lm_head.weight"].clone()
    with pytest.raises(UserError, match=r"config\.json: .*their own multipliers"):
        load_checkpoint_(population, 0, random_table(TINY, SEED), tmp_path)
    table, config = random_table(TINY, SEED + 1), json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mamba_norm_before_gate": True}))
    with pytest.raises(UserError, match="mamba_norm_before_gate"):
        load_checkpoint_(population, 0, table, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_checkpoint_(population, 0, table, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_checkpoint_(population, 0, table, tmp_path)
    assert torch.equal(hf.state_dict(population, 0)["lm_head.weight"], before)


def test_a_table_of_another_member_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the member has"):
        save_checkpoint(random_population(TINY, 2, seed=SEED), 1, random_table(TINY, SEED), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(random_population(TINY, 1, seed=SEED), 0, random_table(TINY, SEED), tmp_path / "file")

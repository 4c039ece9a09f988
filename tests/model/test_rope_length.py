"""Beyond the training length: four times the positions, two RoPE bases side by side, as ``transformers``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_models import random_table, random_tokens, randomise_, variant

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable

TRAINED = 24  # tokens in a row
BASES = (1e4, 1e11)
SHAPE = variant(n_kv_heads=1)


def with_base(table: RoleTable, base: float) -> RoleTable:
    return dataclasses.replace(table, settings=table.settings.with_values({"rope_base": base}))


@torch.no_grad()
def test_logits_at_four_times_the_training_length_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    tables = [with_base(random_table(SHAPE, seed=5), base) for base in BASES]
    population = Population(SHAPE, len(BASES), ssd_chunk=8)
    population.set_roles(tables)
    randomise_(population, seed=5)
    for parameter in population.parameters():  # one model under two bases
        parameter[1] = parameter[0]
    short, _ = random_tokens(SHAPE, 2, TRAINED)
    long, _ = random_tokens(SHAPE, 2, 4 * TRAINED, seed=1)
    population.logits(short)  # what a model keeps of the shorter length must not show
    logits = population.logits(long)
    for member, base in enumerate(BASES):
        fields = {**hf.hf_config_kwargs(tables[member]), "max_position_embeddings": TRAINED, "mamba_chunk_size": 11}
        config = transformers.FalconH1Config(**fields)
        model = transformers.FalconH1ForCausalLM(config).eval()
        assert model.config.rope_parameters["rope_theta"] == base
        model.load_state_dict(hf.state_dict(population, member), strict=True)
        expected = model(long, use_cache=False).logits
        assert (logits[member] - expected).abs().max() < 1e-4 * expected.abs().max()
    # The base acts, and most where the text is longest: the test could not pass with one base for both.
    apart = (logits[0] - logits[1]).abs().amax((0, 2))
    assert apart[-1] > 1e-2 * logits.abs().max()
    assert apart[0] == 0

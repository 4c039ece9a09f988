"""The population's logits and every gradient are those of ``FalconH1ForCausalLM`` on the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_models import random_population, random_table, random_tokens, variant

from mup_tune.model import hf
from mup_tune.shape import Shape

CASES = {
    "plain": {},
    "one_group": {"n_groups": 1},
    "gated_norm": {"gated_norm": True},
    "gated_norm_one_group": {"gated_norm": True, "n_groups": 1},
    "multi_head": {"n_kv_heads": 4},
    "multi_query": {"n_kv_heads": 1, "n_groups": 4},
}


def reference_model(shape: Shape, seed: int) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    # Chunks of another size than ours, so that a slip at chunk borders cannot cancel.
    config = transformers.FalconH1Config(**hf.hf_config_kwargs(random_table(shape, seed)), mamba_chunk_size=11)
    return transformers.FalconH1ForCausalLM(config)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [24, 29], ids=["whole_chunks", "ragged"])
def test_logits_and_gradients_equal_transformers(case: str, length: int) -> None:
    shape = variant(**CASES[case])
    population = random_population(shape, 2, seed=3)
    tokens, targets = random_tokens(shape, 2, length)
    population.nll(tokens, targets).sum().backward()
    logits = population.logits(tokens)
    for member in range(2):
        model = reference_model(shape, seed=3 + member)
        model.load_state_dict(hf.state_dict(population, member), strict=True)
        expected = model(tokens, use_cache=False).logits
        assert (logits[member] - expected).abs().max() < 1e-4 * expected.abs().max()
        F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        gradients = hf.gradients(population, member)
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert parameter.grad.norm() > 0, name
            assert (gradients[name] - parameter.grad).norm() < 1e-4 * parameter.grad.norm(), name

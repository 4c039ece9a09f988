"""CompleteP (arXiv 2505.01618, α = 1) in the model: eps follows gradients, and ``transformers`` agrees."""

from __future__ import annotations

from math import log2

import pytest
import torch
from random_models import TINY, random_tokens, randomise_, variant

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.train.population import new_population


def completep(base: Shape) -> Settings:
    return untuned(base).model_copy(update={"depth_rule": "completep"})


def gradient_rms(shape: Shape, table: RoleTable) -> dict[str, float]:
    """RMS gradient over seeds, and over layers, of every parameter template at init."""
    population = new_population(shape, [table] * 2, [0, 1], "cpu")
    tokens, targets = random_tokens(shape, 4, 48)
    (population.nll(tokens, targets).sum() / 192).backward()
    squares: dict[str, list[float]] = {}
    for name, parameter in population.named_parameters():
        assert parameter.grad is not None
        key = name.split(".", 2)[-1] if name.startswith("layers.") else name
        squares.setdefault(key, []).append(parameter.grad.square().mean().item())
    return {name: (sum(values) / len(values)) ** 0.5 for name, values in squares.items()}


def test_eps_moves_with_the_gradients_it_is_compared_with() -> None:
    base = load_shape("cpu-32").model_copy(update={"n_layers": 4})
    deep = base.model_copy(update={"n_layers": 32})
    tables = [role_table(shape, completep(base)) for shape in (base, deep)]
    shallow_rms, deep_rms = gradient_rms(base, tables[0]), gradient_rms(deep, tables[1])
    for ours in shallow_rms:
        name = ours if ours in ("embedding_weight", "final_norm", "lm_head_weight") else f"layers.0.{ours}"
        eps = [hf.owning_role(table, name).eps for table in tables]
        measured, moved = log2(deep_rms[ours] / shallow_rms[ours]), log2(eps[1] / eps[0])
        assert moved == (0 if name == ours else -3)
        assert abs(measured - moved) < 1, name  # over three octaves of depth
    free = role_table(deep, untuned(base))
    without = gradient_rms(deep, free)
    assert all(log2(without[ours] / shallow_rms[ours]) > -1.5 for ours in without)  # no factor, so eps stays


@pytest.mark.parametrize("n_layers", [1, 5])
def test_logits_and_gradients_equal_transformers(n_layers: int) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    shape = variant(n_layers=n_layers)
    tuned = completep(TINY).scaled({"attention_out": 1.4, "ssm_out": 0.6, "mlp_down": 1.7, "key": 0.7})
    table = role_table(shape, tuned)
    assert table.forward["mlp_down"] == pytest.approx(1.7 * 2 / n_layers)
    population = Population(shape, 1, ssd_chunk=8)
    population.set_roles([table])
    randomise_(population, 4)
    config = transformers.FalconH1Config(**hf.hf_config_kwargs(table), mamba_chunk_size=11)
    model = transformers.FalconH1ForCausalLM(config)
    model.load_state_dict(hf.state_dict(population, 0), strict=True)
    tokens, targets = random_tokens(shape, 2, 24)
    logits, expected = population.logits(tokens)[0], model(tokens, use_cache=False).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    population.nll(tokens, targets).sum().backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    gradients = hf.gradients(population, 0)
    for name, parameter in model.named_parameters():
        assert (gradients[name] - parameter.grad).norm() < 1e-4 * parameter.grad.norm(), name

"""Small Shapes, role tables with every multiplier off 1, and populations with random weights."""

from __future__ import annotations

import dataclasses
import random

import torch

from mup_tune.model.falcon_h1 import Population
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape

TINY = Shape(
    d_model=24,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    d_ssm=32,
    ssm_head_dim=8,
    d_state=5,
    n_groups=2,
    d_ff=20,
    vocab_size=37,
)


def variant(**sizes: object) -> Shape:
    return Shape.model_validate({**TINY.model_dump(), **sizes})


def random_table(shape: Shape, seed: int) -> RoleTable:
    """All forward multipliers between 0.5 and 2 and none near 1; a RoPE base of its own."""
    rng = random.Random(seed)
    table = role_table(shape, untuned(shape).with_values({"rope_base": 10.0 ** rng.uniform(2, 11)}))
    names = sorted(table.forward, key=lambda name: name in MULTIPLIERS)  # fixed ones first, so that draws stay
    forward = {name: rng.choice((rng.uniform(0.5, 0.8), rng.uniform(1.3, 2.0))) for name in names}
    return dataclasses.replace(table, forward=forward)


@torch.no_grad()
def randomise_(population: Population, seed: int) -> Population:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in population.named_parameters():
        vector = parameter.ndim == 2
        parameter.normal_(0, 0.5 if vector else 0.3, generator=generator)
        if "norm" in name or name.endswith(".D"):
            parameter.add_(1)
    # A residual stream and an SSM output near 0 would have the norms blow up rounding, ours and anyone's.
    population.embedding_weight.mul_(3)
    return population


def random_population(shape: Shape, n_members: int, seed: int = 0, ssd_chunk: int = 8) -> Population:
    population = Population(shape, n_members, ssd_chunk=ssd_chunk)
    population.set_roles([random_table(shape, seed + member) for member in range(n_members)])
    return randomise_(population, seed)


def random_tokens(shape: Shape, rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, a fifth of the targets ignored."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, shape.vocab_size, (2, rows, length), generator=generator)
    return tokens, targets.masked_fill(torch.rand(rows, length, generator=generator) < 0.2, -100)

"""A population at its training init."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.init import draw_
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape


def initialise(population: Population, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
    """Roles and the training init; members with one seed share their draws, scaled by their own init."""
    population.set_roles(tables)
    for member, (table, seed) in enumerate(zip(tables, seeds, strict=True)):
        for name, tensor in hf.state_dict(population, member).items():
            draw_(tensor, table.of(name), seed=seed, parameter=name)


def new_population(shape: Shape, tables: Sequence[RoleTable], seeds: Sequence[int], device: str) -> Population:
    """A population at its training init."""
    population = Population(shape, len(tables), device=device)
    initialise(population, tables, seeds)
    return population

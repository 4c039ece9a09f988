"""A population at its training init."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.init import draw_each_
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape


def initialise(population: Population, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
    """Roles and the training init; members with one seed share their draws, scaled by their own init."""
    population.set_roles(tables)
    weights = [hf.state_dict(population, member) for member in range(len(tables))]
    alike: dict[int, list[int]] = {}  # members by seed
    for member, seed in zip(range(len(tables)), seeds, strict=True):
        alike.setdefault(seed, []).append(member)
    for seed, members in alike.items():
        for name in weights[0]:
            slices = [tables[member].of(name) for member in members]
            draw_each_([weights[member][name] for member in members], slices, seed=seed, parameter=name)


def new_population(shape: Shape, tables: Sequence[RoleTable], seeds: Sequence[int], device: str) -> Population:
    """A population at its training init."""
    population = Population(shape, len(tables), device=device)
    initialise(population, tables, seeds)
    return population

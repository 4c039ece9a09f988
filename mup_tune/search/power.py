"""What a plan's seeds can show, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from mup_tune import stats
from mup_tune.search.plan import Plan
from mup_tune.stats import Sigma


@dataclass(frozen=True)
class Power:
    """The gain that a stage's fresh seeds show in about half of all runs, in units of σ_Δ."""

    stage: str
    seeds: int
    tests: int
    sigmas: float


def power(plan: Plan) -> list[Power]:
    """Of every stage that decides or claims on fresh seeds, in order."""
    found = []
    for index, stage in enumerate(plan.stages):
        if stage.decides is not None:
            seeds, tests = stage.decides
            found.append(Power(plan.key(index), seeds, tests, stats.detectable(Sigma(1.0, inf), seeds, tests)))
    return found

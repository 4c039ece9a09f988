"""Where the optimum of one hyperparameter lies at every size of a family, and how far it drifts."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.result import Comparison, Point, Result, Verdict
from mup_tune.stats import Interval, Parabola

TOLERANCE = 0.5  # log2: a drift below half a grid step of factor 2 costs no more than the grid itself
NoOptimum = Literal["every point diverged", "edge", "no fit"]
NoRegret = Literal["outside the grid", "diverged"]


class BasinSize(FrozenModel):
    """One size in a :class:`Basin`. ``drift`` and ``regret`` are against the family's smallest size.

    ``optimum``: log2 offset; None where the grid does not hold it, whatever the parabola of ``fit`` says.
    ``drift``: optimum here − optimum there, in log2. ``regret``: what the smallest size's optimum costs here,
    in nats/token. ``best_offset``: the trained point with the lowest mean loss.
    """

    label: str
    d_model: int
    n_layers: int
    parameters: int
    points: tuple[Point, ...]
    fit: Parabola | None
    optimum: Interval | None
    drift: Interval | None
    regret: Interval | None
    best_offset: float | None
    extended: int = 0
    no_optimum: NoOptimum | None = None
    no_regret: NoRegret | None = None

    @property
    def best(self) -> Point | None:
        return next((point for point in self.points if point.offset == self.best_offset), None)


class Basin(FrozenModel):
    """Loss against one hyperparameter at every size of a family, against the first of them.

    ``param``: the parametrisation, mup or sp, or the Settings whose hyperparameter it is. ``verdict`` is
    about the drift of the last size's optimum.
    """

    param: str
    hp: str
    sizes: tuple[BasinSize, ...]
    verdict: Verdict


class Basins(Result):
    """``comparisons``: mup against sp at every size, each at its own best point; none without either."""

    type: Literal["basins"] = "basins"
    basins: tuple[Basin, ...]
    comparisons: tuple[Comparison, ...]
    total_tokens: int
    steps: int

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return self.comparisons

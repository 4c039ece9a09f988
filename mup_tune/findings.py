"""What a stage learned, as data: written by the stages, journalled with the run, drawn by the report.

Losses and gains are nats/token; a gain is positive where the loss falls. Offsets are log2 of the factor on an axis'
value, relative to the incumbent the stage started from. Intervals are 95 % CIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mup_tune.files import Model
from mup_tune.settings import Settings


@dataclass(frozen=True)
class State:
    """What stages hand on: the best Settings so far, and named ones that a later stage compares with."""

    incumbent: Settings
    references: Mapping[str, Settings] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        references = {name: settings.model_dump(mode="json") for name, settings in self.references.items()}
        return {"incumbent": self.incumbent.model_dump(mode="json"), "references": references}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        references = {name: Settings.model_validate(each) for name, each in data["references"].items()}
        return cls(Settings.model_validate(data["incumbent"]), references)


class Interval(Model):
    """An estimate with its 95 % CI."""

    value: float
    low: float
    high: float


class Point(Model):
    """One grid point of an axis: loss per seed in seed order, None where the member diverged."""

    offset: float
    value: float
    losses: dict[int, float | None]


class Fit(Model):
    """Log-parabola loss ≈ floor + ½·curvature·(offset − optimum)²; curvature in nats per (log2)²."""

    optimum: Interval
    floor: float
    curvature: Interval
    points_used: int


Decision = Literal["moved", "kept", "flat", "edge", "not identifiable", "dropped"]


class AxisFinding(Model):
    """One axis of a stage: its grid, its fit where one is possible, what was decided and why (a sentence)."""

    axis: str
    before: float
    after: float
    points: tuple[Point, ...]
    fit: Fit | None
    gain: Interval | None
    p_value: float | None
    decision: Decision
    why: str


class Comparison(Model):
    """Paired comparison over seeds: gain = loss(reference) − loss(candidate)."""

    candidate: str
    reference: str
    candidate_losses: dict[int, float | None]
    reference_losses: dict[int, float | None]
    gain: Interval | None
    verdict: str


class BasinSize(Model):
    """One size in a :class:`Basin`. ``drift`` and ``regret`` are against the family's smallest size.

    ``optimum``: log2 offset; None where the grid does not hold it, whatever the parabola of ``fit`` says. ``drift``:
    optimum here − optimum there, in log2. ``regret``: what the smallest size's optimum costs here, in nats/token.
    ``best_offset``: the trained point with the lowest mean loss. ``note`` says why something is missing.
    """

    label: str
    d_model: int
    n_layers: int
    parameters: int
    points: tuple[Point, ...]
    fit: Fit | None
    optimum: Interval | None
    drift: Interval | None
    regret: Interval | None
    best_offset: float | None
    note: str = ""

    @property
    def best(self) -> Point | None:
        return next((point for point in self.points if point.offset == self.best_offset), None)


class Basin(Model):
    """Loss against one hyperparameter at every size of a family, smallest first, under one parametrisation.

    ``verdict`` is about the drift of the largest size's optimum; ``why`` is a sentence.
    """

    param: Literal["mup", "sp"]
    hp: str
    sizes: tuple[BasinSize, ...]
    verdict: Literal["pass", "fail", "inconclusive"]
    why: str


class Finding(Model):
    """All that one stage learned. ``summary`` is prose for people, a sentence an entry.

    ``on_path`` is false where ``after`` was tuned only to be compared with: the incumbent did not change.
    """

    stage: str
    kind: str
    title: str
    before: Settings
    after: Settings
    on_path: bool = True
    axes: tuple[AxisFinding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    basins: tuple[Basin, ...] = ()
    sigma_delta: float | None = None
    summary: tuple[str, ...] = ()

"""What a stage learned, as data: written by the stages, journalled with the run, drawn by the report.

Losses and gains are nats/token; a gain is positive where the loss falls. Offsets are log2 of the factor on an
axis' value, relative to the incumbent the stage started from. Intervals are 95 % CIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from mup_tune.files import FrozenModel
from mup_tune.settings import Settings
from mup_tune.shape import Shape


@dataclass(frozen=True)
class State:
    """What stages hand on: the best Settings so far, named ones to compare with, and what was learned on the way.

    ``sensitivity``: curvature of the loss along an axis, in nats/token per (log2)², of the last stage that
    fitted it. ``flops``: spent so far by the stages that search for the incumbent, trials of other references
    left out.
    """

    incumbent: Settings
    references: Mapping[str, Settings] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0

    def to_json(self) -> dict[str, Any]:
        references = {name: settings.model_dump(mode="json") for name, settings in self.references.items()}
        return {
            "incumbent": self.incumbent.model_dump(mode="json"),
            "references": references,
            "sensitivity": dict(self.sensitivity),
            "flops": self.flops,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        references = {name: Settings.model_validate(each) for name, each in data["references"].items()}
        incumbent = Settings.model_validate(data["incumbent"])
        return cls(incumbent, references, dict(data["sensitivity"]), float(data["flops"]))


class Interval(FrozenModel):
    """An estimate with its 95 % CI."""

    value: float
    low: float
    high: float


class Point(FrozenModel):
    """One grid point of an axis: loss per seed in seed order, None where the member diverged."""

    offset: float
    value: float
    losses: dict[int, float | None]


class Fit(FrozenModel):
    """Log-parabola loss ≈ floor + ½·curvature·(offset − optimum)²; curvature in nats per (log2)².

    ``lack_of_fit``: p-value of the test that a parabola misses more than the seeds' noise, None without
    replicates. ``robust``: the parabola did not hold, and the fit is the fallback's.
    """

    optimum: Interval
    floor: float
    curvature: Interval
    points_used: int
    lack_of_fit: float | None = None
    robust: bool = False


Decision = Literal["moved", "kept", "flat", "edge", "not identifiable", "dropped"]


class AxisFinding(FrozenModel):
    """One axis of a stage: its grid, its fit where one is possible, what was decided and why (a sentence).

    ``pass_``: which pass over the group it is from, 1-based.
    """

    axis: str
    pass_: int = 1
    before: float
    after: float
    points: tuple[Point, ...]
    fit: Fit | None
    gain: Interval | None
    p_value: float | None
    decision: Decision
    why: str


class Comparison(FrozenModel):
    """Paired comparison over seeds: gain = loss(reference) − loss(candidate).

    ``by_source``: the same gain on each source of a mixture alone, by its name; empty where there is one
    source.
    """

    candidate: str
    reference: str
    candidate_losses: dict[int, float | None]
    reference_losses: dict[int, float | None]
    gain: Interval | None
    verdict: str
    by_source: dict[str, Interval] = Field(default_factory=dict)


class BasinSize(FrozenModel):
    """One size in a :class:`Basin`. ``drift`` and ``regret`` are against the family's smallest size.

    ``optimum``: log2 offset; None where the grid does not hold it, whatever the parabola of ``fit`` says.
    ``drift``: optimum here − optimum there, in log2. ``regret``: what the smallest size's optimum costs here,
    in nats/token. ``best_offset``: the trained point with the lowest mean loss. ``note`` says why something
    is missing.
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


class Basin(FrozenModel):
    """Loss against one hyperparameter at every size of a family, smallest first, under one parametrisation.

    ``verdict`` is about the drift of the largest size's optimum; ``why`` is a sentence.
    """

    param: Literal["mup", "sp"]
    hp: str
    sizes: tuple[BasinSize, ...]
    verdict: Literal["pass", "fail", "inconclusive"]
    why: str


class ShapePoint(FrozenModel):
    """One Shape of a comparison at equal parameters, trained at the ELR of ``elr_offset`` (its best one, log2).

    The first point of a Finding is always the proxy.

    ``channels`` is SSM:attention:MLP in eighths, empty where channels were not split so. ``gain``:
    loss(proxy) − loss(this), paired, each at its own best ELR; None at the proxy itself. ``tokens_per_s``: of
    one pack while training, ``members`` members together. ``on_front``: no other Shape is both better and
    faster.
    """

    label: str
    shape: Shape
    channels: str
    parameters: int
    flops_per_token: float
    losses: dict[int, float | None]
    elr_offset: float
    at_edge: bool
    gain: Interval | None
    tokens_per_s: float
    members: int
    on_front: bool


class LengthCurve(FrozenModel):
    """Validation loss against the RoPE base at ``factor`` times the training length, on the same text at each."""

    factor: int
    seq_len: int
    points: tuple[Point, ...]


class Candidate(FrozenModel):
    """One point of a joint search, in the order proposed: log2 offsets by axis from the incumbent, loss per seed."""

    round: int
    offsets: dict[str, float]
    losses: dict[int, float | None]


class Search(FrozenModel):
    """A joint search: its sampler, its box of ±``radius`` log2 around the centre, all candidates, the best one."""

    sampler: str
    axes: tuple[str, ...]
    radius: float
    centre_losses: dict[int, float | None]
    candidates: tuple[Candidate, ...]
    best: int | None


class Finding(FrozenModel):
    """All that one stage learned. ``summary`` is prose for people, a sentence an entry.

    ``headline``: what a run that claims no gain puts on top of its page, for stages that measure rather than
    tune.

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
    shapes: tuple[ShapePoint, ...] = ()
    lengths: tuple[LengthCurve, ...] = ()
    searches: tuple[Search, ...] = ()
    headline: str = ""
    sigma_delta: float | None = None
    summary: tuple[str, ...] = ()

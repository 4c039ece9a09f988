"""What all results are made of: swept axes, paired comparisons, and the base that types register with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from mup_tune import stats
from mup_tune.errors import unknown
from mup_tune.files import FrozenModel
from mup_tune.stats import SIGNIFICANT, Interval, Losses, Parabola

# "re-centred": taken as the best there is to go on from, though no gain of it is shown.
Decision = Literal["moved", "re-centred", "kept", "flat", "edge", "not identifiable", "dropped"]
# Why an axis is where it is; "fitted": the decision and the numbers beside it say it all.
Reason = Literal[
    "fitted",
    "jointly",
    "best",
    "not better",
    "too little",
    "noise unknown",
    "all diverged",
    "incumbent diverged",
    "horizon",
    "move failed",
]
Verdict = Literal["pass", "fail", "inconclusive"]
Outcome = Literal["better", "worse", "unclear", "unmeasured"]


class Result(FrozenModel):
    """What a stage learned beyond Settings. A subclass is known by its ``type`` once it is defined.

    ``report/parts/<type>.py`` says it in words and figures; the two properties are what all pages draw alike.
    """

    types: ClassVar[dict[str, type[Result]]] = {}
    type: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.types[cls.model_fields["type"].default] = cls

    @property
    def swept(self) -> tuple[AxisFinding, ...]:
        """Axes that were decided on, in the order they were."""
        return ()

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return ()

    @property
    def gained(self) -> Comparison | None:
        """What the stage brought, on seeds that chose nothing; None where it tested nothing on such."""
        return None


def typed(data: Any) -> Any:
    """Plain data as the result that its ``type`` names."""
    if not isinstance(data, Mapping):
        return data
    if data.get("type") not in Result.types:
        raise ValueError(unknown("result type", data.get("type"), Result.types))
    return Result.types[data["type"]].model_validate(data)


class Point(FrozenModel):
    """One grid point of an axis: its value, and the loss by seed."""

    offset: float
    value: float
    losses: Losses


class AxisFinding(FrozenModel):
    """One axis of a stage: its grid, its fit where one is possible, what was decided and why.

    ``pass_``: the pass over the group that it is from, 1-based. ``extended``: how often its grid was.
    ``horizon``: η·λ·T of its parameters where a weight decay was not identifiable.
    """

    axis: str
    pass_: int = 1
    before: float
    after: float
    points: tuple[Point, ...] = ()
    fit: Parabola | None = None
    gain: Interval | None = None
    p_value: float | None = None
    decision: Decision
    reason: Reason = "fitted"
    extended: int = 0
    horizon: float | None = None

    @property
    def best(self) -> Point | None:
        """The trained point of the lowest mean loss."""
        index = stats.argmin(stats.means([point.losses for point in self.points]))
        return None if index is None else self.points[index]

    @property
    def sensitivity(self) -> float:
        """Curvature in nats/token per (log2)²; 0 where its CI does not lie above 0, or nothing fits."""
        return self.fit.curvature.value if self.fit is not None and self.fit.curvature.above_0 else 0.0


def sensitivities(axes: Sequence[AxisFinding]) -> dict[str, float]:
    """By axis; of a later pass where that shows any, for it is nearer to the incumbent."""
    found: dict[str, float] = {}
    for axis in axes:
        found[axis.axis] = axis.sensitivity or found.get(axis.axis, 0.0)
    return found


class Comparison(FrozenModel):
    """Paired comparison over seeds: gain = loss(reference) − loss(candidate).

    ``by_source``: the same gain on each source of a mixture alone, by its name; empty where there is one.
    ``same``: both sides are one model, and there is nothing to tell apart.
    """

    candidate: str
    reference: str
    candidate_losses: Losses
    reference_losses: Losses
    gain: Interval | None
    by_source: dict[str, Interval] = Field(default_factory=dict)
    same: bool = False

    @property
    def outcome(self) -> Outcome:
        """What the CI of the gain says."""
        if self.gain is None:
            return "unmeasured"
        return "better" if self.gain.above_0 else "worse" if self.gain.below_0 else "unclear"


def hardest(comparisons: Iterable[Comparison]) -> Comparison | None:
    """The comparison with the smallest gain: a claim is no better than it. None where no gain is known."""
    measured = [(each.gain.value, each) for each in comparisons if each.gain is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


class Verified(FrozenModel):
    """A candidate and the incumbent on fresh seeds; ``p_value`` is Bonferroni's over all that were tested."""

    comparison: Comparison
    p_value: float

    @classmethod
    def over_incumbent(cls, candidate: str, losses: Losses, incumbent: Losses, tests: int, **said: Any) -> Self:
        """``candidate`` by Student's t on the differences' own SD, with Bonferroni over ``tests``.

        ``said`` are further fields of a subclass.
        """
        gain = stats.paired_gain(losses, incumbent)
        compared = Comparison(
            candidate=candidate,
            reference="incumbent",
            candidate_losses=losses,
            reference_losses=incumbent,
            gain=gain,
        )
        p_value = 1.0 if gain is None or gain.p_value is None else min(1.0, tests * gain.p_value)
        return cls(comparison=compared, p_value=p_value, **said)

    @property
    def better(self) -> bool:
        """Whether Bonferroni's CI of the gain lies above 0."""
        gain = self.comparison.gain
        return gain is not None and gain.value > 0 and self.p_value < SIGNIFICANT

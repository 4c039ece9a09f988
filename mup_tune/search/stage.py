"""What a stage is: configuration from the plan plus two pure functions over finished trials."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from mup_tune.files import Model
from mup_tune.findings import Finding, State
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.trial import Budget, Row, Trial

__all__ = ["Conclusion", "Context", "Known", "Stage", "State"]

Known = Mapping[str, Row]  # finished trials of the whole run, by trial hash


@dataclass(frozen=True)
class Context:
    """What all stages of a plan share. ``seeds`` are the plan's tuning seeds."""

    shape: Shape
    budget: Budget
    seeds: tuple[int, ...]

    def trials(self, settings: Settings, seeds: Iterable[int], shape: Shape | None = None) -> list[Trial]:
        """One trial a seed, at ``shape`` or the proxy's."""
        shape = shape or self.shape
        return [Trial(shape=shape, budget=self.budget, settings=settings, seed=seed) for seed in seeds]


@dataclass(frozen=True)
class Conclusion:
    state: State
    finding: Finding


class Stage(Model):
    """Base of the stage kinds. A stage holds no state: it is asked again, with more rows, until it wants no more."""

    kind: str
    name: str = Field(default="", pattern=r"^[\w .-]*$")

    @property
    def title(self) -> str:
        """What this stage does, in a line for people."""
        return self.name or self.kind

    @property
    def provides(self) -> str | None:
        """Name under which this stage leaves Settings for later stages to compare with."""
        return None

    @property
    def requires(self) -> Sequence[str]:
        """Names that earlier stages must have left."""
        return ()

    @abstractmethod
    def propose(self, context: Context, state: State, known: Known) -> Sequence[Trial]:
        """Every trial this stage wants, given what is known; the ones already known are not trained again.

        Called at the start and at each barrier; the stage is over when all it wants is known. Must be deterministic.
        """

    @abstractmethod
    def conclude(self, context: Context, state: State, known: Known) -> Conclusion:
        """The decision, when everything wanted is known."""

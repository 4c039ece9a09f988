"""What a stage is: configuration from the plan plus one straight walk over finished trials.

The walk asks for the losses it needs, in order (:class:`Asked`). Where some are still missing it stops, and
what it asked for so far is the proposal; with everything known it reaches its end, and that is the
conclusion. So a decision in the walk rests only on trials asked for before it, and more rows never take a
wish back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import isabstract
from typing import Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, Field

from mup_tune.files import FrozenModel, Name
from mup_tune.findings import Finding, Result, State
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.stats import Losses, Sigma
from mup_tune.trial import Budget, Trial, TrialResult

Known = Mapping[str, TrialResult]  # finished trials of the whole run, by trial hash
ValuesT = TypeVar("ValuesT", bound=Sequence[Any])


@dataclass(frozen=True)
class Context:
    """What all stages of a plan share. ``seeds`` are the plan's tuning seeds."""

    shape: Shape
    budget: Budget
    seeds: tuple[int, ...]

    def trials(
        self, settings: Settings, seeds: Iterable[int], shape: Shape | None = None, budget: Budget | None = None
    ) -> list[Trial]:
        """One trial a seed, at ``shape`` and ``budget`` or the plan's."""
        shape, budget = shape or self.shape, budget or self.budget
        return [Trial(shape=shape, budget=budget, settings=settings, seed=seed) for seed in seeds]


@dataclass(frozen=True)
class Conclusion:
    state: State
    finding: Finding


class BarrierError(Exception):
    """Trials that the next decision needs are not finished."""


class Asked:
    """The trials a walk asked for, each once, in order. ``rehearsed``: their results are made up."""

    rehearsed = False

    def __init__(self, context: Context, known: Known) -> None:
        self.context, self.known = context, known
        self.trials: dict[str, Trial] = {}

    def losses(
        self,
        settings: Sequence[Settings],
        seeds: Iterable[int],
        shapes: Sequence[Shape | None] | None = None,
        around: Sequence[Settings] | None = None,
        budgets: Sequence[Budget | None] | None = None,
    ) -> list[Losses]:
        """Loss per seed of each of ``settings``, each at its own Shape and Budget; None is the plan's.

        ``around``: what each is a step from, for a rehearsal to tell near from far.

        Raises:
            BarrierError: some are not known yet; all of them are among ``trials`` then.
        """
        seeds = tuple(seeds)
        nowhere = [None] * len(settings)
        places = zip(settings, shapes or nowhere, budgets or nowhere, strict=True)
        wanted = [self.context.trials(each, seeds, shape, budget) for each, shape, budget in places]
        return [losses(rows) for rows in self.rows(wanted)]

    def rows(self, wanted: Sequence[Sequence[Trial]]) -> list[list[TrialResult]]:
        """The finished rows of each list of trials, all of them asked for at once.

        Raises:
            BarrierError: as above.
        """
        self.trials.update({trial.hash: trial for trials in wanted for trial in trials})
        missing = sum(trial.hash not in self.known for trials in wanted for trial in trials)
        if missing:
            raise BarrierError(f"{missing} trials of this stage are not finished")
        return [[self.known[trial.hash] for trial in trials] for trials in wanted]


def losses(rows: Iterable[TrialResult], metric: str | None = None) -> dict[int, float | None]:
    """Loss by seed, or a metric in its place; None where the member diverged."""
    return {row.trial.seed: (row.metrics[metric] if metric else row.loss) if row.ok else None for row in rows}


def each_once(noun: str) -> AfterValidator:
    """What refuses a list in a plan that names a ``noun`` twice, for a field's annotation."""

    def checked(given: ValuesT) -> ValuesT:
        if len(set(given)) != len(given):
            raise ValueError(f"{list(given)} names a {noun} twice")
        return given

    return AfterValidator(checked)


class Stage(FrozenModel):
    """Base of the stage kinds. A stage holds no state: it is asked again, with more rows, to its end."""

    kinds: ClassVar[dict[str, type[Stage]]] = {}
    kind: str
    name: Name = Field(default="", pattern=r"^[\w .-]*$")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A concrete stage is known by its ``kind`` once it is defined."""
        if not isabstract(cls):
            cls.kinds[cls.model_fields["kind"].default] = cls

    @property
    def label(self) -> str:
        """What the stage is called, and the Settings it makes."""
        return self.name or self.kind

    @property
    def title(self) -> str:
        """What this stage does, in a line for people."""
        return self.label

    def resolved(self, shape: Shape) -> Self:
        """This stage with every file that it names read, so that nothing is read anew while it runs.

        Args:
            shape: the plan's proxy.
        """
        return self

    @property
    def requires(self) -> Sequence[str]:
        """Names that earlier stages must have left."""
        return ()

    @property
    def on_path(self) -> bool:
        """Whether this stage is a step on the incumbent's way, confirmation included; its FLOPs are search.

        False where it tunes or measures something beside, and so never changes the incumbent.
        """
        return True

    @property
    def decides(self) -> tuple[int, int] | None:
        """Fresh seeds that a decision or claim rests on, and the tests that share its level; None without."""
        return None

    @property
    def equal_packs(self) -> bool:
        """Whether populations of all Shapes get one size, so that their speeds can be compared."""
        return False

    def expected(self, trials: int, context: Context, state: State) -> int:
        """Trials if nothing surprises, of which a rehearsal on a quiet landscape took ``trials``."""
        return trials

    def most(self, expected: int, context: Context, state: State) -> int:
        """Trials at the very most: with every extension, refinement and further move."""
        return expected

    def foreseen(self, context: Context, incumbent: Settings) -> Settings:
        """The incumbent that a forecast goes on with, where what later stages do depends on it."""
        return incumbent

    @abstractmethod
    def walk(self, asked: Asked, state: State) -> Conclusion:
        """The whole stage, deterministic, with its losses from ``asked``."""

    def propose(self, context: Context, state: State, known: Known) -> Sequence[Trial]:
        """Every trial this stage wants, given what is known; the ones already known are not trained again.

        Called at the start and at each barrier; the stage is over when all it wants is known.
        """
        asked = Asked(context, known)
        with suppress(BarrierError):
            self.walk(asked, state)
        return list(asked.trials.values())

    def conclude(self, context: Context, state: State, known: Known) -> Conclusion:
        """The decision, when everything wanted is known."""
        return self.walk(Asked(context, known), state)

    def finding(self, before: Settings, after: Settings, result: Result, sigma: Sigma | None = None) -> Finding:
        """The Finding under this stage's name and kind."""
        return Finding(
            stage=self.label,
            kind=self.kind,
            title=self.title,
            before=before,
            after=after,
            on_path=self.on_path,
            sigma_delta=None if sigma is None else sigma.value,
            result=result,
        )

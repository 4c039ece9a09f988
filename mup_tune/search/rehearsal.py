"""A plan played once before anything trains, on a landscape without surprises.

Every stage walks as it will later, with made-up losses: each axis is a bowl around the Settings that it is
swept from, and there is no noise. What it asks for is what it takes if nothing surprises, and what it refuses
is said before anything is spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from statistics import fmean

from mup_tune.errors import UserError, located, unknown
from mup_tune.findings import State
from mup_tune.search.stage import Asked, Context, Stage
from mup_tune.settings import AXES, Settings
from mup_tune.shape import Shape
from mup_tune.stats import Losses
from mup_tune.trial import Budget, Trial, TrialResult, length_loss

CURVATURE = 0.1  # nats/token per (log2)² along every axis


@dataclass(frozen=True)
class StageForecast:
    """One stage: what it takes if nothing surprises, and with everything that it may ask for.

    ``stage`` is its key in the journal. ``tokens`` are of training, all trials together; validation is not
    counted.
    """

    stage: str
    kind: str
    title: str
    trials: int
    tokens: int
    flops: float
    max_trials: int
    max_tokens: int
    max_flops: float


@dataclass(frozen=True)
class Wave:
    """What one barrier lets go: ``trials`` by what they train, cut alike where ``equal_packs``."""

    trials: Mapping[tuple[Shape, Budget], int]
    equal_packs: bool = False


@dataclass(frozen=True)
class Rehearsal:
    """One stage as played: its forecast, and the trials that it asked for between its barriers, in order."""

    forecast: StageForecast
    waves: tuple[Wave, ...]

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(dict.fromkeys(budget for wave in self.waves for _, budget in wave.trials))


class Rehearsed(Asked):
    """Every trial is finished when it is asked for."""

    rehearsed = True

    def __init__(self, context: Context, equal_packs: bool = False) -> None:
        super().__init__(context, {})
        self.equal_packs = equal_packs
        self.waves: list[Wave] = []

    def losses(
        self,
        settings: Sequence[Settings],
        seeds: Iterable[int],
        shapes: Sequence[Shape | None] | None = None,
        around: Sequence[Settings] | None = None,
        budgets: Sequence[Budget | None] | None = None,
    ) -> list[Losses]:
        found = super().losses(settings, seeds, shapes, budgets=budgets)
        costs = [_cost(*pair) for pair in zip(settings, around or settings, strict=True)]
        return [dict.fromkeys(losses, 1.0 + cost) for losses, cost in zip(found, costs, strict=True)]

    def rows(self, wanted: Sequence[Sequence[Trial]]) -> list[list[TrialResult]]:
        new = {trial.hash: trial for trials in wanted for trial in trials if trial.hash not in self.trials}
        if new:
            trials = Counter((trial.shape, trial.budget) for trial in new.values())
            self.waves.append(Wave(trials, self.equal_packs))
        self.trials.update(new)
        return [[_result(trial) for trial in trials] for trials in wanted]


def rehearse(keyed: Iterable[tuple[str, Stage]], context: Context, start: State) -> Iterator[Rehearsal]:
    """A rehearsal of every stage, in order; the keys are those in the journal.

    What a stage learns is made up: every reference it leaves is other Settings than any before, and every
    axis it measures has sensitivity 1.

    Raises:
        UserError: a stage refuses what it is given, or misses a reference; the field is below ``stages[…]``.
    """
    state, longest = start, 0.0
    for index, (key, stage) in enumerate(keyed):
        asked = Rehearsed(context, stage.equal_packs)
        with located(field=f"stages[{index}]"):
            _check_references(stage, state)
            after = stage.walk(asked, state).state
        trials = list(asked.trials.values())
        line = _forecast(key, stage, context, state, trials, longest)
        yield Rehearsal(line, (*asked.waves, *_foreseen(line.trials - len(trials), asked.waves)))
        if stage.on_path:
            longest += line.max_flops
        state = _handed_on(stage, context, state, after, line)


def _foreseen(more: int, waves: Sequence[Wave]) -> list[Wave]:
    """What a quiet landscape gives no reason for, and the stage expects: one more wave of what it trained."""
    shared = sum((Counter(wave.trials) for wave in waves), Counter[tuple[Shape, Budget]]())
    return [Wave({max(shared, key=lambda each: shared[each]): more})] if more > 0 and shared else []


def _check_references(stage: Stage, state: State) -> None:
    for name in stage.requires:
        if name not in state.references:
            known = state.references
            problem = unknown("reference", name, known) if known else f"no earlier stage provides {name!r}"
            raise UserError(problem, field="against", fix="Store one with `reference:` in an earlier stage")


def _forecast(
    key: str, stage: Stage, context: Context, state: State, asked: Sequence[Trial], longest: float
) -> StageForecast:
    """``longest``: the FLOPs that the search for the incumbent may have spent before, at the very most."""
    priced = asked or context.trials(state.incumbent, context.seeds[:1])
    tokens = fmean(trial.budget.steps * trial.budget.batch_tokens for trial in priced)
    flops = fmean(trial.flops for trial in priced)
    trials = stage.expected(len(asked), context, state)
    most = stage.most(trials, context, replace(state, flops=max(longest, state.flops)))
    return StageForecast(
        stage=key,
        kind=stage.kind,
        title=stage.title,
        trials=trials,
        tokens=round(trials * tokens),
        flops=trials * flops,
        max_trials=most,
        max_tokens=round(most * tokens),
        max_flops=most * flops,
    )


def _handed_on(stage: Stage, context: Context, before: State, after: State, line: StageForecast) -> State:
    new = [name for name in after.references if name not in before.references]
    first = len(before.references) + 1
    made_up = {name: before.incumbent.scaled({"elr": 1 + 1e-6 * n}) for n, name in enumerate(new, first)}
    measured = dict.fromkeys(after.sensitivity, 1.0)
    return State(
        incumbent=stage.foreseen(context, before.incumbent),
        references={**before.references, **made_up},
        sensitivity=measured,
        flops=before.flops + (line.flops if stage.on_path else 0.0),
    )


def _cost(settings: Settings, centre: Settings) -> float:
    """What the distance from the centre costs, in nats/token."""
    if settings is centre:
        return 0.0
    distances = (log2(settings.value(axis) / centre.value(axis)) for axis in AXES)
    return CURVATURE / 2 * sum(distance**2 for distance in distances)


def _result(trial: Trial) -> TrialResult:
    lengths = {length_loss(factor): 1.0 for factor in trial.budget.val_lengths}
    return TrialResult(trial, "ok", 1.0, 0.0, metrics={"members": 1.0, "tokens_per_s": 1.0, **lengths})

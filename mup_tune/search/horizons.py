"""A reference trained for longer, its ELR tuned anew: how a gain is told in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated

from pydantic import AfterValidator

from mup_tune.errors import UserError
from mup_tune.findings.confirmation import Horizon, TokenGain
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Context, losses
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.stats.tokens import tokens_saved
from mup_tune.trial import Budget, Trial, TrialResult

LINE, EXTENDED = (-0.5, 0.0, 0.5), 1  # log2 offsets of ELR at the longest horizon, and how often they may go on
LONGEST = 8.0


def _checked(factors: tuple[float, ...]) -> tuple[float, ...]:
    if factors and (len(factors) < 2 or min(factors) <= 1 or sorted(set(factors)) != list(factors)):
        raise ValueError(f"{list(factors)} is not allowed: give at least two factors above 1, ascending")
    if factors and factors[-1] > LONGEST:
        raise ValueError(f"{factors[-1]:g} is not allowed: a horizon is at most {LONGEST:g} times the plan's tokens")
    return factors


Horizons = Annotated[tuple[float, ...], AfterValidator(_checked)]  # times the plan's tokens


@dataclass(frozen=True)
class Longer:
    """A reference at the plan's horizon and at longer ones, at one Shape.

    A longer run wants another ELR, and a handicapped reference would flatter. So its ELR is tuned at the
    longest horizon, on ``line``, and interpolated in between: log ELR is taken for linear in log tokens from
    the plan's horizon on, where ``settings`` were tuned. ``budgets`` holds the plan's first.
    """

    name: str
    settings: Settings
    budgets: Sequence[Budget]
    line: SweptAxis

    @classmethod
    def of(
        cls, name: str, settings: Settings, budget: Budget, factors: Sequence[float], shape: Shape | None = None
    ) -> Longer:
        """Raises UserError: two horizons have the same steps."""
        budgets = [budget, *(budget.longer(factor) for factor in factors)]
        if len({each.steps for each in budgets}) < len(budgets):
            raise UserError(
                f"{list(factors)} are not told apart in {budget.steps} steps",
                field="horizons",
                fix="Name factors further apart, or give the budget more tokens",
            )
        return cls(name, settings, budgets, SweptAxis("elr", settings, shape=shape, budget=budgets[-1]))

    @property
    def factors(self) -> list[float]:
        return [each.steps / self.budgets[0].steps for each in self.budgets]

    @property
    def tuned(self) -> list[Settings]:
        """The reference at every horizon; the line must be trained."""
        longer = self.factors[1:]
        offsets = [self.line.optimum * log(x) / log(longer[-1]) for x in longer]
        return [self.settings, *(self.settings.scaled({"elr": 2.0**offset}) for offset in offsets)]

    def trials(self, context: Context, seeds: Sequence[int]) -> list[list[Trial]]:
        """Those of every horizon, the plan's first."""
        pairs = zip(self.tuned, self.budgets, strict=True)
        return [context.trials(each, seeds, self.line.shape, budget) for each, budget in pairs]

    def gain(self, ours: Sequence[TrialResult], theirs: Sequence[Sequence[TrialResult]]) -> TokenGain:
        """``ours``: the incumbent's rows at the plan's horizon. ``theirs``: those of :meth:`trials`."""
        reached = zip(self.factors, self.budgets, self.tuned, theirs, strict=True)
        horizons = tuple(
            Horizon(factor=factor, tokens=budget.steps * budget.batch_tokens, elr=each.elr, losses=losses(rows))
            for factor, budget, each, rows in reached
        )
        saved = tokens_saved(losses(ours), [each.losses for each in horizons], self.factors)
        return TokenGain(reference=self.name, horizons=horizons, candidate_losses=losses(ours), saved=saved)


def train_lines(asked: Asked, several: Sequence[Longer]) -> None:
    """The ELR lines of ``several`` references, on the plan's tuning seeds."""
    swept_axis.train_grid(asked, [each.line for each in several], LINE, asked.context.seeds, EXTENDED)


def extensions(context: Context, several: int = 1) -> int:
    """Trials that extended lines take at most."""
    return several * EXTENDED * len(context.seeds)

"""The ``confirm`` stage: the incumbent against named Settings on seeds that tuned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mup_tune import stats
from mup_tune.errors import UserError, located, unknown
from mup_tune.findings import Comparison, State
from mup_tune.findings.confirmation import AtShape, Confirmation, Horizon, TokenGain
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once, losses
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings
from mup_tune.shape import Shape, load_shape
from mup_tune.stats import Interval
from mup_tune.stats.tokens import tokens_saved
from mup_tune.trial import Budget, TrialResult, source_loss, sources

FIRST_SEED = 1000
LINE, EXTENDED = (-0.5, 0.0, 0.5), 1  # log2 offsets of ELR at the longest horizon, and how often they may go on
LONGEST = 8.0


def _horizons(factors: tuple[float, ...]) -> tuple[float, ...]:
    if factors and (len(factors) < 2 or min(factors) <= 1 or sorted(set(factors)) != list(factors)):
        raise ValueError(f"{list(factors)} is not allowed: give at least two factors above 1, ascending")
    if factors and factors[-1] > LONGEST:
        raise ValueError(f"{factors[-1]:g} is not allowed: a horizon is at most {LONGEST:g} times the plan's tokens")
    return factors


class Confirm(Stage):
    """Trains the incumbent and each reference on ``n_seeds`` fresh seeds and compares them pairwise.

    Nothing was chosen on these seeds, so the gain carries no winner's curse. Its CI is Student's t on the
    paired differences' own SD; a claim is made where the CI leaves 0 out. The gain on each source of a
    mixture is beside it, by the same method.

    With ``horizons`` the reference ``tokens_against`` (the first of ``against`` if not named) also trains for
    that many times the tokens, on the same seeds. So the gain is told in tokens too: the same loss with 1/x
    of them. A longer run wants another ELR, and a handicapped reference would flatter. So its ELR is tuned
    anew at the longest horizon, on a line of ±½ log2 over the tuning seeds, and interpolated in between.

    With ``shapes`` the incumbent and that reference meet at these Shapes as well, carried there by their µP
    base. These comparisons stand beside the claim.
    """

    kind: Literal["confirm"] = "confirm"
    against: Annotated[list[str], Field(min_length=1), each_once("reference")]
    n_seeds: Annotated[int, Field(ge=2, le=100)] = 4
    horizons: Annotated[tuple[float, ...], AfterValidator(_horizons)] = ()
    tokens_against: str | None = None
    shapes: Annotated[tuple[str, ...], each_once("shape")] = ()

    @model_validator(mode="after")
    def _known(self) -> Confirm:
        if self.tokens_against not in (None, *self.against):
            raise ValueError(unknown("reference", self.tokens_against, self.against))
        return self

    @property
    def title(self) -> str:
        return f"Confirmation on fresh seeds against {', '.join(self.against)}"

    @property
    def requires(self) -> Sequence[str]:
        """References that earlier stages must have stored."""
        return tuple(self.against)

    @property
    def hardest(self) -> str:
        """The reference that longer horizons and other Shapes are trained for."""
        return self.tokens_against or self.against[0]

    def seeds(self, context: Context) -> tuple[int, ...]:
        """1000, 1001, … without the plan's tuning seeds."""
        return swept_axis.fresh_seeds(context, FIRST_SEED, self.n_seeds)

    def most(self, expected: int, context: Context, state: State) -> int:
        """And the ELR line extended."""
        return expected + (EXTENDED * len(context.seeds) if self.horizons else 0)

    @property
    def decides(self) -> tuple[int, int]:
        return self.n_seeds, 1

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context, seeds = asked.context, self.seeds(asked.context)
        reference = state.references[self.hardest]
        settings = [state.incumbent, *(state.references[name] for name in self.against)]
        others = self._shapes(context)
        wanted = [context.trials(each, seeds) for each in settings]
        wanted += [context.trials(each, seeds, shape) for shape in others for each in (state.incumbent, reference)]
        found = asked.rows(wanted)
        (ours, *theirs), elsewhere = found[: len(settings)], found[len(settings) :]
        result = Confirmation(
            comparisons=tuple(_compared(name, ours, rows) for name, rows in zip(self.against, theirs, strict=True)),
            tokens=self._tokens(asked, reference, ours, theirs[self.against.index(self.hardest)]),
            shapes=tuple(
                AtShape(
                    shape=shape.name or f"d{shape.d_model} L{shape.n_layers}",
                    parameters=shape.parameters(),
                    comparison=_compared(self.hardest, elsewhere[2 * index], elsewhere[2 * index + 1]),
                )
                for index, shape in enumerate(others)
            ),
        )
        return Conclusion(state, self.finding(state.incumbent, state.incumbent, result))

    def _shapes(self, context: Context) -> list[Shape]:
        """Raises UserError: no such Shape, or one of another vocabulary."""
        found = []
        for index, name in enumerate(self.shapes):
            with located(field=f"shapes[{index}]"):
                shape = load_shape(name)
                if shape.vocab_size != context.shape.vocab_size:
                    raise UserError(
                        f"{name!r} has a vocabulary of {shape.vocab_size:,}, the proxy one of "
                        f"{context.shape.vocab_size:,}",
                        fix="Losses over other vocabularies cannot stand beside the proxy's: name another Shape",
                    )
                found.append(shape)
        return found

    def _budgets(self, budget: Budget) -> list[Budget]:
        """The plan's and a longer one for every horizon. Raises UserError: two have the same steps."""
        found = [budget, *(budget.longer(factor) for factor in self.horizons)]
        if len({each.steps for each in found}) < len(found):
            raise UserError(
                f"{list(self.horizons)} are not told apart in {budget.steps} steps",
                field="horizons",
                fix="Name factors further apart, or give the budget more tokens",
            )
        return found

    def _tokens(
        self, asked: Asked, reference: Settings, ours: Sequence[TrialResult], theirs: Sequence[TrialResult]
    ) -> TokenGain | None:
        if not self.horizons:
            return None
        budgets = self._budgets(asked.context.budget)
        line = SweptAxis("elr", reference, budget=budgets[-1])
        swept_axis.train_grid(asked, [line], LINE, asked.context.seeds, EXTENDED)
        fit = line.fit(swept_axis.noise([line]))
        offset = (line.best or 0.0) if fit is None else fit.optimum.value
        # log ELR is taken for linear in log tokens from the plan's own horizon, where it was tuned, on.
        factors = [each.steps / budgets[0].steps for each in budgets]
        tuned = [reference.scaled({"elr": 2.0 ** (offset * log(x) / log(factors[-1]))}) for x in factors[1:]]
        seeds = [row.trial.seed for row in ours]
        pairs = zip(tuned, budgets[1:], strict=True)
        rows = asked.rows([asked.context.trials(each, seeds, budget=longer) for each, longer in pairs])
        reached = zip(factors, budgets, [reference, *tuned], [theirs, *rows], strict=True)
        horizons = [
            Horizon(factor=factor, tokens=budget.steps * budget.batch_tokens, elr=each.elr, losses=losses(found))
            for factor, budget, each, found in reached
        ]
        saved = tokens_saved(losses(ours), [each.losses for each in horizons], factors)
        return TokenGain(reference=self.hardest, horizons=tuple(horizons), candidate_losses=losses(ours), saved=saved)


def _compared(name: str, ours: Sequence[TrialResult], theirs: Sequence[TrialResult]) -> Comparison:
    gain, by_source = _gain(ours, theirs), {}
    for source in _on_all([*ours, *theirs]):
        of_source = _gain(ours, theirs, source_loss(source))
        if of_source is not None:
            by_source[source] = of_source
    return Comparison(
        candidate="incumbent",
        reference=name,
        candidate_losses=losses(ours),
        reference_losses=losses(theirs),
        gain=gain,
        by_source=by_source,
    )


def _gain(ours: Sequence[TrialResult], theirs: Sequence[TrialResult], metric: str | None = None) -> Interval | None:
    return stats.paired_gain(losses(ours, metric), losses(theirs, metric))


def _on_all(rows: Sequence[TrialResult]) -> list[str]:
    """The sources that every trial which ended was validated on, in order; none where there is one."""
    ended = [sources(row.metrics) for row in rows if row.ok]
    return [name for name in ended[0] if all(name in each for each in ended)] if ended else []

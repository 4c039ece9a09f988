"""The ``confirm`` stage: the incumbent against named Settings on seeds that tuned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mup_tune import stats
from mup_tune.errors import unknown
from mup_tune.findings import Comparison, State
from mup_tune.findings.confirmation import Confirmation, TokenGain
from mup_tune.search import horizons, swept_axis
from mup_tune.search.horizons import Horizons, Longer
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once, losses
from mup_tune.stats import Interval
from mup_tune.trial import TrialResult, source_loss, sources

FIRST_SEED = 1000


class Confirm(Stage):
    """Trains the incumbent and each reference on ``n_seeds`` fresh seeds and compares them pairwise.

    Nothing was chosen on these seeds, so the gain carries no winner's curse. Its CI is Student's t on the
    paired differences' own SD; a claim is made where the CI leaves 0 out. The gain on each source of a
    mixture is beside it, by the same method.

    With ``horizons`` the reference ``tokens_against`` (the first of ``against`` if not named) also trains for
    that many times the tokens, on the same seeds. So the gain is told in tokens too: the same loss with 1/x
    of them. Its ELR is tuned anew at the longest horizon, on a line of ±½ log2 over the tuning seeds, and
    interpolated in between (:mod:`mup_tune.search.horizons`).
    """

    kind: Literal["confirm"] = "confirm"
    against: Annotated[list[str], Field(min_length=1), each_once("reference")]
    n_seeds: Annotated[int, Field(ge=2, le=100)] = 4
    horizons: Horizons = ()
    tokens_against: str | None = None

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
        """The reference that is trained at longer horizons."""
        return self.tokens_against or self.against[0]

    def seeds(self, context: Context) -> tuple[int, ...]:
        """1000, 1001, … without the plan's tuning seeds."""
        return swept_axis.fresh_seeds(context, FIRST_SEED, self.n_seeds)

    def most(self, expected: int, context: Context, state: State) -> int:
        """And the ELR line extended."""
        return expected + (horizons.extensions(context) if self.horizons else 0)

    @property
    def decides(self) -> tuple[int, int]:
        return self.n_seeds, 1

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context, seeds = asked.context, self.seeds(asked.context)
        settings = [state.incumbent, *(state.references[name] for name in self.against)]
        ours, *theirs = asked.rows([context.trials(each, seeds) for each in settings])
        result = Confirmation(
            comparisons=tuple(compared(name, ours, rows) for name, rows in zip(self.against, theirs, strict=True)),
            tokens=self._tokens(asked, state, ours),
        )
        return Conclusion(state, self.finding(state.incumbent, state.incumbent, result))

    def _tokens(self, asked: Asked, state: State, ours: Sequence[TrialResult]) -> TokenGain | None:
        if not self.horizons:
            return None
        context = asked.context
        longer = Longer.of(self.hardest, state.references[self.hardest], context.budget, self.horizons)
        horizons.train_lines(asked, [longer])
        return longer.gain(ours, asked.rows(longer.trials(context, self.seeds(context))))


def compared(name: str, ours: Sequence[TrialResult], theirs: Sequence[TrialResult]) -> Comparison:
    """The incumbent's rows against those of the reference ``name``, on every source of a mixture too."""
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

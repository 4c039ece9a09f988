"""The ``confirm`` stage: the incumbent against named Settings on seeds that tuned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from mup_tune import stats
from mup_tune.findings import Comparison, State
from mup_tune.findings.confirmation import Confirmation
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once, losses
from mup_tune.stats import Interval
from mup_tune.trial import TrialResult, source_loss, sources

FIRST_SEED = 1000


class Confirm(Stage):
    """Trains the incumbent and each reference on ``n_seeds`` fresh seeds and compares them pairwise.

    Nothing was chosen on these seeds, so the gain carries no winner's curse. Its CI is Student's t on the
    paired differences' own SD; a claim is made where the CI leaves 0 out. The gain on each source of a
    mixture is beside it, by the same method.
    """

    kind: Literal["confirm"] = "confirm"
    against: Annotated[list[str], Field(min_length=1), each_once("reference")]
    n_seeds: Annotated[int, Field(ge=2, le=100)] = 4

    @property
    def title(self) -> str:
        return f"Confirmation on fresh seeds against {', '.join(self.against)}"

    @property
    def requires(self) -> Sequence[str]:
        """References that earlier stages must have stored."""
        return tuple(self.against)

    def seeds(self, context: Context) -> tuple[int, ...]:
        """1000, 1001, … without the plan's tuning seeds."""
        return swept_axis.fresh_seeds(context, FIRST_SEED, self.n_seeds)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        settings = [state.incumbent, *(state.references[name] for name in self.against)]
        seeds = self.seeds(asked.context)
        ours, *theirs = asked.rows([asked.context.trials(each, seeds) for each in settings])
        comparisons = tuple(_compared(name, ours, rows) for name, rows in zip(self.against, theirs, strict=True))
        finding = self.finding(state.incumbent, state.incumbent, Confirmation(comparisons=comparisons))
        return Conclusion(state, finding)


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

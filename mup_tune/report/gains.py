"""What a run gained on fresh seeds: its claims, their headline, and its gains by place and reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mup_tune.findings import Comparison
from mup_tune.findings.validation import Validation
from mup_tune.report import claims as claimed
from mup_tune.report.claims import Claim
from mup_tune.report.plain import Names, names_of
from mup_tune.report.words import Headline
from mup_tune.run.verdict import last_confirmation
from mup_tune.stats.tokens import TokensSaved

if TYPE_CHECKING:  # `status` needs no pandas
    from mup_tune.run.view import RunView

PROXY = "the proxy"


class Gained(NamedTuple):
    """A comparison on fresh seeds; ``saved``: what it is worth in tokens, where that was measured."""

    comparison: Comparison
    seeds: int
    saved: TokensSaved | None


def claims_of(run: RunView) -> list[Claim]:
    """Of the last confirmation; none where the run has none."""
    confirmation = last_confirmation(run.findings)
    return claimed.claims_of(confirmation) if confirmation else []


def headline_of(run: RunView) -> Headline:
    """What heads the page of a run, and the sentences below it, in plain words for references."""
    return claimed.headline(run.findings, claims_of(run), len(run.plan.stages), run.live, names(run).long)


def names(run: RunView) -> Names:
    """The plain words of a run's references."""
    return names_of(run.findings, run.references, run.plan.proxy)


def gains_of(run: RunView) -> dict[tuple[str, str], Gained]:
    """By place and reference: those of the last confirmation, and those that a validation adds to them."""
    found = {
        (PROXY, each.comparison.reference): Gained(each.comparison, each.seeds, each.saved) for each in claims_of(run)
    }
    for finding in run.findings:
        if isinstance(finding.result, Validation):
            for at in finding.result.shapes:
                place = PROXY if at.is_proxy else at.shape.size
                for each in at.comparisons:
                    saved = at.tokens.saved if at.tokens and at.tokens.reference == each.reference else None
                    found.setdefault((place, each.reference), Gained(each, len(each.reference_losses), saved))
    return found

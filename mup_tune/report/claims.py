"""What the run claims: its comparisons on fresh seeds, and the headline that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mup_tune.findings import Comparison, Finding
from mup_tune.findings.confirmation import Confirmation, TokenGain
from mup_tune.report import formats, words
from mup_tune.report.parts import confirmation as said
from mup_tune.run.verdict import OUTCOMES, last_confirmation
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

MEASURES = "This run measures; it claims no gain, which takes a confirmation on fresh seeds."


@dataclass(frozen=True)
class Claim:
    """One comparison as the page tells it, in its stage's words. Losses are means over ``seeds`` seeds.

    ``saved``: the gain in tokens, where it was measured against this reference.
    """

    comparison: Comparison
    verdict: str
    candidate_loss: float | None
    reference_loss: float | None
    seeds: int
    saved: TokensSaved | None = None

    @property
    def short(self) -> str:
        """What the interval says; without one, the stage's own words."""
        return OUTCOMES.get(self.comparison.outcome, self.verdict)


def claims_of(finding: Finding) -> list[Claim]:
    """Mean losses are over the seeds where both sides ended."""
    tokens = _tokens(finding)
    saved = {tokens.reference: tokens.saved} if tokens else {}
    return [_claim(each, words.verdict(finding, each), saved.get(each.reference)) for each in finding.comparisons]


def _claim(comparison: Comparison, verdict: str, saved: TokensSaved | None) -> Claim:
    candidate, reference = comparison.candidate_losses, comparison.reference_losses
    both = [(a, b) for s, a in candidate.items() if a is not None and (b := reference.get(s)) is not None]
    means = [float(np.mean(side)) for side in zip(*both, strict=True)] if both else [None, None]
    return Claim(comparison, verdict, means[0], means[1], len(both), saved)


def headline(
    findings: Sequence[Finding], claims: list[Claim], wanted: int, live: bool, name: Callable[[str], str] = str
) -> words.Headline:
    """The gain named is that over the hardest reference it is shown over, if over the first of the plan.

    Args:
        findings: of the stages that have concluded, of ``wanted`` in the plan.
        claims: those of the last confirmation among them.
        live: whether a driver is at work.
        name: what a reference is called.
    """
    if claims:
        return _claimed(claims, _tokens(last_confirmation(findings)), name)
    concluded = len(findings)
    if not concluded and live:
        return words.Headline("Still in progress: no stage has concluded yet", "This page shows what was run so far.")
    if not concluded:
        return words.Headline("No findings: no stage of this run has concluded", "There is nothing to claim from it.")
    told = [found for each in findings if (found := words.headline(each))]
    if told and concluded == wanted:
        first, *others = told
        rest = [*(f"{each.title}." for each in others), *([] if first.below else [MEASURES])]
        return words.Headline(first.title, " ".join([first.below, *rest]).strip())
    done = "Tuned, not confirmed" if concluded == wanted else f"Interrupted after {concluded} of {wanted} stages"
    return words.Headline(
        f"{'Still in progress' if live else done}: no gain is claimed",
        "No confirmation stage on fresh seeds has concluded; what the stages below found is not yet a result.",
    )


def _tokens(finding: Finding | None) -> TokenGain | None:
    return finding.result.tokens if finding and isinstance(finding.result, Confirmation) else None


def _claimed(claims: list[Claim], tokens: TokenGain | None, name: Callable[[str], str]) -> words.Headline:
    measured = [(each, gain) for each in claims if (gain := each.comparison.gain) is not None]
    if not measured:
        lost = "; ".join(f"over {name(each.comparison.reference)}: {each.verdict}" for each in claims)
        return words.Headline("No gain could be measured", lost)
    hardest, gain = min(measured, key=lambda pair: pair[1].value)
    parts = [f"Gain {formats.mnat(gain.value)}, 95 % CI {formats.mnat_ci(gain)} mnat/token"]
    parts[0] += f", over {formats.plural(hardest.seeds, 'seed')}."
    if tokens is not None:
        parts.insert(0, f"{said.tokens(tokens, name)}.")
    better = hardest.comparison.outcome == "better"
    confirmed = [name(each.comparison.reference) for each, gain in measured if gain.above_0 and each is not hardest]
    missing = [name(each.comparison.reference) for each in claims if each.comparison.gain is None]
    if confirmed:
        parts.append(f"Confirmed {'by more ' if better else ''}over {', '.join(confirmed)}.")
    if missing:
        parts.append(f"Not measured against {', '.join(missing)}.")
    return words.Headline(_title(claims[0], hardest, gain, tokens, name), " ".join(parts))


def _title(first: Claim, hardest: Claim, gain: Interval, tokens: TokenGain | None, name: Callable[[str], str]) -> str:
    """What the run shows, in a line.

    The plan's first reference is what the tuning must beat. Where it does, another reference that lies ahead
    does not make the tuned Settings worse than before: both are said.
    """
    reference, outcome = name(hardest.comparison.reference), hardest.comparison.outcome
    amount = f"{1e3 * abs(gain.value):,.1f} mnat/token"
    head = {"better": "Confirmed over", "unclear": "No confirmed gain over"}.get(first.comparison.outcome)
    if hardest is not first and head and outcome in ("worse", "unclear") and outcome != first.comparison.outcome:
        ahead = f"{reference} is {amount} ahead" if outcome == "worse" else f"not told apart from {reference}"
        return f"{head} {name(first.comparison.reference)}; {ahead}"
    if hardest.comparison.same or (not gain.value and not gain.high - gain.low):
        return f"Nothing moved: the Settings are those of {reference}"
    if outcome == "worse":
        return f"Worse: {amount} higher loss than {reference}"
    if outcome != "better":
        return f"No confirmed gain over {reference}"
    if tokens and tokens.reference == hardest.comparison.reference and tokens.shown and tokens.saved:
        least = "less than " if tokens.saved.beyond else ""
        return f"Confirmed: the same loss as {reference}, with {least}1/{tokens.saved.factor.value:.2f} of the tokens"
    return f"Confirmed: {amount} lower loss than {reference}"

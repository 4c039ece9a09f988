"""The incumbent against references on fresh seeds."""

from __future__ import annotations

from mup_tune.findings import Comparison, Finding
from mup_tune.report.words import ci, nats, opposite


def summary(finding: Finding) -> list[str]:
    return [sentence for each in finding.comparisons for sentence in _sentences(finding, each)]


def _sentences(finding: Finding, comparison: Comparison) -> list[str]:
    """The verdict, and where the mean hides that some source got worse."""
    hidden = [
        f"On {source} alone the incumbent is worse than {comparison.reference} by {nats(opposite(gain))}."
        for source, gain in comparison.by_source.items()
        if gain.below_0
    ]
    return [f"Against {comparison.reference}: {verdict(finding, comparison)}.", *hidden]


def verdict(finding: Finding, comparison: Comparison) -> str:
    gain, sides = comparison.gain, (comparison.candidate_losses, comparison.reference_losses)
    if gain is None:
        ours, theirs = (sum(loss is None for loss in losses.values()) for losses in sides)
        word = "worse" if ours > theirs else "no gain shown"
        diverged = f"the incumbent diverged on {ours}, {comparison.reference} on {theirs} of {len(sides[0])} seeds"
        return f"{word}: {diverged}"
    match comparison.outcome:
        case "better":
            return f"confirmed: {gain.value:.4f} nats/token better {ci(gain)}"
        case "worse":
            return f"worse: by {nats(opposite(gain))}"
    return f"no gain shown: {nats(gain)}"

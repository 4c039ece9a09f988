"""The incumbent against references on fresh seeds."""

from __future__ import annotations

from collections.abc import Callable

from mup_tune.findings import Comparison, Finding
from mup_tune.findings.confirmation import Confirmation, TokenGain
from mup_tune.report.words import ci, nats, opposite, result_of


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, Confirmation)
    said = [sentence for each in finding.comparisons for sentence in _sentences(finding, each)]
    if result.tokens is not None:
        said.insert(0, f"{tokens(result.tokens)}.")
    return said


def tokens(gain: TokenGain, name: Callable[[str], str] = str) -> str:
    """The gain in tokens, a sentence without its end. ``name`` says what a reference is called."""
    saved, longest, reference = gain.saved, gain.horizons[-1].factor, name(gain.reference)
    if saved is None:
        return f"In tokens over {reference}: not known, a seed diverged or more tokens do not lower its loss"
    needs = f"needs {saved.factor.value:.2f} × {ci(saved.factor, '.2f')} the tokens for the same loss"
    if saved.beyond:
        needs = f"does not reach the same loss with {longest:.3g} × the tokens (95 % CI from {saved.factor.low:.2f})"
    found = "Tokens saved" if gain.shown else "No tokens saved that the seeds can show"
    return f"{'Tokens lost' if saved.factor.high < 1 else found}: {reference} {needs}"


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


def section(finding: Finding, anchor: str) -> str:
    """The gain in tokens, where the plan asked for longer horizons."""
    gain = result_of(finding, Confirmation).tokens
    if gain is None:
        return ""
    from mup_tune.report.figures.tokens import token_curve
    from mup_tune.report.figures.values import Mean
    from mup_tune.report.html import rendered

    curve = token_curve(gain, f"{anchor}-tokens")
    return rendered("confirmation.html", gain=gain, elr=finding.after.elr, mean=Mean.of, curve=curve)

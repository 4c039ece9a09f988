"""What the run claims: its comparisons on fresh seeds, and the headline that they add up to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mup_tune.findings import Comparison, Finding
from mup_tune.report import basins, formats
from mup_tune.run.tables import RunView

CONFIRM = "confirm"  # the stage kind that trains on fresh seeds; no other comparison makes a headline
VERDICTS = {
    "confirmed": "confirmed: the 95 % CI lies above 0",
    "worse": "worse: the 95 % CI lies below 0",
    "unclear": "not confirmed: the 95 % CI includes 0",
}


@dataclass(frozen=True)
class Claim:
    """One comparison as the page tells it; ``state`` is a key of :data:`VERDICTS` or "unmeasured"."""

    comparison: Comparison
    state: str
    candidate_loss: float | None
    reference_loss: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says; without one, the stage's own words."""
        return VERDICTS.get(self.state, self.comparison.verdict)


def claim(comparison: Comparison) -> Claim:
    """Mean losses are over the seeds where both sides ended; the interval alone decides the state."""
    candidate, reference = comparison.candidate_losses, comparison.reference_losses
    both = [(a, b) for s, a in candidate.items() if a is not None and (b := reference.get(s)) is not None]
    state = "unmeasured"
    if comparison.gain is not None:
        gain = comparison.gain
        state = "confirmed" if gain.low > 0 else "worse" if gain.high < 0 else "unclear"
    means = [float(np.mean(side)) for side in zip(*both, strict=True)] if both else [None, None]
    return Claim(comparison, state, means[0], means[1], len(both))


def confirmation(run: RunView) -> Finding | None:
    """The last confirmation: comparisons inside a tuning stage use the seeds that chose, and so prove nothing."""
    return next((each for each in reversed(run.findings) if each.kind == CONFIRM and each.comparisons), None)


def headline(run: RunView, claims: list[Claim]) -> tuple[str, str]:
    """(the headline, the sentence below it). The gain named is the one over the hardest reference."""
    if not run.findings:
        if run.live:
            return "Still in progress: no stage has concluded yet", "This page shows what was run so far."
        return "No findings: no stage of this run has concluded", "There is nothing to claim from it."
    checked = [basin for finding in run.findings for basin in finding.basins]
    if checked and all(finding.basins for finding in run.findings):
        basin = basins.leading(checked)
        others = [f"{each.param}: {each.verdict}: {each.why}." for each in checked if each is not basin]
        why = f"{basin.why[0].upper()}{basin.why[1:]}."
        return f"{basins.HEADLINES[basin.verdict]}: {basin.hp} under {basin.param}", " ".join([why, *others])
    told = [each.headline for each in run.findings if each.headline]
    if not claims and told and len(run.findings) == len(run.plan.stages):
        rest = "".join(f"{sentence}. " for sentence in told[1:])
        return told[0], f"{rest}This run measures; it claims no gain, which takes a confirmation on fresh seeds."
    if not claims:
        wanted = len(run.plan.stages)
        broken = f"Interrupted after {len(run.findings)} of {wanted} stages"
        done = "Tuned, not confirmed" if len(run.findings) == wanted else broken
        return f"{'Still in progress' if run.live else done}: no gain is claimed", (
            "No confirmation stage on fresh seeds has concluded; what the stages below found is not yet a result."
        )
    measured = [each for each in claims if each.comparison.gain is not None]
    if not measured:
        return "No gain could be measured", "; ".join(
            f"over {each.comparison.reference}: {each.comparison.verdict}" for each in claims
        )
    hardest = min(measured, key=lambda each: each.comparison.gain.value if each.comparison.gain else 0.0)
    reference, gain = hardest.comparison.reference, hardest.comparison.gain
    assert gain is not None
    amount = f"{1e3 * abs(gain.value):,.1f} mnat/token"
    title = {
        "confirmed": f"Confirmed: {amount} lower loss than {reference}",
        "worse": f"Worse: {amount} higher loss than {reference}",
    }.get(hardest.state, f"No confirmed gain over {reference}")
    parts = [f"Gain {formats.mnat(gain.value)}, 95 % CI {formats.mnat_ci(gain)} mnat/token"]
    parts[0] += f", over {formats.plural(hardest.seeds, 'seed')}."
    confirmed = [each.comparison.reference for each in measured if each.state == "confirmed" and each is not hardest]
    missing = [each.comparison.reference for each in claims if each.comparison.gain is None]
    if confirmed:
        parts.append(f"Confirmed {'by more ' if hardest.state == 'confirmed' else ''}over {', '.join(confirmed)}.")
    if missing:
        parts.append(f"Not measured against {', '.join(missing)}.")
    return title, " ".join(parts)

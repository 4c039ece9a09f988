"""What a run's last confirmation says of Settings: read by the report and by whoever carries them on."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.findings import Finding
from mup_tune.findings.confirmation import Confirmation

OUTCOMES = {
    "better": "confirmed: the 95 % CI lies above 0",
    "worse": "worse: the 95 % CI lies below 0",
    "unclear": "not confirmed: the 95 % CI includes 0",
}


def last_confirmation(findings: Sequence[Finding]) -> Finding | None:
    """Comparisons inside a tuning stage use the seeds that chose, and prove nothing."""
    confirmed = (each for each in reversed(findings) if isinstance(each.result, Confirmation))
    return next((each for each in confirmed if each.comparisons), None)

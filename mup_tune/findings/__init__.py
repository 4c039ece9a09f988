"""What a stage learned, as data: written by the stages, journalled with the run, drawn by the report.

Losses and gains are nats/token; a gain is positive where the loss falls. Offsets are log2 of the factor on an
axis' value, relative to the incumbent that the stage started from. Intervals are 95 % CIs. A module here that
defines a :class:`Result` adds a type of result.
"""

from mup_tune.findings.finding import Finding, State
from mup_tune.findings.result import (
    AxisFinding,
    Comparison,
    Decision,
    Outcome,
    Point,
    Reason,
    Result,
    Verdict,
    Verified,
)
from mup_tune.registry import import_modules

import_modules(__name__, __path__)

__all__ = [
    "AxisFinding",
    "Comparison",
    "Decision",
    "Finding",
    "Outcome",
    "Point",
    "Reason",
    "Result",
    "State",
    "Verdict",
    "Verified",
]

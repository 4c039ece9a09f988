"""Words and page parts of results: a module a ``Result.type``, found by its name.

The functions below are what :mod:`mup_tune.report.words` asks a module for. A module may leave out all but
``summary``: those below then stand in. Figures and templates are imported where a section is made, for
terminals use the words alone.
"""

from __future__ import annotations

from mup_tune.findings import AxisFinding, Comparison, Finding, Reason
from mup_tune.report.words import Gained, Headline, outcome

NOTES: dict[Reason, str] = {
    "fitted": "",
    "jointly": "alone its gain is not shown",
    "best": "its value is the best point",
    "not better": "",
    "too little": "adds too little beside the others",
    "noise unknown": "too few seeds to tell noise from gain",
    "all diverged": "every point diverged",
    "incumbent diverged": "the incumbent diverged",
    "horizon": "the run never leaves its init",
    "move failed": "the joint move was not better",
}


def summary(finding: Finding) -> list[str]:
    """What the stage learned, a sentence an entry."""
    raise NotImplementedError(f"results of type {finding.result.type!r} have no summary")


def headline(finding: Finding) -> Headline | None:
    """What a run that claims no gain puts on top of its page."""
    return None


def gained(finding: Finding) -> Gained | None:
    """What moving the incumbent brought."""
    return None


def note(finding: Finding, axis: AxisFinding) -> str:
    """What the numbers of its row leave unsaid."""
    extended = f"still at the edge after {axis.extended} extensions" if axis.decision == "edge" else ""
    horizon = "" if axis.horizon is None or axis.reason != "horizon" else f"η·λ·T = {axis.horizon:.3g}"
    return "; ".join(each for each in (NOTES[axis.reason], horizon, extended) if each)


def why(finding: Finding, axis: AxisFinding) -> str:
    """Why an axis is where it is, for tables."""
    return axis.reason


def verdict(finding: Finding, comparison: Comparison) -> str:
    """What a comparison came to, for tables."""
    return outcome(comparison)


def draws_comparisons(finding: Finding) -> bool:
    """Whether the section's figures hold the comparisons, so that the page draws no figure of them."""
    return False


def draws_axes(finding: Finding) -> bool:
    """Whether the section has a table of the axes, so that the page has none."""
    return False


def draws_points(finding: Finding) -> bool:
    """Whether the section's figures hold the points of the swept axes, so that the page draws no panels."""
    return False


def section(finding: Finding, anchor: str) -> str:
    """HTML beyond axes and comparisons; ids in it start with ``anchor``."""
    return ""

"""Words and page parts of results: a module a ``Result.type``, found by its name.

The functions below are what :mod:`mup_tune.report.words` asks a module for. A module may leave out all but
``summary``: those below then stand in. Figures and templates are imported where a section is made, for
terminals use the words alone.
"""

from __future__ import annotations

from mup_tune.findings import AxisFinding, Comparison, Finding
from mup_tune.report.words import Headline, outcome


def summary(finding: Finding) -> list[str]:
    """What the stage learned, a sentence an entry."""
    raise NotImplementedError(f"results of type {finding.result.type!r} have no summary")


def headline(finding: Finding) -> Headline | None:
    """What a run that claims no gain puts on top of its page."""
    return None


def why(finding: Finding, axis: AxisFinding) -> str:
    """Why an axis is where it is, for tables."""
    return axis.reason


def verdict(finding: Finding, comparison: Comparison) -> str:
    """What a comparison came to, for tables."""
    return outcome(comparison)


def draws_comparisons(finding: Finding) -> bool:
    """Whether the section's figures hold the comparisons, so that the page draws no figure of them."""
    return False


def draws_points(finding: Finding) -> bool:
    """Whether the section's figures hold the points of the swept axes, so that the page draws no panels."""
    return False


def section(finding: Finding, anchor: str) -> str:
    """HTML beyond axes and comparisons; ids in it start with ``anchor``."""
    return ""

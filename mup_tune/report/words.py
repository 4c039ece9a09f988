"""What a finding says. The phrases that parts share stand here once, and so does the way to a finding's part.

Figures, templates and tables are imported where a section is made, so that words cost a terminal nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

from mup_tune.findings import AxisFinding, Comparison, Finding, Result
from mup_tune.report import formats
from mup_tune.stats import Interval, Losses
from mup_tune.stats import mean as mean_loss

PARTS = f"{__package__}.parts"
BEST = "kept: its value is the best point"
OUTCOMES = {"better": "better", "worse": "worse", "unclear": "no difference shown"}

ResultT = TypeVar("ResultT", bound=Result)


class Headline(NamedTuple):
    """What a run that measures puts on top of its page, and a sentence below it where one belongs there."""

    title: str
    below: str = ""


class Gained(NamedTuple):
    """What a stage gained over where it began. ``fresh``: on seeds that chose nothing."""

    gain: Interval
    fresh: bool


def summary(finding: Finding) -> list[str]:
    """What the stage learned, a sentence an entry."""
    return list(_part(finding, "summary")(finding))


def headline(finding: Finding) -> Headline | None:
    """None where the result makes none."""
    found: Headline | None = _part(finding, "headline")(finding)
    return found


def gained(finding: Finding) -> Gained | None:
    """What moving the incumbent brought; None where nothing moved, or where nothing measured it."""
    found: Gained | None = _part(finding, "gained")(finding)
    return found


def note(finding: Finding, axis: AxisFinding) -> str:
    """What a table's numbers leave unsaid about an axis."""
    return str(_part(finding, "note")(finding, axis))


def why(finding: Finding, axis: AxisFinding) -> str:
    """Why an axis is where it is."""
    return str(_part(finding, "why")(finding, axis))


def verdict(finding: Finding, comparison: Comparison) -> str:
    """What a comparison came to, for its row in a table."""
    return str(_part(finding, "verdict")(finding, comparison))


def draws_comparisons(finding: Finding) -> bool:
    """Whether the section's figures hold the comparisons."""
    return bool(_part(finding, "draws_comparisons")(finding))


def draws_axes(finding: Finding) -> bool:
    """Whether the section has a table of the axes."""
    return bool(_part(finding, "draws_axes")(finding))


def draws_points(finding: Finding) -> bool:
    """Whether the section's figures hold the points of the swept axes."""
    return bool(_part(finding, "draws_points")(finding))


def section(finding: Finding, anchor: str) -> str:
    """HTML beyond axes and comparisons; ids in it start with ``anchor``."""
    return str(_part(finding, "section")(finding, anchor))


def _part(finding: Finding, name: str) -> Callable[..., Any]:
    """The function ``name`` of the result's part, or the one that all parts share.

    Raises:
        NotImplementedError: there is no such part.
    """
    module = f"{PARTS}.{finding.result.type}"
    if find_spec(module) is None:
        raise NotImplementedError(f"results of type {finding.result.type!r} need words: there is no {module}")
    found: Callable[..., Any] = getattr(import_module(module), name, None) or getattr(import_module(PARTS), name)
    return found


def result_of(finding: Finding, kind: type[ResultT]) -> ResultT:
    """The finding's result, which its part knows the type of."""
    assert isinstance(finding.result, kind)
    return finding.result


def ci(interval: Interval, form: str = ".4f") -> str:
    """``(95 % CI 0.0101 … 0.0145)``."""
    return formats.minus(f"(95 % CI {interval.low:{form}} … {interval.high:{form}})")


def nats(interval: Interval, form: str = ".4f") -> str:
    """Nats/token with their CI."""
    return f"{formats.minus(f'{interval.value:{form}}')} nats/token {ci(interval, form)}"


def p(value: float | None) -> str:
    """``p = 0.0123``; nothing where it is not known."""
    return "" if value is None else formats.minus(f"p = {value:.2g}")


def gain(interval: Interval | None) -> str:
    """A gain with its CI."""
    return "gain not known" if interval is None else f"gain {nats(interval)}"


def log2(interval: Interval) -> str:
    """A log2 offset with its CI."""
    return f"{formats.log2(interval.value)} log2 {ci(interval, '+.2f')}"


def opposite(interval: Interval) -> Interval:
    """A gain as a loss, or the other way round."""
    return Interval(-interval.value, -interval.high, -interval.low)


def loss(losses: Losses) -> str:
    """Mean over the seeds in nats/token."""
    value = mean_loss(losses)
    return "diverged" if value is None else f"{value:.4f}"


def most_sensitive(curvatures: Mapping[str, float]) -> str:
    """The three axes of the largest curvatures above 0, given in nats/token per (log2)²."""
    ranked = sorted((axis for axis, value in curvatures.items() if value > 0), key=lambda axis: -curvatures[axis])
    if not ranked:
        return "No curvature shown on any axis"
    units = [" mnat/token per (log2)²", "", ""]
    said = [f"{axis} ({1e3 * curvatures[axis]:.3g}{unit})" for axis, unit in zip(ranked, units, strict=False)]
    return f"Most sensitive: {', then '.join(said)}"


def change(axis: AxisFinding) -> str:
    return f"{axis.before:.4g} → {axis.after:.4g}"


def listed(numbers: Sequence[float]) -> str:
    return ", ".join(map(formats.value, numbers))


def outcome(comparison: Comparison) -> str:
    """What the CI of the gain says; without one, which side diverged."""
    if comparison.gain is not None:
        return OUTCOMES[comparison.outcome]
    ours, theirs = (mean_loss(side) is None for side in (comparison.candidate_losses, comparison.reference_losses))
    if ours and theirs:
        return "both diverged"
    if ours or theirs:
        side = comparison.candidate if ours else comparison.reference
        return f"{'worse' if ours else 'better'}: {side} diverged"
    return "not known: one seed cannot tell"

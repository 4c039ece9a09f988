"""Passes over a group of multipliers."""

from __future__ import annotations

from collections.abc import Iterable

from mup_tune.findings import AxisFinding, Comparison, Finding
from mup_tune.findings.multipliers import MultiplierPasses, Pass
from mup_tune.findings.result import sensitivities
from mup_tune.report.words import BEST, Headline, change, gain, result_of

QUIET = {"flat": "Flat, kept", "not identifiable": "Not identifiable, not swept"}


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, MultiplierPasses)
    said = []
    for number, each in enumerate(result.passes, 1):
        prefix = f"Pass {number}: " if result.most > 1 else ""
        said += [prefix + sentence for sentence in _pass(each)]
    first, last = result.passes[0], result.passes[-1]
    if any(axis.decision == "not identifiable" for axis in last.axes):
        said.append("Weight decay is not identifiable where η·λ·T < 1: the run never leaves its init.")
    if result.idle:
        said.append(f"Without an SSM branch (d_ssm = 0) these do nothing: {', '.join(result.idle)}.")
    if any(axis.points for axis in first.axes) and not first.noise_known:
        said.append("Too few seeds and points to tell noise from gain: nothing was moved.")
    if len(result.passes) > 1 and not last.moved:
        said.append(f"Pass {len(result.passes)} moved nothing, so it was the last.")
    return said


def _pass(done: Pass) -> Iterable[str]:
    for axis in done.axes:
        if axis.decision not in QUIET:
            yield f"{axis.axis}: {_why(done, axis)}."
    for decision, words in QUIET.items():
        if those := [axis.axis for axis in done.axes if axis.decision == decision]:
            yield f"{words}: {', '.join(those)}."
    for move in done.moves:
        taken = "taken" if move.taken else "not taken: the CI must lie above 0"
        yield f"Moved {move.label}: {gain(move.comparison.gain)}, {taken}."


def headline(finding: Finding) -> Headline | None:
    """The most sensitive axes; curvature in mnat/token per (log2)²."""
    axes = finding.axes
    if len({axis.axis for axis in axes if axis.points}) < 2:
        return None
    curvature = sensitivities(axes)
    ranked = sorted((axis for axis, value in curvature.items() if value > 0), key=lambda axis: -curvature[axis])
    if not ranked:
        return Headline("No curvature shown on any axis")
    units = [" mnat/token per (log2)²", "", ""]
    said = [f"{axis} ({1e3 * curvature[axis]:.3g}{unit})" for axis, unit in zip(ranked, units, strict=False)]
    return Headline(f"Most sensitive: {', then '.join(said)}")


def why(finding: Finding, axis: AxisFinding) -> str:
    return _why(result_of(finding, MultiplierPasses).passes[axis.pass_ - 1], axis)


def _why(done: Pass, axis: AxisFinding) -> str:
    said = f"best point {gain(axis.gain)}" + ("" if axis.p_value is None else f", p = {axis.p_value:.2g} after Holm")
    match axis.reason:
        case "horizon":
            return f"η·λ·T = {axis.horizon:.3g} < 1: the run never leaves its init, not swept"
        case "best":
            return BEST
        case "incumbent diverged":
            return "kept: the incumbent diverged, there is nothing to compare with"
        case "move failed":
            return f"{said}; the joint move was not better"
        case "fitted":
            edge = f"; still at the edge after {axis.extended} extensions" if axis.decision == "edge" else ""
            return f"{change(axis)} ({done.moves[-1].label}); {said}{edge}"
    return f"kept: {said}"


def verdict(finding: Finding, comparison: Comparison) -> str:
    return "taken" if comparison.outcome == "better" else "not better"

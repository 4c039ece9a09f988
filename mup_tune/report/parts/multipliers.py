"""Passes over a group of multipliers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mup_tune.findings import AxisFinding, Comparison, Finding
from mup_tune.findings.multipliers import Move, MultiplierPasses, Pass, Prediction
from mup_tune.findings.result import sensitivities
from mup_tune.report import formats
from mup_tune.report.formats import plural
from mup_tune.report.words import BEST, Gained, Headline, change, gain, most_sensitive, p, result_of
from mup_tune.stats import Interval

QUIET = {"flat": "Flat, kept", "not identifiable": "Not identifiable, not swept"}


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, MultiplierPasses)
    said = []
    for number, each in enumerate(result.passes, 1):
        prefix = f"Pass {number}: " if result.most > 1 else ""
        said += [prefix + sentence for sentence in _pass(each)]
    if not result.passes:
        return ["No multiplier has shown a curvature so far, so there is nothing to sweep."]
    first, last = result.passes[0], result.passes[-1]
    if any(axis.decision == "not identifiable" for axis in last.axes):
        said.append("Weight decay is not identifiable where η·λ·T < 1: the run never leaves its init.")
    if result.idle:
        said.append(f"Without an SSM branch (d_ssm = 0) these do nothing: {', '.join(result.idle)}.")
    if any(axis.points for axis in first.axes) and not first.noise_known:
        said.append("Too few seeds and points to tell noise from gain: nothing was moved.")
    if len(result.passes) > 1 and not last.taken:
        said.append(f"Pass {len(result.passes)} moved nothing, so it was the last.")
    return said


def _pass(done: Pass) -> Iterable[str]:
    for axis in done.axes:
        if axis.decision not in QUIET:
            yield f"{axis.axis}: {_why(done, axis)}."
    for decision, words in QUIET.items():
        if those := [axis.axis for axis in done.axes if axis.decision == decision]:
            yield f"{words}: {', '.join(those)}."
    if done.prediction is not None:
        yield from _predicted(done.prediction)
    for move in done.moves:
        yield f"On fresh seeds, moved {move.label}: {_measured(move)}; {_verdict(done, move)}."


def _predicted(prediction: Prediction) -> Iterable[str]:
    if not prediction.joint:
        yield "The curves ask for no move."
        return
    those = plural(len(prediction.joint), "multiplier")
    yield f"The curves ask {those} to move: predicted {gain(prediction.gain)}, if they do not act on one another."
    if not prediction.testable:
        yield f"Not tested: the fresh seeds show gains from about {prediction.detectable:.4f} nats/token on."


def _measured(move: Move) -> str:
    if move.comparison.gain is None:
        return "gain not known, for a seed diverged here or at the incumbent"
    return f"{gain(move.comparison.gain)}, {p(move.p_value)} after Bonferroni"


def _verdict(done: Pass, move: Move) -> str:
    if move == done.taken:
        return "taken"
    return "better, not the best" if move.better else "not better"


def headline(finding: Finding) -> Headline | None:
    """The most sensitive axes; curvature in mnat/token per (log2)²."""
    axes = finding.axes
    if len({axis.axis for axis in axes if axis.points}) < 2:
        return None
    return Headline(most_sensitive(sensitivities(axes)))


def gained(finding: Finding) -> Gained | None:
    """The sum of what each pass gained over its own start."""
    moves = [each.taken for each in result_of(finding, MultiplierPasses).passes if each.taken]
    taken = [gain for each in moves if (gain := each.comparison.gain)]
    if not taken:
        return None
    half = math.hypot(*(each.high - each.value for each in taken))
    value = sum(each.value for each in taken)
    return Gained(Interval(value, value - half, value + half), fresh=True)


def why(finding: Finding, axis: AxisFinding) -> str:
    return _why(result_of(finding, MultiplierPasses).passes[axis.pass_ - 1], axis)


def _why(done: Pass, axis: AxisFinding) -> str:
    said = f"best point {gain(axis.gain)}" + ("" if axis.p_value is None else f", {p(axis.p_value)} after Holm")
    if done.prediction and (optimum := done.prediction.optimum(axis.axis)):
        said += f"; shrunken optimum {formats.log2(optimum.offset)} log2"
    match axis.reason:
        case "horizon":
            return f"η·λ·T = {axis.horizon:.3g} < 1: the run never leaves its init, not swept"
        case "best":
            return BEST
        case "incumbent diverged":
            return "kept: the incumbent diverged, there is nothing to compare with"
        case "move failed":
            return f"{said}; the joint move was {'not better' if done.moves else 'too small to test'}"
        case "too little":
            return f"kept: {said}; too little beside the others' gain"
        case "fitted" | "jointly":
            edge = f"; still at the edge after {axis.extended} extensions" if axis.decision == "edge" else ""
            alone = "" if axis.reason == "fitted" else "; alone its gain is not shown"
            label = f" ({done.taken.label})" if done.taken else ""
            return f"{change(axis)}{label}; {said}{alone}{edge}"
    return f"kept: {said}"


def verdict(finding: Finding, comparison: Comparison) -> str:
    tested = [(done, move) for done in result_of(finding, MultiplierPasses).passes for move in done.moves]
    return next(_verdict(done, move) for done, move in tested if move.comparison == comparison)

"""RoPE bases, evaluated at multiples of the training length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mup_tune import stats
from mup_tune.findings import AxisFinding, Finding, Point
from mup_tune.findings.rope_bases import RopeBases
from mup_tune.report.figures.values import Mean, at_value, to_base
from mup_tune.report.formats import mnat
from mup_tune.report.formats import value as short
from mup_tune.report.words import BEST, Gained, Headline, gain, listed, loss, nats, p, result_of


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, RopeBases)
    axis, best = result.axis, result.axis.best
    factors = ", ".join(f"{curve.factor}x" for curve in result.lengths)
    said = [
        f"RoPE base: {why(finding, axis)}.",
        f"The mean loss at {factors} the training length decides. A plateau is expected, no "
        "bowl: no parabola is fitted, and only a trained base is taken.",
    ]
    if best is None:
        return said
    trained = {point.value: mean for point in axis.points if (mean := stats.mean(point.losses)) is not None}
    if result.not_told_apart:
        said.append(f"Not told apart from the best base, {short(best.value)}: {listed(result.not_told_apart)}.")
    elif len(trained) > 1:
        said.append(f"The best base, {short(best.value)}, is told apart from every other one that trained.")
    if lost := [point.value for point in axis.points if point.value not in trained]:
        said.append(f"Diverged on at least one seed, and so not to be chosen: {listed(lost)}.")
    worst = max(trained, key=trained.__getitem__)
    for base, word in {worst: "worst", best.value: "best"}.items():
        said.append(f"Loss of the {word} base, {short(base)}: {_at_each(result, base)} nats/token.")
    return [*said, *_gaps(result)]


def _at_each(result: RopeBases, base: float) -> str:
    found = ((curve.factor, at_value(curve.points, base)) for curve in result.lengths)
    return ", ".join(f"{factor}x {loss(point.losses)}" for factor, point in found)


def _gaps(result: RopeBases) -> Iterator[str]:
    """Loss at the longest length − at the training length, for the incumbent's and the chosen base."""
    before, after = result.axis.before, result.axis.after
    roles = {before: "the incumbent's base", after: "the chosen base"}
    roles = roles if len(roles) > 1 else {before: "the base kept"}
    gaps = ((result.gaps.get(base), role, base) for base, role in roles.items())
    told = "; ".join(f"{nats(gap, '+.4f')} at {role}, {short(base)}" for gap, role, base in gaps if gap)
    if told:
        longest = max(curve.factor for curve in result.lengths)
        yield f"Loss at {longest}x − loss at 1x, on the same text (below 0: longer context helps): {told}."


def headline(finding: Finding) -> Headline:
    axis = result_of(finding, RopeBases).axis
    before, after = short(axis.before), short(axis.after)
    bases = f"{short(axis.points[0].value)} … {short(axis.points[-1].value)}"
    if axis.after != axis.before:
        best = f"the best of {bases}, evaluated up to longer texts than trained on"
        return Headline(f"RoPE base {before} → {after}: {best}")
    if axis.decision == "flat" or axis.reason == "best":
        return Headline(f"RoPE base {before} kept: no other base of {bases} is shown to be better")
    return Headline(f"RoPE base {before} {why(finding, axis)}")


def gained(finding: Finding) -> Gained | None:
    """Mean over all lengths, on the seeds that chose it."""
    axis = result_of(finding, RopeBases).axis
    return Gained(axis.gain, fresh=False) if axis.after != axis.before and axis.gain else None


def why(finding: Finding, axis: AxisFinding) -> str:
    said = _reason(axis)
    if axis.decision != "edge" or axis.best is None:
        return said
    end = "smallest" if axis.best == axis.points[0] else "largest"
    return f"{said}; it is the {end} base trained, the optimum may lie beyond"


def _reason(axis: AxisFinding) -> str:
    best = short(axis.best.value) if axis.best else ""
    measured = "" if axis.p_value is None else f"{gain(axis.gain)}, {p(axis.p_value)} over all bases"
    match axis.reason:
        case "all diverged":
            return "kept: every base diverged"
        case "best":
            return BEST
        case "incumbent diverged":
            return "kept: the incumbent's diverged, there is nothing to compare with"
        case "noise unknown":
            return f"kept: {best} is lower, but one seed cannot tell noise from gain"
        case "not better":
            return f"kept: best base {best}, {measured}"
    return f"{short(axis.before)} → {short(axis.after)}: {measured}"


def draws_points(finding: Finding) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One base: loss and paired difference to the incumbent's, as text, at every length and as the mean."""

    base: float
    role: str
    taken: bool
    cells: list[tuple[str, str]]


def table(result: RopeBases) -> list[Row]:
    from mup_tune.report.figures.lengths import roles

    axis, named = result.axis, roles(result.axis)
    columns = [*(curve.points for curve in result.lengths), axis.points]
    cells = list(zip(*(_column(points, axis.before) for points in columns), strict=True))
    return [
        Row(
            base=point.value,
            role=", ".join(name for name, base in named.items() if base == point.value),
            taken=axis.after != axis.before and point.value == axis.after,
            cells=list(cells[place]),
        )
        for place, point in enumerate(axis.points)
    ]


def _column(points: Sequence[Point], incumbent: float) -> Iterator[tuple[str, str]]:
    for point, difference in zip(points, to_base(points, incumbent), strict=True):
        found, less = Mean.of(point.losses.values()), Mean.of(difference.values())
        error = "" if found.se is None else f" ± {found.se:.4f}"
        error_of_less = "" if less.se is None else f" ± {1e3 * less.se:.1f}"
        told = "reference" if point.value == incumbent else f"{mnat(less.value)}{error_of_less}"
        yield "diverged" if found.value is None else f"{found.value:.4f}{error}", told


def section(finding: Finding, anchor: str) -> str:
    from mup_tune.report.figures import lengths
    from mup_tune.report.html import rendered

    result = result_of(finding, RopeBases)
    axis, curves = result.axis, result.lengths
    return rendered(
        "lengths.html",
        factors=[curve.factor for curve in curves],
        seq_len=curves[0].seq_len // curves[0].factor,
        rows=table(result),
        title=finding.title,
        two_scales=lengths.linear_part(curves, axis.before) is not None,
        differences=lengths.by_base(curves, axis, f"{anchor}-lengths"),
        absolute=lengths.by_length(curves, axis, f"{anchor}-length-losses"),
    )

"""Shapes at equal parameters."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune import stats
from mup_tune.findings import Finding
from mup_tune.findings.shapes import ShapePoint, ShapeSet
from mup_tune.report.words import Headline, gain, loss, result_of


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, ShapeSet)
    return [*_ranked(result), *_caveats(result)]


def _ranked(result: ShapeSet) -> list[str]:
    points, ranking = result.points, result.ranking
    if not ranking.order:
        return ["Every Shape diverged at every ELR."]
    best, proxy = points[ranking.order[0]], points[0]
    said = [f"Best: {best.label}, {loss(best.losses)} nats/token"]
    if best is proxy:
        said[0] += "; it is the proxy itself."
    else:
        said[0] += f"; over the proxy, {proxy.label}: {gain(best.gain)}."
        said[0] += f" Picked as the best of {len(points)} on these seeds, it looks a little better than it is."
    if ranking.p_values:
        close = [points[index].label for index in ranking.within_noise]
        said.append(
            f"Within noise of it (paired over seeds, p ≥ {stats.SIGNIFICANT} after Holm over all pairs, for the data "
            f"picked the best): {', '.join(close) or 'none'}."
        )
    elif len(ranking.order) > 1:
        said.append("With one seed nothing tells noise from gain between Shapes.")
    on_front = sorted((point for point in points if point.on_front), key=lambda point: point.tokens_per_s)
    shown = ", ".join(f"{point.label} at {point.tokens_per_s:,.0f} tokens/s" for point in on_front)
    said.append(f"No other Shape is both better and faster than: {shown}.")
    return said


def _caveats(result: ShapeSet) -> list[str]:
    points = result.points
    members, sizes = ([point.members for point in points], [point.parameters for point in points])
    flops = [point.flops_per_token / points[0].flops_per_token for point in points]
    fewest, most = min(members), max(members)
    said = [
        "Speeds are of whole packs as they ran on this machine, and comparable only where members are equal; "
        f"here packs had {fewest if fewest == most else f'{fewest} to {most}, so the front is but a hint'}.",
        f"Every Shape trains on the same {result.total_tokens:,} tokens. Parameters differ by "
        f"{100 * (max(sizes) / min(sizes) - 1):.2g} % at most, for sizes are whole; FLOPs are not made equal: "
        f"{min(flops):.2f} to {max(flops):.2f} times the proxy's.",
        "Each loss is the lowest of its Shape's ELR points, which flatters all Shapes alike by a little."
        if result.elr_tuned
        else "ELR was not re-tuned: a gap may be a Shape's own, or its distance from its best ELR.",
    ]
    if edge := [point.label for point in points if point.at_edge]:
        said.append(f"Best at the edge of the ELR grid, so it may train better still: {', '.join(edge)}.")
    if lost := [point.label for point in points if stats.usable(point.losses) is None]:
        said.append(f"Diverged on a seed at every ELR: {', '.join(lost)}.")
    return said


def headline(finding: Finding) -> Headline:
    result = result_of(finding, ShapeSet)
    return Headline(_title(result, [result.points[index] for index in result.ranking.order]))


def _title(result: ShapeSet, ranked: Sequence[ShapePoint]) -> str:
    """``ranked``: the Shapes that trained, best first."""
    ranking, n = result.ranking, len(result.points)
    if not ranked:
        return f"Nothing to compare: all {n} Shapes diverged"
    best, *others = ranked
    if not others:
        return f"{result.prefix}{best.label} is the only one of {n} Shapes that trained"
    none = f"No {result.noun} stands out"
    if not ranking.p_values:
        return f"{none}: one seed cannot tell {best.label}, the lowest loss, from the others"
    if close := len(ranking.within_noise):
        if len(others) == 1:
            return f"{none}: {best.label} and {others[0].label} cannot be told apart"
        return f"{none}: {close} of {len(others)} others cannot be told from the best, {best.label}"
    lead = 1e3 * ((stats.mean(others[0].losses) or 0.0) - (stats.mean(best.losses) or 0.0))
    head = f"{result.prefix}{best.label} trains best at equal parameters"
    return f"{head}: {lead:.1f} mnat/token below {others[0].label}, the next"


def section(finding: Finding, anchor: str) -> str:
    """Loss against throughput, a map of ratios where they vary both ways, and a table, lowest loss first."""
    from mup_tune.report.figures import shapes, simplex
    from mup_tune.report.html import rendered

    points = result_of(finding, ShapeSet).points
    ranked = shapes.by_loss(points)
    return rendered(
        "shapes.html",
        title=finding.title,
        points=ranked,
        proxy=points[0],
        means=stats.means([point.losses for point in ranked]),
        tradeoff=shapes.tradeoff(points, f"{anchor}-tradeoff"),
        ratios=simplex.simplex(points, f"{anchor}-ratios") if simplex.is_plane(points) else None,
    )

"""A search over several axes at once."""

from __future__ import annotations

from dataclasses import dataclass

from mup_tune import stats
from mup_tune.findings import AxisFinding, Comparison, Finding, Verified
from mup_tune.findings.joint_search import Candidate, JointSearch, Search
from mup_tune.report.words import Gained, gain, loss, p, result_of

SHOWN = 10  # candidates in the table


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, JointSearch)
    search = result.search
    if search is None:
        return ["No axis has shown a curvature so far, so there is nothing to search."]
    lost = sum(stats.usable(each.losses) is None for each in search.candidates)
    said = [
        f"{len(search.candidates)} candidates on {len(search.centre_losses)} tuning seeds in a box of "
        f"±{search.radius:g} log2 over {len(search.axes)} axes, {lost} diverged; with their verification "
        f"{result.trials} trials and {result.flops:.3g} FLOPs."
    ]
    if search.best is not None:
        best, centre = loss(search.candidates[search.best].losses), loss(search.centre_losses)
        said.append(
            f"On the tuning seeds candidate {search.best + 1} is best: {best} nats/token, the incumbent {centre}."
        )
    said += [f"On fresh seeds {each.comparison.candidate}: {_measured(each)}." for each in result.finalists]
    taken = result.taken
    said.append(f"Taken: {taken.comparison.candidate}." if taken else f"The incumbent stays: {_why_not(result)}.")
    return said


def _measured(finalist: Verified) -> str:
    if finalist.comparison.gain is None:
        return "gain not known: a seed diverged here or at the incumbent"
    return f"{gain(finalist.comparison.gain)}, {p(finalist.p_value)} after Bonferroni"


def _why_not(result: JointSearch) -> str:
    return "no candidate beats it on fresh seeds" if result.finalists else "every candidate diverged"


def gained(finding: Finding) -> Gained | None:
    taken = result_of(finding, JointSearch).taken
    return Gained(taken.comparison.gain, fresh=True) if taken and taken.comparison.gain else None


def why(finding: Finding, axis: AxisFinding) -> str:
    result = result_of(finding, JointSearch)
    return f"{result.taken.comparison.candidate}, all axes together" if result.taken else _why_not(result)


def verdict(finding: Finding, comparison: Comparison) -> str:
    result = result_of(finding, JointSearch)
    if result.taken and result.taken.comparison == comparison:
        return "taken"
    better = any(each.better for each in result.finalists if each.comparison == comparison)
    return "better, not the best" if better else "not better"


def section(finding: Finding, anchor: str) -> str:
    search = result_of(finding, JointSearch).search
    return "" if search is None else search_section(search, anchor)


@dataclass(frozen=True)
class Ranked:
    """One of the best; ``number`` counts candidates in the order proposed."""

    number: int
    candidate: Candidate
    loss: float


def best_ten(search: Search) -> list[Ranked]:
    """The candidates with the lowest means, best first."""
    means = stats.means([candidate.losses for candidate in search.candidates])
    ranked = sorted((mean, index) for index, mean in enumerate(means) if mean is not None)
    return [Ranked(index + 1, search.candidates[index], mean) for mean, index in ranked[:SHOWN]]


def search_section(search: Search, anchor: str) -> str:
    """Every candidate in the order proposed, and a table of the best."""
    from mup_tune.report.figures import searches
    from mup_tune.report.html import rendered

    many = len(search.axes) > searches.PANELS
    return rendered(
        "searches.html",
        search=search,
        sampler=searches.SAMPLERS[search.sampler],
        centre=stats.mean(search.centre_losses),
        lost=sum(stats.usable(each.losses) is None for each in search.candidates),
        best=best_ten(search),
        order=searches.order_figure(search, f"{anchor}-search-order"),
        panels=None if many else searches.axis_panels(search, f"{anchor}-search-axes"),
    )

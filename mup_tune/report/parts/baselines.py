"""Settings that the incumbent is compared with."""

from __future__ import annotations

from mup_tune.findings import Finding
from mup_tune.findings.baselines import BaselineSet, RandomSearch
from mup_tune.report.parts import global_axes
from mup_tune.report.parts.joint_search import search_section
from mup_tune.report.words import loss, result_of


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, BaselineSet)
    said = [f"{each.name}: {' '.join(global_axes.sentences(each.result, each.settings))}" for each in result.tuned]
    return [*said, _random(result.random)] if result.random else said


def _random(drawn: RandomSearch) -> str:
    search, reason = drawn.search, "as the plan says"
    if drawn.flops:
        reason = f"what the {drawn.flops:.3g} FLOPs of the search for the incumbent buy"
    elif drawn.flops is not None:
        reason = "the least there can be, for no earlier stage has searched for the incumbent"
    said = f"random search: {len(search.candidates)} candidates around untuned on one seed each, {reason}"
    if search.best is None:
        return f"{said}; all diverged and untuned stands in."
    best = search.candidates[search.best]
    return f"{said}; candidate {search.best + 1} is best at {loss(best.losses)} nats/token."


def section(finding: Finding, anchor: str) -> str:
    """The plane of each baseline whose ELR and EWD were swept together, then the random search."""
    result = result_of(finding, BaselineSet)
    sections = [
        global_axes.plane_section(each.result, f"{anchor}-tuned{place}", f"ELR and EWD of {each.name}")
        for place, each in enumerate(result.tuned)
    ]
    return "".join([*sections, search_section(result.random.search, anchor) if result.random else ""])

"""Noise, seeds and power: how far seeds lie apart in every stage, and what its seeds could show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from mup_tune import stats
from mup_tune.findings import Comparison, Finding
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.validation import Validation
from mup_tune.report.figures.seeds import Strip
from mup_tune.report.gain_rows import decided_by, stage_name
from mup_tune.report.plain import Names
from mup_tune.run.view import RunView
from mup_tune.stats import Sigma


@dataclass(frozen=True)
class Power:
    """``sigma``: seed-to-seed SD of a paired difference. ``detectable``: what half of all runs show.

    ``found``: the smallest gain that was tested there on fresh seeds.
    """

    stage: str
    seeds: int
    sigma: float | None
    detectable: float | None
    found: float | None


def powers(run: RunView) -> list[Power]:
    """Of the stages whose noise is known, in order."""
    found = [_power(finding, run) for finding in run.findings]
    return [each for each in found if each.sigma is not None]


def _power(finding: Finding, run: RunView) -> Power:
    tested = _tested(finding)
    gains = [each.gain.value for each in tested if each.gain is not None]
    seeds = min((len(each.candidate_losses) for each in tested), default=len(run.plan.seeds))
    sigma = finding.sigma_delta if finding.sigma_delta is not None else _spread(tested)
    able = None if sigma is None or not tested else stats.detectable(Sigma(sigma, inf), seeds, len(tested))
    return Power(stage_name(finding), seeds, sigma, able, min(gains, default=None))


def _tested(finding: Finding) -> tuple[Comparison, ...]:
    return tuple(each for each in decided_by(finding) if len(each.candidate_losses) > 1 and not each.same)


def _spread(tested: tuple[Comparison, ...]) -> float | None:
    """The largest σ_Δ of the comparisons, from their own differences."""
    found = [stats.sigma_delta([ours, theirs]) for each in tested for ours, theirs in _usable(each)]
    return max((each.value for each in found if each), default=None)


def _usable(each: Comparison) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    ours, theirs = stats.usable(each.candidate_losses), stats.usable(each.reference_losses)
    if ours is not None and theirs is not None:
        yield ours, theirs


def strips(run: RunView, names: Names) -> list[Strip]:
    """The comparisons of confirmations and larger Shapes, which have seeds of their own."""
    found = []
    for finding in run.findings:
        if isinstance(finding.result, Confirmation):
            found += [Strip(f"over {names.short(each.reference)}", each) for each in finding.result.comparisons]
        if isinstance(finding.result, Validation):
            for at in finding.result.larger:
                found += [
                    Strip(f"{at.shape.size}, over {names.short(each.reference)}", each) for each in at.comparisons
                ]
    return [each for each in found if len(each.differences) > 1]

"""The gains of a run as rows of figures: where they came from, what is claimed, and at which sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mup_tune.findings import Comparison, Finding
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.joint_search import JointSearch
from mup_tune.findings.multipliers import MultiplierPasses
from mup_tune.findings.surface import ResponseSurface
from mup_tune.findings.validation import Validation
from mup_tune.report import words
from mup_tune.report.figures.forest import Row
from mup_tune.report.figures.waterfall import Step
from mup_tune.report.plain import Names, same
from mup_tune.run.verdict import last_confirmation
from mup_tune.run.view import RunView
from mup_tune.stats.tokens import TokensSaved

FRESH, INSIDE = "on fresh seeds, at the proxy", "inside stages"


def by_size(run: RunView) -> list[Row]:
    """The gain over the plan's first reference at the proxy and, where it was measured, at larger Shapes."""
    confirmation, rows = last_confirmation(run.findings), list[Row]()
    if confirmation is not None:
        first = confirmation.comparisons[0]
        rows.append(Row(f"proxy, {run.plan.proxy.size}", first.gain, saved=_saved(confirmation).get(first.reference)))
    for finding in run.findings:
        if isinstance(finding.result, Validation):
            shapes = finding.result.larger if rows else finding.result.shapes
            for at in shapes:
                label = f"{'proxy, ' if at.is_proxy else ''}{at.shape.size}"
                rows.append(Row(label, at.claim.gain, saved=at.tokens.saved if at.tokens else None))
    return [row for row in rows if row.interval is not None]


def all_claims(run: RunView, names: Names) -> list[Row]:
    """Every comparison of the run: confirmations, larger Shapes, then the tests that stages decided by."""
    rows = [row for finding in run.findings for row in _rows(finding, names)]
    return sorted(rows, key=lambda row: row.group == INSIDE)


def _rows(finding: Finding, names: Names) -> Iterator[Row]:
    result = finding.result
    if isinstance(result, Validation):
        for at in result.larger:
            for each in at.comparisons:
                saved = at.tokens.saved if at.tokens and at.tokens.reference == each.reference else None
                yield Row(f"over {names.short(each.reference)}", each.gain, f"carried to {at.shape.size}", saved)
    elif isinstance(result, Confirmation):
        saved_by = _saved(finding)
        for each in result.comparisons:
            yield Row(f"over {names.short(each.reference)}", each.gain, FRESH, saved_by.get(each.reference))
    else:
        for each in decided_by(finding):
            yield Row(f"{stage_name(finding)}: {each.candidate}", each.gain, INSIDE)


def decided_by(finding: Finding) -> Sequence[Comparison]:
    """The comparisons on seeds that tuned nothing: those that a stage took its move by, or that it claims."""
    if isinstance(finding.result, Validation):
        return [each for at in finding.result.larger for each in at.comparisons]
    if isinstance(finding.result, MultiplierPasses):
        return [move.comparison for each in finding.result.passes for move in each.moves]
    if isinstance(finding.result, ResponseSurface):
        return [finding.result.moved] if finding.result.moved else []
    return finding.comparisons if isinstance(finding.result, Confirmation | JointSearch) else []


def _saved(finding: Finding) -> dict[str, TokensSaved | None]:
    result = finding.result
    tokens = result.tokens if isinstance(result, Confirmation) else None
    return {tokens.reference: tokens.saved} if tokens else {}


def stage_name(finding: Finding) -> str:
    """The stage's key without its number."""
    number, _, name = finding.stage.partition("-")
    return name if number.isdigit() and name else finding.stage


def steps(run: RunView, names: Names) -> list[Step]:
    """What each stage on the path gained, in order, and what the confirmation says of the whole."""
    found = [
        Step(stage_name(each), gained.gain, gained.fresh)
        for each in run.findings
        if each.on_path and (gained := words.gained(each))
    ]
    confirmation = last_confirmation(run.findings)
    if not found or confirmation is None:
        return found
    first, *others = confirmation.comparisons
    start = [each for each in others if _is_start(run, each)]
    for each in (first, *start):
        if each.gain is not None:
            found.append(Step(f"confirmed over {names.short(each.reference)}", each.gain, fresh=True, whole=True))
    return found


def _is_start(run: RunView, comparison: Comparison) -> bool:
    """Whether the reference is what the run started from, so that the gain over it is the whole of it."""
    reference = run.references.get(comparison.reference)
    return reference is not None and same(reference, run.plan.start)

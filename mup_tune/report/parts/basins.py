"""Where the optimum of one hyperparameter lies at every size."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune import stats
from mup_tune.findings import Comparison, Finding
from mup_tune.findings.basins import TOLERANCE, Basin, Basins, BasinSize
from mup_tune.report.words import Headline, ci, log2, loss, outcome, result_of

HEADLINES = {"pass": "Transfers", "fail": "Does not transfer", "inconclusive": "Transfer not shown"}
WHERE = {"pass": "inside", "fail": "wholly outside", "inconclusive": "neither inside nor wholly outside"}
MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}
NO_REGRET = {
    None: "",
    "outside the grid": "the smallest size's optimum lies outside this size's grid",
    "diverged": "it diverges at or beside the smallest size's optimum",
}


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, Basins)
    said = [
        f"Every size trains on the same {result.total_tokens:,} tokens ({result.steps:,} steps): "
        "a larger one sees fewer tokens a parameter."
    ]
    for basin in result.basins:
        said.append(f"{_judged(basin)}.")
        first, last = basin.sizes[0], basin.sizes[-1]
        if last.regret is not None:
            cost = f"{last.regret.value:.4f} nats/token at {last.label} {ci(last.regret)}"
            said.append(f"{basin.param}: the optimum of {first.label} costs {cost}.")
    return [*said, _absolute(result)] if result.comparisons else said


def _judged(basin: Basin) -> str:
    return f"{basin.param}: {basin.verdict}: {drift(basin)}"


def drift(basin: Basin) -> str:
    """What the verdict rests on."""
    first, last = basin.sizes[0], basin.sizes[-1]
    if last.drift is None:
        lost = first if first.optimum is None else last
        return f"at {lost.label} {_no_optimum(lost)}"
    moved = f"the optimum of {basin.hp} moves by {log2(last.drift)} from {first.label} to {last.label}"
    return f"{moved}, {WHERE[basin.verdict]} ±{TOLERANCE:g}"


def _no_optimum(size: BasinSize) -> str:
    match size.no_optimum:
        case "edge":
            return f"the best point is still at the edge of the grid after {size.extended} extensions"
        case "no fit":
            return "no parabola fits: too flat, too noisy or too close to divergence"
    return size.no_optimum or ""


def note(size: BasinSize) -> str:
    """Why something is missing in a size's row; empty where nothing is."""
    return "; ".join(each for each in (_no_optimum(size), NO_REGRET[size.no_regret]) if each)


def _absolute(result: Basins) -> str:
    """The tuned losses side by side: transfer is no merit where every size trains worse."""
    labels = [size.label for size in result.basins[0].sizes]
    ahead = [_ahead(each) for each in result.comparisons if not each.same]
    every = "every size" if len(ahead) == len(labels) else "every size where the two differ"
    counted = [(word, ahead.count(word)) for word in ("worse", "better") if word in ahead]
    where = [f"{word} than sp at {every if n == len(ahead) else f'{n} of {len(ahead)} sizes'}" for word, n in counted]
    head = f"mup trains {' and '.join(where)}" if where else "no size tells mup and sp apart"
    losses = ", ".join(
        f"{label} {loss(each.candidate_losses)} and {loss(each.reference_losses)}"
        for label, each in zip(labels, result.comparisons, strict=True)
    )
    return f"Tuned best losses: {head} (mup and sp, nats/token: {losses})."


def _ahead(comparison: Comparison) -> str | None:
    """Whether mup trains better or worse: what the CI says, or where one side alone diverged."""
    if comparison.gain is not None:
        return comparison.outcome
    mup, sp = (stats.mean(side) for side in (comparison.candidate_losses, comparison.reference_losses))
    return None if (mup is None) == (sp is None) else "worse" if mup is None else "better"


def headline(finding: Finding) -> Headline | None:
    basins = result_of(finding, Basins).basins
    basin = leading(basins)
    why, others = drift(basin), [f"{_judged(each)}." for each in basins if each is not basin]
    title = f"{HEADLINES[basin.verdict]}: {basin.hp} under {basin.param}"
    return Headline(title, " ".join([f"{why[0].upper()}{why[1:]}.", *others]))


def leading(basins: Sequence[Basin]) -> Basin:
    """The one a reader came for: mup, or the only one there is."""
    return next((basin for basin in basins if basin.param == "mup"), basins[0])


def verdict(finding: Finding, comparison: Comparison) -> str:
    return "one model: multipliers of 1 at their base Shape are sp" if comparison.same else outcome(comparison)


def section(finding: Finding, anchor: str) -> str:
    from mup_tune.report.figures import basins as figures
    from mup_tune.report.html import rendered

    basins = result_of(finding, Basins).basins
    return rendered(
        "basins.html",
        basins=basins,
        marks=MARKS,
        tolerance=f"{TOLERANCE:g}",
        drift=drift,
        note=note,
        optimum=figures.optimum,
        best_loss=figures.best_loss,
        panels=figures.panels(basins, f"{anchor}-basin"),
        losses=figures.best_losses(basins, f"{anchor}-best"),
    )

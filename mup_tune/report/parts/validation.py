"""What is left of a gain at larger Shapes."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.findings import Comparison, Finding
from mup_tune.findings.basins import BasinSize
from mup_tune.findings.validation import AtShape, Trend, Validation
from mup_tune.report import formats
from mup_tune.report.parts import confirmation
from mup_tune.report.words import Headline, log2, nats, opposite, result_of

TITLES = {"pass": "It holds", "fail": "It does not hold", "inconclusive": "Not shown to hold everywhere"}
OUTCOMES = {
    "better": "the gain is shown",
    "worse": "the tuned Settings are worse",
    "unclear": "no difference is shown",
    "unmeasured": "nothing could be measured",
}


def summary(finding: Finding) -> list[str]:
    """The verdict, a paragraph a Shape, and the trends."""
    result = result_of(finding, Validation)
    places = zip(result.shapes, result.elr.sizes, strict=True)
    shapes = [" ".join(_at(finding, at, size)) for at, size in places]
    return [_verdict(result), *shapes, *map(_trend, result.trends)]


def headline(finding: Finding) -> Headline:
    result = result_of(finding, Validation)
    return Headline(f"{TITLES[result.verdict]}: the gain over {result.reference} at larger Shapes", _verdict(result))


def _verdict(result: Validation) -> str:
    """What is shown where, in one sentence."""
    there: dict[str, list[str]] = {}
    for at in result.larger:
        there.setdefault(at.claim.outcome, []).append(at.shape.size)
    told = [f"{said} at {_listed(there[outcome])}" for outcome, said in OUTCOMES.items() if outcome in there]
    return f"{TITLES[result.verdict]}: over {result.reference}, {'; '.join(told)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _at(finding: Finding, at: AtShape, size: BasinSize) -> list[str]:
    """The sentences on one Shape."""
    first, *others = (f"against {each.reference}: {verdict(finding, each)}." for each in at.comparisons)
    here = f"{'the proxy, ' if at.is_proxy else ''}{at.shape.size} ({at.parameters:,} parameters)"
    said = [f"At {here}, {first}", *(f"A{other[1:]}" for other in others)]
    if at.tokens is not None:
        said.append(f"{confirmation.tokens(at.tokens)}.")
    if size.drift is not None:
        told = f"The best ELR of the tuned Settings drifts by {log2(size.drift)} from the proxy's"
        span = size.points[-1].offset - size.points[0].offset
        unknown = size.drift.high - size.drift.low > span
        said.append(f"{told}{', which is not known from so few seeds' if unknown else ''}.")
    regret = regret_of(at)
    return [*said, f"{regret[0].upper()}{regret[1:]}."] if regret else said


def regret_of(at: AtShape) -> str:
    """What re-tuning there would bring, without the sentence's start and end; "" where it was not tried."""
    if at.retuned is None:
        return ""
    if at.retuned.prediction is None:
        return "too little is known of the noise to re-tune"
    found = at.retuned.comparison
    if found is None:
        return "nothing is left to re-tune"
    if found.gain is None:
        return "the re-tuned Settings could not be compared, a seed diverged"
    if found.outcome == "better":
        return f"re-tuning there gains {nats(found.gain)}"
    if found.outcome == "worse":
        return f"re-tuning there loses {nats(opposite(found.gain))}"
    return f"re-tuning there is not shown to gain: {nats(found.gain)}"


def _trend(trend: Trend) -> str:
    slope = f"{formats.mnat(trend.slope.value)} mnat/token"
    bounds = f"(95 % CI {formats.mnat(trend.slope.low)} … {formats.mnat(trend.slope.high)})"
    return f"Over {trend.sizes} sizes the gain changes by {slope} {bounds} with every doubling of the {trend.along}."


def verdict(finding: Finding, comparison: Comparison) -> str:
    return confirmation.verdict(finding, comparison)


def section(finding: Finding, anchor: str) -> str:
    from mup_tune.report.figures.basins import panels
    from mup_tune.report.figures.forest import Row, forest
    from mup_tune.report.html import rendered

    result = result_of(finding, Validation)
    rows = [Row(each.shape.size, each.claim.gain) for each in result.shapes if each.claim.gain is not None]
    gains = f"Gain over {result.reference} at every Shape"
    return rendered(
        "validation.html",
        result=result,
        gains=forest(rows, f"{anchor}-gains", gains) if rows else None,
        lines=panels((result.elr, result.reference_elr), f"{anchor}-elr"),
        sizes=list(zip(result.shapes, result.elr.sizes, result.reference_elr.sizes, strict=True)),
        regret_of=regret_of,
        verdict=lambda comparison: verdict(finding, comparison),
        trends=[_trend(trend) for trend in result.trends],
        listed=_listed,
    )

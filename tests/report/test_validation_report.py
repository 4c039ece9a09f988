"""The section of a validation: numbers of the finding in the table, outcomes in the words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_run import SHAPE, comparison, token_gain, write_run
from test_basins import basin

from mup_tune.findings import Finding
from mup_tune.findings.multipliers import Prediction
from mup_tune.findings.validation import AtShape, Retuned, Trend, Validation
from mup_tune.report import words
from mup_tune.report.page import render
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.shape import scaled
from mup_tune.stats import Interval

START, SEEDS = untuned(SHAPE), (10, 11, 12)
SHOWN, UNCLEAR, WORSE = Interval(0.0412, 0.03, 0.05), Interval(0.004, -0.01, 0.02), Interval(-0.03, -0.04, -0.02)


def at(width: int, gain: Interval | None, regret: Interval | None = None, **fields: object) -> AtShape:
    shape = scaled(SHAPE, 32 * width)
    return AtShape(
        shape=shape,
        width=width,
        depth=1,
        parameters=shape.parameters(),
        comparisons=(comparison("elr-tuned", gain, SEEDS), comparison("published", SHOWN, SEEDS)),
        retuned=Retuned(prediction=NOTHING, comparison=regret and comparison("incumbent", regret, SEEDS, "re-tuned")),
        **fields,
    )


NOTHING = Prediction(optima=(), gain=Interval(0.0, 0.0, 0.0), detectable=0.01)


def found(*shapes: AtShape, **fields: object) -> Finding:
    result = Validation(
        shapes=shapes,
        elr=basin("tuned", 0.1, "pass"),
        reference_elr=basin("elr-tuned", 0.4, "inconclusive"),
        axes=("key", "embedding"),
        **fields,
    )
    named = [
        size.model_copy(update={"label": each.shape.size}) for size, each in zip(result.elr.sizes, shapes, strict=False)
    ]
    result = result.model_copy(update={"elr": result.elr.model_copy(update={"sizes": tuple(named)})})
    return Finding(
        stage="05-validate", kind="validate", title="Does it hold?", before=START, after=START, on_path=False,
        result=result,
    )  # fmt: skip


def shown(folder: Path, finding: Finding) -> str:
    return re.sub(r"\s+", " ", render(load_run(write_run(folder / "run", (finding,), {}))))


def test_the_table_has_every_shape_with_its_gains_tokens_drift_and_regret(tmp_path: Path) -> None:
    gain = token_gain("elr-tuned")
    shapes = (at(1, SHOWN, tokens=gain), at(2, UNCLEAR, Interval(0.0021, 0.001, 0.003), tokens=gain), at(4, None))
    shapes = (*shapes[:2], shapes[2].model_copy(update={"tokens": gain.model_copy(update={"saved": None})}))
    page = shown(tmp_path, found(*shapes))
    assert "d32 L2 <small>the proxy</small>" in page
    for each in shapes:
        assert f'<td class="n">{each.parameters:,}</td>' in page
    assert "+41.2 <small>+30.0 to +50.0</small>" in page
    assert "+4.0 <small>−10.0 to +20.0</small>" in page
    assert f"{gain.saved.factor.value:.2f} × <small>" in page
    assert "+2.1 <small>+1.0 to +3.0</small>" in page
    assert "nothing is left to re-tune" in page
    assert "if ELR, key and embedding were tuned anew" in page
    assert "Gain over elr-tuned at every Shape" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("gains", "title", "verdict"),
    [
        ((SHOWN, SHOWN), "It holds", "the gain is shown at d64 L2 and d128 L2."),
        ((SHOWN, UNCLEAR), "Not shown to hold everywhere", "the gain is shown at d64 L2; no difference is shown at d"),
        ((SHOWN, WORSE), "It does not hold", "the gain is shown at d64 L2; the tuned Settings are worse at d128 L2."),
        ((None, SHOWN), "Not shown to hold everywhere", "nothing could be measured at d64 L2."),
    ],
)
def test_the_verdict_names_what_is_shown_where(gains, title: str, verdict: str) -> None:
    finding = found(at(1, SHOWN), *(at(2 * n, gain) for n, gain in enumerate(gains, 1)))
    told = words.headline(finding)
    assert told is not None
    assert told.title == f"{title}: the gain over elr-tuned at larger Shapes"
    assert told.below == words.summary(finding)[0]
    assert verdict in words.summary(finding)[0]


def test_a_drift_whose_interval_is_wider_than_the_grid_is_not_known() -> None:
    finding = found(at(1, SHOWN), at(2, SHOWN))
    assert isinstance(finding.result, Validation)
    sizes = finding.result.elr.sizes
    wide = sizes[1].model_copy(update={"drift": Interval(-0.1, -3.5, 2.5)})
    line = finding.result.elr.model_copy(update={"sizes": (sizes[0], wide, *sizes[2:])})
    finding = finding.model_copy(update={"result": finding.result.model_copy(update={"elr": line})})
    assert any("which is not known from so few seeds" in each for each in words.summary(finding))


def test_drift_regret_and_slope_are_sentences() -> None:
    trend = Trend(along="width", slope=Interval(-0.0103, -0.02, -0.001), sizes=4)
    said = words.summary(found(at(1, SHOWN), at(2, SHOWN, UNCLEAR), at(4, SHOWN, SHOWN), trends=(trend,)))
    assert said[-1] == (
        "Over 4 sizes the gain changes by −10.3 mnat/token (95 % CI −20.0 … −1.0) with every doubling of the width."
    )
    better = "confirmed: 0.0412 nats/token better (95 % CI 0.0300 … 0.0500)"
    assert said[2] == (
        f"At d64 L2 ({scaled(SHAPE, 64).parameters():,} parameters), against elr-tuned: {better}. "
        f"Against published: {better}. "
        "The best ELR of the tuned Settings drifts by −0.10 log2 (95 % CI −0.30 … +0.20) from the proxy's. "
        "Re-tuning there is not shown to gain: 0.0040 nats/token (95 % CI −0.0100 … 0.0200)."
    )

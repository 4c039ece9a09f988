"""The ``validate`` stage: what is left of a gain at larger Shapes, the reference re-tuned there."""

from __future__ import annotations

from math import exp, log, log2

import pytest
from landscapes import SHAPE, START, Landscape, bowl, context, counts, drive, title
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.findings import Finding, State
from mup_tune.findings.validation import AtShape, Validation
from mup_tune.report.words import summary
from mup_tune.search.stages.validate import Validate
from mup_tune.shape import scaled

BETTER = START.scaled({"key": 2.0})
GOOD_KEY = bowl({"key": 1.0, "elr": 0.0}, curvature=0.08)  # BETTER gains 0.04
OTHER = START.scaled({"key": 0.5})
REFERENCES = {"tuned untuned": START, "other": OTHER}
SLOPE = 0.1  # nats/token that e times the tokens gain


def validated(landscape: Landscape, incumbent=BETTER, sensitivity=None, **fields) -> tuple[Finding, Validation]:
    stage = Validate(against=["tuned untuned", "other"], **fields)
    driven = drive(stage, landscape, context(), incumbent, REFERENCES, sensitivity=sensitivity)
    expected, most = counts(stage, context(), State(incumbent, REFERENCES, sensitivity or {}))
    assert len(driven.known) <= most
    assert expected <= most
    assert driven.conclusion.state.incumbent == incumbent
    found = driven.conclusion.finding
    assert Finding.model_validate_json(found.model_dump_json()) == found
    assert isinstance(found.result, Validation)
    return found, found.result


def quiet(**fields) -> Landscape:
    return Landscape(GOOD_KEY, noise=1e-4, **fields)


def gains(result: Validation) -> list[float]:
    found = [each.claim.gain for each in result.shapes]
    return [round(gain.value, 2) for gain in found if gain is not None]


def test_the_shapes_are_the_proxy_and_its_multiples_in_width_and_depth() -> None:
    _, result = validated(quiet(), widths=(2, 4), depths=(1.5,))
    assert [(at.width, at.depth, at.shape.d_model, at.shape.n_layers) for at in result.shapes] == [
        (1, 1, 32, 2),
        (2, 1, 64, 2),
        (4, 1, 128, 2),
        (1, 1.5, 32, 3),
    ]
    assert [at.parameters for at in result.shapes[1:3]] == [scaled(SHAPE, width).parameters() for width in (64, 128)]
    assert result.verdict == "pass"
    assert gains(result) == [0.04] * 4
    assert [each.reference for each in result.shapes[1].comparisons] == ["tuned untuned", "other"]


def test_a_gain_that_fades_is_not_claimed_and_one_that_turns_fails() -> None:
    def fading(at, shape) -> float:
        return 0.04 * at["key"] * (shape.d_model == 64) + 0.08 * at["key"] * (shape.d_model == 128)

    found, result = validated(quiet(larger=fading), widths=(2,), depths=(2,))
    assert result.verdict == "inconclusive"
    assert summary(found)[0] == (
        "Not shown to hold everywhere: over tuned untuned, the gain is shown at d32 L4; "
        "no difference is shown at d64 L2."
    )
    found, result = validated(quiet(larger=fading), widths=(2, 4), depths=())
    assert result.verdict == "fail"
    assert title(found) == "It does not hold: the gain over tuned untuned at larger Shapes"
    assert "the tuned Settings are worse at d128 L2" in summary(found)[0]


def test_the_first_reference_has_its_elr_re_tuned_at_every_shape_and_the_incumbent_is_carried() -> None:
    """Where the best ELR doubles with the width, a carried reference would be 0.04 worse."""

    def drifting(at, shape) -> float:
        away = log2(shape.d_model / 32)
        return 0.04 * ((at["elr"] - away) ** 2 - at["elr"] ** 2)

    found, result = validated(quiet(larger=drifting), widths=(2,), depths=())
    assert gains(result) == [0.04, 0.0]
    carried = result.shapes[1].comparisons[1]
    assert carried.gain is not None
    assert carried.gain.value == pytest.approx(0.16, abs=0.01)  # both carried: 0.04 · (2² − 0²)
    assert result.elr.sizes[1].drift is not None
    assert result.elr.sizes[1].drift.value == pytest.approx(1.0, abs=0.05)
    assert result.reference_elr.sizes[1].drift.value == pytest.approx(1.0, abs=0.05)
    assert any("drifts by +1.0" in sentence for sentence in summary(found))


def test_at_the_proxy_the_reference_stays_as_it_was_tuned() -> None:
    _, result = validated(Landscape(bowl({"elr": 0.5}), noise=1e-4), incumbent=BETTER, widths=(2,), depths=())
    assert result.shapes[0].claim.gain.value == pytest.approx(0.0, abs=1e-3)
    assert result.shapes[1].claim.gain.value == pytest.approx(-0.05 / 2 * 0.5**2, abs=1e-3)


def test_tokens_saved_are_told_at_every_shape() -> None:
    planned = context().budget.total_tokens

    def longer(at, tokens: int) -> float:
        return -SLOPE * log(tokens / planned)

    _, result = validated(quiet(longer=longer), horizons=(1.3, 1.9), depths=())
    for at in result.shapes:
        assert at.tokens is not None
        assert at.tokens.saved is not None
        assert at.tokens.saved.factor.value == pytest.approx(exp(0.04 / SLOPE), rel=0.02)
        assert at.tokens.horizons[0].losses == at.claim.reference_losses


def test_what_re_tuning_gains_is_the_regret_of_carrying() -> None:
    """At twice the width the best `embedding` is one doubling away; at the proxy nothing is to be gained."""

    def moved(at, shape) -> float:
        return 0.03 * (at["embedding"] - (shape.d_model == 64)) ** 2

    found, result = validated(quiet(larger=moved), retune=("embedding",), depths=())
    proxy, wide = (at.retuned for at in result.shapes)
    assert proxy.comparison is None or abs(proxy.comparison.gain.value) < 2e-3
    assert wide.comparison.outcome == "better"
    assert wide.comparison.gain.value == pytest.approx(0.03, rel=0.1)
    assert wide.prediction.joint["embedding"] == pytest.approx(1.0, abs=0.1)
    assert any("Re-tuning there gains 0.0" in sentence for sentence in summary(found))


def test_the_most_sensitive_axes_are_re_tuned_or_the_named_ones() -> None:
    sensitivity = {"elr": 9.0, "rope_base": 8.0, "key": 0.2, "embedding": 0.3, "ssm_z": 0.1, "lm_head": 0.0}
    _, result = validated(quiet(), sensitivity=sensitivity, retune=2, depths=())
    assert set(result.axes) == {"key", "embedding"}
    with pytest.raises(UserError, match="retune = 7 but earlier stages measure only 3 axes") as error:
        counts(Validate(against=["other"], retune=7), context(), State(BETTER, REFERENCES, sensitivity))
    assert error.value.field == "retune"


def test_a_slope_needs_four_sizes_in_one_direction() -> None:
    def fading(at, shape) -> float:
        return 0.01 * at["key"] * log2(shape.d_model / 32)

    found, result = validated(quiet(larger=fading), widths=(2, 4, 8), depths=(2,))
    (trend,) = result.trends
    assert (trend.along, trend.sizes) == ("width", 4)
    assert trend.slope.value == pytest.approx(-0.01, abs=1e-3)
    assert "with every doubling of the width" in summary(found)[-1]
    assert validated(quiet(larger=fading), widths=(2, 4), depths=(2, 3))[1].trends == ()


def test_divergence_at_a_shape_is_told() -> None:
    def lost(at, seed: int) -> bool:
        return at["key"] == 1 and seed == 1003

    found, result = validated(quiet(diverges=lost), depths=())
    assert result.verdict == "inconclusive"
    assert [at.claim.outcome for at in result.shapes] == ["unmeasured"] * 2
    assert any("the incumbent diverged on 1" in sentence for sentence in summary(found))


def test_trials_at_the_proxy_are_those_of_confirm() -> None:
    stage = Validate(against=["tuned untuned"], widths=(2,), depths=(), n_seeds=4)
    driven = drive(stage, quiet(), context(), BETTER, REFERENCES)
    fresh = [row.trial for row in driven.known.values() if row.trial.seed >= 1000]
    assert {trial.seed for trial in fresh} == {1000, 1001, 1002, 1003}
    at_proxy = [trial for trial in fresh if trial.shape == SHAPE]
    wanted = [trial for each in (BETTER, START) for trial in context().trials(each, range(1000, 1004))]
    assert {trial.hash for trial in at_proxy} == {trial.hash for trial in wanted}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"widths": (1,)}, "without 1 itself"),
        ({"widths": (), "depths": ()}, "name a size"),
        ({"widths": (2, 2)}, "twice"),
        ({"depths": (-1,)}, "without 1 itself"),
        ({"retune": ("elr",)}, "swept anyway"),
        ({"retune": ("key", "key")}, "each axis once"),
        ({"retune": True}, "a number of axes"),
        ({"retune": ("kee",)}, "did you mean 'key'"),
        ({"retune": -1}, "a number of axes"),
        ({"horizons": (2,)}, "at least two factors"),
    ],
)
def test_wrong_fields(fields, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Validate(against=["other"], **fields)


@pytest.mark.parametrize(
    ("fields", "field"), [({"widths": (1.3,)}, "widths[0]"), ({"widths": (2,), "depths": (1.2,)}, "depths[0]")]
)
def test_a_size_that_would_have_to_be_rounded_is_refused(fields, field: str) -> None:
    with pytest.raises(UserError) as error:
        counts(Validate(against=["other"], **fields), context(), State(BETTER, REFERENCES))
    assert error.value.field == field


def test_shapes_know_the_proxy() -> None:
    _, result = validated(quiet(), depths=())
    assert [at.is_proxy for at in result.shapes] == [True, False]
    assert all(isinstance(at, AtShape) for at in result.larger)

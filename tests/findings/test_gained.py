"""Which of a stage's comparisons says what it brought."""

from __future__ import annotations

import pytest

from mup_tune.findings import Comparison, Result, Verified
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.joint_search import JointSearch
from mup_tune.findings.multipliers import Move, MultiplierPasses, Pass
from mup_tune.findings.surface import ResponseSurface
from mup_tune.findings.validation import AtShape, Validation
from mup_tune.shape import load_shape
from mup_tune.stats import Interval

SHAPE = load_shape("cpu-32")


def compared(gain: float | None, name: str = "incumbent") -> Comparison:
    interval = None if gain is None else Interval(gain, gain - 0.01, gain + 0.01)
    return Comparison(
        candidate=name, reference="reference", candidate_losses={0: 2.0}, reference_losses={0: 2.0}, gain=interval
    )


def passed(*moves: tuple[float, float]) -> Pass:
    """Gain and p-value of each move that was tested."""
    tested = tuple(Move(comparison=compared(gain), p_value=p_value, share=1.0) for gain, p_value in moves)
    return Pass(axes=(), prediction=None, moves=tested, noise_known=True)


def of_passes(*done: Pass) -> MultiplierPasses:
    return MultiplierPasses(passes=done, most=3)


def at(width: float, gain: float | None) -> AtShape:
    return AtShape(shape=SHAPE, width=width, depth=1.0, parameters=1, comparisons=(compared(gain), compared(-1.0)))


RESULTS: dict[str, tuple[Result, float | None]] = {
    "a confirmation: the hardest reference": (
        Confirmation(comparisons=(compared(0.5), compared(0.2), compared(None))),
        0.2,
    ),
    "nothing measured": (Confirmation(comparisons=(compared(None),)), None),
    "passes: the last that moved": (of_passes(passed((0.1, 0.01)), passed((0.2, 0.01)), passed((0.3, 0.9))), 0.2),
    "passes: of one pass the best move": (of_passes(passed((0.1, 0.01), (0.2, 0.01), (0.05, 0.01))), 0.2),
    "passes: none moved": (of_passes(passed((0.1, 0.9), (0.02, 0.8))), 0.02),
    "passes: none tested": (of_passes(passed()), None),
    "a joint search: its best finalist": (
        JointSearch(
            search=None, finalists=tuple(Verified(comparison=compared(gain), p_value=0.5) for gain in (0.1, 0.3))
        ),
        0.1,
    ),
    "a joint search without finalists": (JointSearch(search=None), None),
    "a surface: its verification": (ResponseSurface(rounds=(), stop="rounds", units={}, moved=compared(0.4)), 0.4),
    "a surface that never moved": (ResponseSurface(rounds=(), stop="rounds", units={}), None),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_a_stage_brought(name: str) -> None:
    result, gain = RESULTS[name]
    found = result.gained
    assert (found and found.gain and found.gain.value) == gain


def test_a_validation_is_told_by_its_hardest_larger_shape() -> None:
    """The proxy is no proof, and other references than the first are not claimed against."""
    shapes = (at(1.0, 0.1), at(2.0, 0.3), at(4.0, 0.2))
    found = Validation.model_construct(shapes=shapes).gained
    assert found is not None
    assert found.gain is not None
    assert found.gain.value == 0.2

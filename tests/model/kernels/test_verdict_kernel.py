from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
import torch
from near import DEVICE, nan_memory, normal  # noqa: F401
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.verdict import judge, judge_reference

pytestmark = pytest.mark.usefixtures("nan_memory")


def judged(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The norm, and what is told of the only step."""
    trace_41P = torch.full((4, 1, len(arguments[0])), nan, device=DEVICE)
    norm_P = judge(*arguments, torch.zeros(2, dtype=torch.int32, device=DEVICE), trace_41P)
    return norm_P, trace_41P[:, 0]


@pytest.mark.parametrize("sizes", [(1, 3), (5000, 4097)])
def test_norms_and_who_is_clipped(sizes: tuple[int, int]) -> None:
    squares, more = (normal(2, size, seed=size).square() for size in sizes)
    squares[1] *= 1e-6
    more[1] *= 1e-6
    alive = torch.ones(2, dtype=torch.bool, device=DEVICE)
    loss = torch.zeros(2, device=DEVICE)
    expected, *_ = judge_reference(squares.double(), more.double(), loss, alive, 0.0)
    norm, (_, told, clipped, _) = judged(squares, more, loss, alive, float(expected.mean()))
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    assert told.equal(norm)
    assert clipped.tolist() == [1, 0]
    assert alive.all()


def test_who_lives() -> None:
    """The dead stay dead; a loss or norm that is not finite kills; squares that overflow are infinite."""
    loss = torch.tensor([1.0, nan, inf, 1.0, 1.0, 1.0, -inf], device=DEVICE)
    squares = torch.tensor([4.0, 4.0, 4.0, nan, 3e38, 4.0, 4.0], device=DEVICE)[:, None]
    alive = torch.tensor([True, True, True, True, True, False, True], device=DEVICE)
    twins = judge_reference(squares, squares.clone(), loss, alive, 1.0)
    norm, (*told, clipped, living) = judged(squares, squares.clone(), loss, alive, 1.0)
    assert alive.tolist() == [True, False, False, False, False, False, False]
    assert clipped.tolist() == alive.tolist()
    assert norm[4].isinf()
    assert norm[3].isnan()
    for found, expected in zip((norm, clipped.bool(), alive), twins, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    torch.testing.assert_close(told, [loss, norm], equal_nan=True)
    assert living.tolist() == alive.tolist()


def test_a_step_is_told_in_its_place_and_the_next_one_is_taken() -> None:
    trace = torch.full((4, 3, 2), 7.0, device=DEVICE)
    alive = torch.ones(2, dtype=torch.bool, device=DEVICE)
    squares = torch.full((2, 1), 2.0, device=DEVICE)
    for step, following in ((1, 2), (2, 0)):
        cursor = torch.tensor([0, step], dtype=torch.int32, device=DEVICE)
        judge(squares, squares, torch.tensor([step, -step], device=DEVICE).float(), alive, 1.0, cursor, trace)
        assert cursor.tolist() == [following, step]
    assert trace[:, 0].eq(7.0).all()
    assert trace[0, 1:].tolist() == [[1, -1], [2, -2]]
    assert trace[1:, 1:].tolist() == [[[2, 2]] * 2, [[1, 1]] * 2, [[1, 1]] * 2]

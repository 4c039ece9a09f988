from __future__ import annotations

from math import inf, nan

import pytest
import torch
from near import DEVICE, nan_memory, normal  # noqa: F401

pytest.importorskip("triton")
from mup_tune.model.kernels.verdict import judge, judge_reference

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("sizes", [(1, 3), (5000, 4097)])
def test_norms_and_who_is_clipped(sizes: tuple[int, int]) -> None:
    squares, more = (normal(2, size, seed=size).square() for size in sizes)
    squares[1] *= 1e-6
    more[1] *= 1e-6
    alive = torch.ones(2, dtype=torch.bool, device=DEVICE)
    loss = torch.zeros(2, device=DEVICE)
    expected, *_ = judge_reference(squares.double(), more.double(), loss, alive, 0.0)
    norm, clipped = judge(squares, more, loss, alive, float(expected.mean()))
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    assert clipped.tolist() == [True, False]
    assert alive.all()


def test_who_lives() -> None:
    """The dead stay dead; a loss or norm that is not finite kills; squares that overflow are infinite."""
    loss = torch.tensor([1.0, nan, inf, 1.0, 1.0, 1.0, -inf], device=DEVICE)
    squares = torch.tensor([4.0, 4.0, 4.0, nan, 3e38, 4.0, 4.0], device=DEVICE)[:, None]
    alive = torch.tensor([True, True, True, True, True, False, True], device=DEVICE)
    twins = judge_reference(squares, squares.clone(), loss, alive, 1.0)
    norm, clipped = judge(squares, squares.clone(), loss, alive, 1.0)
    assert alive.tolist() == [True, False, False, False, False, False, False]
    assert clipped.tolist() == alive.tolist()
    assert norm[4].isinf()
    assert norm[3].isnan()
    for found, expected in zip((norm, clipped, alive), twins, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)

from __future__ import annotations

import pytest
import torch
from near import DEVICE, nan_memory  # noqa: F401

pytest.importorskip("triton")
from mup_tune.model.kernels.batch import BLOCK, FACTORS, take_, take_reference, width

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("tokens", [1, 5, BLOCK, 2 * BLOCK + 3])
def test_each_step_gets_its_own(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    fed = torch.randint(-(2**31), 2**31, (3, width(tokens)), generator=generator).int()
    factors = torch.randn(3, FACTORS, generator=generator)
    fed[:, -FACTORS:] = factors.view(torch.int32)
    fed = fed.to(DEVICE)
    for step in (2, 0, 1):
        cursor = torch.tensor([step, 9], dtype=torch.int32, device=DEVICE)
        ids = [torch.empty(tokens, dtype=dtype, device=DEVICE) for dtype in (torch.int64, torch.int64, torch.int32)]
        found = (*ids, torch.empty(FACTORS, device=DEVICE))
        take_(fed, cursor, *found)
        assert cursor.tolist() == [step, step]
        assert found[3].tolist() == factors[step].tolist()
        for each, expected in zip(found, take_reference(fed, step), strict=True):
            assert each.equal(expected)

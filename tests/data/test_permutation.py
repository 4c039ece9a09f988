from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.data.permutation import permuted


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_every_row_comes_exactly_once(size: int, key: str) -> None:
    image = permuted(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))


@given(size=st.integers(10**9, 2**61), start=st.integers(0, 10**9 - 1000))
def test_large_sizes_stay_in_range_without_repeats(size: int, start: int) -> None:
    image = permuted(np.arange(start, start + 1000), size, "k")
    assert image.min() >= 0
    assert image.max() < size
    assert len(np.unique(image)) == 1000


@given(size=st.integers(1, 500), data=st.data())
def test_an_image_does_not_depend_on_its_company(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    assert permuted(np.array([index]), size, "k")[0] == permuted(np.arange(size), size, "k")[index]


def test_keys_give_different_and_evenly_spread_orders() -> None:
    size, keys = 12, 3000
    first = np.array([permuted(np.arange(size), size, f"{key}/0") for key in range(keys)])
    expected = keys / size
    for column in first.T:  # where each row goes, over keys: χ² with 11 degrees of freedom
        counts = np.bincount(column, minlength=size)
        assert ((counts - expected) ** 2 / expected).sum() < 45

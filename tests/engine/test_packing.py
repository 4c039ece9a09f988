from __future__ import annotations

from math import ceil

import pytest
from engine_fakes import packs, trials
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.engine.packing import halves, population_size, split
from mup_tune.engine.work import Calibration
from mup_tune.errors import UserError

speeds = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1.0, 1e6), min_size=1)
POOL = trials(40)


@given(speeds, st.integers(1, 200), st.integers(1, 64))
def test_population_size(tokens_per_s: dict[int, float], n_trials: int, lanes: int) -> None:
    size = population_size(Calibration(tokens_per_s, "cpu"), n_trials, lanes)
    assert 1 <= size <= ceil(n_trials / lanes)
    if size < ceil(n_trials / lanes):  # then calibration chose it: within 3 % of the fastest, and nothing smaller is
        assert tokens_per_s[size] >= 0.97 * max(tokens_per_s.values())
        assert all(speed < 0.97 * max(tokens_per_s.values()) for other, speed in tokens_per_s.items() if other < size)


@pytest.mark.parametrize(
    ("tokens_per_s", "n_trials", "lanes", "size"),
    [
        ({1: 100.0, 4: 140.0, 8: 142.0}, 100, 2, 4),  # 8 is faster, but by less than the noise
        ({1: 100.0, 4: 140.0, 8: 153.0}, 100, 2, 8),
        ({1: 100.0, 4: 140.0, 8: 153.0}, 7, 2, 4),  # 4 + 3: both lanes work
        ({1: 100.0, 4: 90.0}, 100, 1, 1),
        ({8: 10.0}, 3, 16, 1),
    ],
)
def test_population_size_by_hand(tokens_per_s: dict[int, float], n_trials: int, lanes: int, size: int) -> None:
    assert population_size(Calibration(tokens_per_s, "cpu"), n_trials, lanes) == size


def test_nothing_fits() -> None:
    with pytest.raises(UserError, match="not even one model fits into the memory of H200"):
        population_size(Calibration({}, "H200"), 4, 1)


@given(st.integers(0, 40), st.integers(1, 50))
def test_split_is_a_balanced_partition_in_order(n: int, size: int) -> None:
    groups = split(POOL[:n], size)
    assert tuple(trial for group in groups for trial in group) == POOL[:n]
    assert len(groups) == ceil(n / size)
    lengths = [len(group) for group in groups]
    assert not lengths or (max(lengths) - min(lengths) <= 1 and max(lengths) <= size and min(lengths) >= 1)


@given(st.integers(2, 20))
def test_halves_keep_members_and_end_at_one(n: int) -> None:
    (pack,) = packs("sweep", 1, n)
    first, second = halves(pack)
    assert first.trials + second.trials == pack.trials
    assert first.stage == second.stage == "sweep"
    assert len({pack.id, first.id, second.id}) == 3
    assert 0 <= len(first.trials) - len(second.trials) <= 1


def test_one_member_cannot_be_halved() -> None:
    with pytest.raises(UserError, match="one model of the Shape 'tiny' does not fit"):
        halves(packs("sweep", 1)[0])

"""A gain said in tokens: closed forms, coverage of its interval, and where nothing can be told."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from mup_tune.stats import Losses
from mup_tune.stats.tokens import LEAST, TokensSaved, tokens_saved

FACTORS = (1.0, 1.1, 1.3, 1.9)


def power_law(factor: float) -> float:
    return 2.0 + 1.2 * float(factor) ** -0.2


def flat_over_seeds(loss: float, n: int = 4) -> Losses:
    return dict.fromkeys(range(n), loss)


def saved(candidate: float, curve=power_law, factors=FACTORS) -> TokensSaved | None:
    return tokens_saved(flat_over_seeds(candidate), [flat_over_seeds(curve(x)) for x in factors], factors)


def drawn(rng, n: int, truth: float, noise: float = 0.02, offset: float = 0.05) -> tuple[Losses, list[Losses]]:
    """Settings as good as ``truth`` times the tokens, and a power law's horizons, over the same seeds."""
    level = rng.normal(0, offset, n)
    candidate, *reference = (
        dict(enumerate(map(float, power_law(x) + level + rng.normal(0, noise, n)))) for x in (truth, *FACTORS)
    )
    return candidate, reference


@pytest.mark.parametrize("truth", [1.0, 1.05, 1.2, 1.5, 1.85])
def test_an_exact_power_law_gives_the_factor_back(truth: float) -> None:
    found = saved(power_law(truth))
    assert found is not None
    assert not found.beyond
    assert found.factor.value == pytest.approx(truth, rel=2e-3)
    assert found.factor.low == pytest.approx(found.factor.high)  # seeds that agree leave no doubt
    assert found.loss(truth) == pytest.approx(power_law(truth), abs=1e-4)


def test_a_line_in_log_tokens_is_met_exactly() -> None:
    found = saved(3.0 - 0.1 * log(1.4), lambda x: 3.0 - 0.1 * log(x))
    assert found is not None
    assert found.factor.value == pytest.approx(1.4, rel=1e-9)
    assert (found.level, found.slope) == pytest.approx((3.0, -0.1))
    assert found.bend == pytest.approx(0, abs=1e-9)


def test_a_parabola_that_would_turn_up_gives_way_to_a_line() -> None:
    found = saved(2.95, lambda x: 3.0 - 0.3 * log(x) + 0.4 * log(x) ** 2)
    assert found is not None
    assert found.bend == 0
    assert found.slope < 0


def test_a_seed_s_own_level_changes_nothing() -> None:
    candidate, reference = drawn(np.random.default_rng(3), 5, 1.4)
    level = {0: 0.3, 1: -0.2, 2: 0.0, 3: 1.0, 4: -0.7}
    shifted = [{seed: loss + level[seed] for seed, loss in row.items()} for row in (candidate, *reference)]
    plain, moved = (tokens_saved(first, rest, FACTORS) for first, *rest in ([candidate, *reference], shifted))
    assert plain is not None
    assert moved is not None
    assert moved.factor.value == pytest.approx(plain.factor.value)
    # The curve's shape and the gain are differences within a seed, so their resamples are the same.
    assert (moved.factor.low, moved.factor.high) == pytest.approx((plain.factor.low, plain.factor.high))


@pytest.mark.parametrize("n", [4, 8, 12])
def test_the_interval_covers_the_truth(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [tokens_saved(*drawn(rng, n, 1.4), FACTORS) for _ in range(200)]
    covered = [each.factor.low <= 1.4 <= each.factor.high for each in found if each is not None]
    assert len(covered) >= 195
    assert 0.90 <= np.mean(covered) <= 0.99


def test_without_a_gain_tokens_are_rarely_shown_to_be_saved() -> None:
    rng = np.random.default_rng(1)
    found = [tokens_saved(*drawn(rng, 6, 1.0), FACTORS) for _ in range(200)]
    assert np.mean([each is not None and each.factor.low > 1 for each in found]) <= 0.05


def test_beyond_the_longest_horizon_the_factor_is_at_least_that() -> None:
    found = saved(power_law(4.0))
    assert found is not None
    assert found.beyond
    assert (found.factor.value, found.factor.high) == pytest.approx((1.9, 1.9))


def test_worse_settings_lose_tokens_down_to_a_half() -> None:
    found = saved(3.0 + 0.01, lambda x: 3.0 - 0.1 * log(x))
    assert found is not None
    assert found.factor.value == pytest.approx(np.exp(-0.1))
    far = saved(4.0)
    assert far is not None
    assert far.factor.value == pytest.approx(LEAST)


def test_where_nothing_can_be_told() -> None:
    candidate, reference = drawn(np.random.default_rng(0), 4, 1.2)
    assert tokens_saved(candidate, reference, FACTORS) is not None
    assert tokens_saved({**candidate, 2: None}, reference, FACTORS) is None
    assert tokens_saved(candidate, [*reference[:3], {**reference[3], 0: None}], FACTORS) is None
    assert tokens_saved(candidate, reference[:2], FACTORS[:2]) is None  # no curve through two horizons
    one = [{0: row[0]} for row in (candidate, *reference)]
    assert tokens_saved(one[0], one[1:], FACTORS) is None  # one seed knows no noise
    assert saved(2.9, lambda x: 3.0 + 0.1 * log(x)) is None  # more tokens make it worse
    assert saved(2.9, lambda x: 3.0) is None


def test_it_is_deterministic() -> None:
    candidate, reference = drawn(np.random.default_rng(5), 4, 1.2)
    assert tokens_saved(candidate, reference, FACTORS) == tokens_saved(candidate, reference, FACTORS)

"""The samplers of a joint search: pure, in the box, without repeats, and better than chance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.errors import UserError
from mup_tune.search import sampling
from mup_tune.search.sampling import PER_LOG2, suggest

AXES = ("elr", "key", "lm_head")
CENTRE = dict.fromkeys(AXES, 0.0)
OPTIMUM = {"elr": 0.6, "key": -0.5, "lm_head": 0.3}
QUICK = ("tpe", "trust-region", "random")

losses = st.one_of(st.none(), st.floats(1.0, 9.0))
offsets = st.fixed_dictionaries({axis: st.integers(-PER_LOG2, PER_LOG2).map(lambda u: u / PER_LOG2) for axis in AXES})
histories = st.lists(st.tuples(offsets, losses), max_size=17)


def afresh(*args):
    """Without the cache: the same arguments must lead to the same draws, not just to the same memory."""
    sampling._suggested.cache_clear()
    return suggest(*args)


@pytest.mark.parametrize("sampler", QUICK)
@settings(max_examples=15)
@given(history=histories, n=st.integers(1, 8), seed=st.integers(0, 2**31), radius=st.sampled_from([0.125, 1.0, 2.0]))
def test_pure_in_the_box_and_without_repeats(sampler, history, n, seed, radius):
    history = [({axis: radius * x for axis, x in at.items()}, loss) for at, loss in history]
    history = [(CENTRE, 2.0), *history] if history else []
    found = afresh(sampler, AXES, radius, history, n, seed)
    assert found == afresh(sampler, AXES, radius, history, n, seed)
    assert len(found) == n
    points = [tuple(at[axis] for axis in AXES) for at in found]
    taken = {tuple(round(at[axis] * PER_LOG2) / PER_LOG2 for axis in AXES) for at, _ in history} | {(0.0, 0.0, 0.0)}
    assert len(set(points)) == n
    assert not taken & set(points)
    assert all(abs(x) <= radius and x * PER_LOG2 == round(x * PER_LOG2) for point in points for x in point)


def search(sampler, draw, trials=40, batch=8, noise=0.0):
    """Lowest true loss among ``trials`` candidates on a bowl around OPTIMUM."""
    rng = np.random.default_rng(draw)

    def true(at):
        return sum((at[axis] - OPTIMUM[axis]) ** 2 for axis in AXES)

    history, best = [(CENTRE, true(CENTRE))], []
    for round_ in range(trials // batch):
        told = history if round_ else []
        for at in suggest(sampler, AXES, 1.0, told, batch, 100 * draw + round_):
            history.append((at, true(at) + float(rng.normal(0, noise))))
            best.append(true(at))
    return min(best)


def test_models_find_a_bowl_better_than_chance():
    chance = np.median([search("random", draw) for draw in range(20)])
    assert np.median([search("tpe", draw) for draw in range(5)]) < 0.6 * chance
    assert np.median([search("trust-region", draw) for draw in range(20)]) < 0.6 * chance
    assert search("gp", 0, trials=24) < 0.1 * chance


def gp_told():
    told = [({"elr": 0.0, "key": 0.0}, 2.0)]
    for place, at in enumerate(suggest("random", ["elr", "key"], 1.0, [], 9, 0)):
        told.append((at, None if place == 4 else at["elr"] ** 2 + at["key"]))
    return told


def test_a_gp_repeats_itself_in_another_process_and_leaves_threads_and_logging_alone():
    script = (
        "import optuna, torch; torch.set_num_threads(2)\n"
        "from mup_tune.search.sampling import suggest\n"
        f"print(suggest('gp', ['elr', 'key'], 1.0, {gp_told()}, 3, 5))\n"
        "assert torch.get_num_threads() == 2\n"
        "assert optuna.logging.get_verbosity() == optuna.logging.INFO\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(afresh("gp", ["elr", "key"], 1.0, gp_told(), 3, 5))
    assert run.stderr == ""


def test_a_trust_region_follows_the_best_and_narrows_where_nothing_improves():
    at = {"elr": 0.75, "key": 0.0, "lm_head": -0.5}
    worse = [({"elr": x / 8, "key": 0.5, "lm_head": 0.0}, 3.0) for x in range(4)]
    history = [(CENTRE, 2.0), (at, 1.0), *worse[:3]]

    def spread(history):
        found = suggest("trust-region", AXES, 1.0, history, 4, 3)
        return max(abs(each[axis] - at[axis]) for each in found for axis in AXES), found

    assert spread(history)[0] > 0.5  # the first round improved: the whole box
    stuck = [(each, 3.0) for each in suggest("random", AXES, 1.0, history, 4, 1)]
    reach, found = spread([*history, *stuck])
    assert reach <= 0.5
    assert max(each["elr"] for each in found) <= 1.0
    for seed in range(2, 12):
        stuck += [(each, 3.0) for each in suggest("random", AXES, 1.0, [*history, *stuck], 4, seed)]
    assert spread([*history, *stuck])[0] == pytest.approx(1 / 16, abs=1e-9)
    nothing = [(each, None) for each, _ in history]
    assert len(suggest("trust-region", AXES, 1.0, nothing, 4, 0)) == 4


def test_diverged_regions_are_left():
    """Everything above 0 diverges: a sampler that ignores it would keep half of its candidates there."""
    told = [(CENTRE, 2.0)]
    for at in suggest("random", AXES, 1.0, [], 24, 0):
        told.append((at, None if at["elr"] > 0 else 2.0 + at["elr"] ** 2))
    for sampler in ("tpe", "gp"):
        found = suggest(sampler, AXES, 1.0, told, 8, 1)
        assert sum(at["elr"] > 0.1 for at in found) <= 2, sampler


def test_a_box_that_is_full_is_named():
    assert len(suggest("random", ["elr"], 0.125, [], 16, 0)) == 16
    with pytest.raises(UserError, match=r"±0.125 log2 over elr holds 16 different candidates, fewer than 17"):
        suggest("random", ["elr"], 0.125, [], 17, 0)


def test_plans_are_forecast_without_optuna_and_torch():
    script = (
        "import sys\n"
        "from mup_tune.search.forecast import forecast\n"
        "from mup_tune.search.plan import load_plan\n"
        "plan = load_plan('falcon_h1')\n"
        "assert any(line.kind == 'surface' for line in forecast(plan))\n"
        "print({'optuna', 'torch'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

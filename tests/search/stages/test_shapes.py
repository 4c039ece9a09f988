"""The ``channels`` and ``shape`` stages where loss, best ELR and speed are known functions of the Shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landscapes import START, context, counts, drive, title
from pydantic import ValidationError

from mup_tune import stats
from mup_tune.channels import Ratio
from mup_tune.errors import UserError
from mup_tune.files import parse_yaml
from mup_tune.findings import State
from mup_tune.report.words import summary
from mup_tune.search.plan import load_plan
from mup_tune.search.shape_comparison import front, ranked
from mup_tune.search.stages.channels import Channels
from mup_tune.search.stages.width_depth import WidthDepth
from mup_tune.settings import untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.trial import Trial, TrialResult

PROXY = load_shape("cpu-channels")  # 2:1:5
RATIOS = ("2:1:5", "2:2:4", "1:1:6", "3:1:4")


@dataclass(frozen=True)
class Shapes:
    """A bowl in log2 ELR at every Shape. ``noise`` is per trial, ``draws`` what a Shape's init adds."""

    floor: Callable[[Shape], float] = lambda shape: 0.0
    optimum: Callable[[Shape], float] = lambda shape: 0.0
    diverges: Callable[[Trial, float], bool] = lambda trial, x: False
    speed: Callable[[Shape], float] = lambda shape: 1000.0
    members: Callable[[Trial], int] = lambda trial: 4
    noise: float = 0.0005
    draws: float = 0.002
    draw: int = 0

    def row(self, trial: Trial) -> TrialResult:
        x, size = log2(trial.settings.elr / START.elr), self.members(trial)
        metrics = {"tokens_per_s": self.speed(trial.shape) / size, "members": float(size)}
        if self.diverges(trial, x):
            return TrialResult(trial, "diverged", float("nan"), float("nan"), "step 3", metrics)
        data = np.random.default_rng([self.draw, trial.seed]).normal(0, 0.3)
        init = np.random.default_rng([self.draw, trial.seed, int(trial.shape.content_hash(), 16)]).normal(0, self.draws)
        own = np.random.default_rng([self.draw, int(trial.hash, 16)]).normal(0, self.noise)
        bowl = 0.03 * (x - self.optimum(trial.shape)) ** 2
        loss = 2.5 + self.floor(trial.shape) + bowl + float(data + init + own)
        return TrialResult(trial, "ok", loss, 0.001, metrics=metrics)


def attention(shape: Shape) -> int:
    """Eighths that attention has."""
    return shape.d_attn // 32


def compare(landscape: Shapes, seeds: int = 4, proxy: Shape = PROXY, stage=None, **fields):
    stage = stage or Channels(**{"ratios": RATIOS, **fields})
    incumbent = untuned(proxy)
    driven = drive(stage, landscape, context(seeds, shape=proxy), incumbent)
    finding = driven.conclusion.finding
    assert driven.conclusion.state == State(incumbent)
    assert (finding.before, finding.after, finding.on_path) == (incumbent, incumbent, False)
    return {point.label: point for point in finding.result.points}, finding, driven


def test_the_best_ratio_is_found_with_its_gain_over_the_proxy():
    proxy = PROXY.model_copy(update={"d_ff": 96, "n_heads": 8, "n_kv_heads": 4, "d_ssm": 96})  # 3:2:3
    assert Ratio.of(proxy) == Ratio(3, 2, 3)
    points, finding, _ = compare(Shapes(floor=lambda shape: 0.02 * attention(shape)), proxy=proxy)
    assert next(iter(points)) == "3:2:3 (SA_M)"
    assert points["3:2:3 (SA_M)"].gain is None
    assert points["3:2:3 (SA_M)"].shape == proxy
    for label in ("2:1:5 (SA_M)", "1:1:6 (SA_M)", "3:1:4 (SA_M)"):
        gain = points[label].gain
        assert gain.low < 0.02 < gain.high
        assert gain.low > 0
        assert gain.high < 0.03
    # The three with the least attention are alike, and the text says so.
    assert title(finding).startswith("No channel ratio stands out: 2 of 4 others cannot be told from the best")
    within = next(line for line in summary(finding) if line.startswith("Within noise"))
    assert "2:2:4" not in within


def test_one_clear_winner_makes_the_headline():
    points, finding, _ = compare(Shapes(floor=lambda shape: abs(shape.d_ssm - 32) / 1600 + 0.0123 * attention(shape)))
    lead = 1e3 * (
        np.mean(list(points["2:1:5 (SA_M)"].losses.values())) - np.mean(list(points["1:1:6 (SA_M)"].losses.values()))
    )
    assert title(finding) == (
        "SSM:attention:MLP 1:1:6 (SA_M) trains best at equal parameters: "
        f"{lead:.1f} mnat/token below 2:1:5 (SA_M), the next"
    )
    assert any("Within noise of it" in line and line.endswith(": none.") for line in summary(finding))


def test_the_proxy_is_trained_once_where_its_own_ratio_is_named():
    points, finding, driven = compare(Shapes(), block_orders=["SA_M", "SAM", "S_A_M"])
    assert len(finding.result.points) == 12
    assert len({trial.shape.content_hash() for trial in (row.trial for row in driven.known.values())}) == 12
    assert finding.result.points[0].shape == PROXY
    assert [point.shape.block_order for point in finding.result.points[:3]] == ["SA_M", "SAM", "S_A_M"]
    assert all(point.channels in RATIOS for point in points.values())


def test_a_proxy_without_exact_eighths_takes_part_as_proxy():
    proxy = PROXY.model_copy(update={"d_ff": 158, "d_ssm": 64})
    assert Ratio.of(proxy) is None
    with pytest.raises(UserError, match="multiple of"):
        compare(Shapes(), proxy=proxy)
    # d_state makes the parameters, not the channels: eighths exist, the proxy's own are just not whole ones.
    proxy = PROXY.model_copy(update={"d_ff": 144, "d_ssm": 80})
    points, finding, _ = compare(Shapes(), proxy=proxy)
    assert next(iter(points)) == "proxy (SA_M)"
    assert finding.result.points[0].channels == ""
    assert len(points) == len(RATIOS) + 1


def test_only_the_shape_at_its_edge_extends_and_only_as_often_as_allowed():
    far = Shapes(optimum=lambda shape: 1.7 if attention(shape) == 2 else 0.1, draws=0.0)
    for extend, best, edge in ((0, 0.5, True), (1, 1.0, True), (2, 1.5, True), (4, 1.5, False)):
        stage = Channels(ratios=RATIOS, extend=extend)
        points, finding, driven = compare(far, stage=stage)
        first, most = counts(stage, context(4, shape=PROXY), State(untuned(PROXY)))
        point = points["2:2:4 (SA_M)"]
        assert (point.elr_offset, point.at_edge) == (best, edge)
        assert all(not other.at_edge and other.elr_offset == 0 for other in points.values() if other is not point)
        assert len(driven.known) - first == 4 * min(extend, 3)  # 1.0, 1.5, and 2.0 where 1.5 was still the edge
        assert len(driven.known) <= most == first + extend * 4 * 4
        assert any("edge of the ELR grid" in line and "2:2:4" in line for line in summary(finding)) == edge


def test_elr_alone_at_its_centre_asks_for_no_more_and_says_so():
    stage = Channels(ratios=RATIOS, elr_offsets=(0.0,))
    points, finding, driven = compare(Shapes(optimum=lambda shape: 2.0), stage=stage)
    assert driven.rounds == 1
    assert len(driven.known) == 16
    assert counts(stage, context(4, shape=PROXY), State(untuned(PROXY))) == (16, 16)
    assert not any(point.at_edge for point in points.values())
    assert any("ELR was not re-tuned" in line for line in summary(finding))


def test_a_shape_that_diverges_goes_down_the_grid_and_is_kept():
    lost = Shapes(diverges=lambda trial, x: attention(trial.shape) == 2 and trial.seed == 1)
    points, finding, driven = compare(lost)
    point = points["2:2:4 (SA_M)"]
    assert set(point.losses.values()) == {None}
    assert (point.gain, point.on_front, point.at_edge) == (None, False, False)
    tried = {
        log2(row.trial.settings.elr / START.elr) for row in driven.known.values() if attention(row.trial.shape) == 2
    }
    assert min(tried) == pytest.approx(-1.0)
    assert any(line.startswith("Diverged") and "2:2:4" in line for line in summary(finding))
    # A Shape that needs a lower ELR to train at all finds it.
    points, _, _ = compare(Shapes(diverges=lambda trial, x: attention(trial.shape) == 2 and x > -0.9))
    assert points["2:2:4 (SA_M)"].elr_offset == -1.0
    assert points["2:2:4 (SA_M)"].at_edge


def test_a_diverged_proxy_leaves_no_gain_and_a_dead_field_no_winner():
    points, finding, _ = compare(Shapes(diverges=lambda trial, x: trial.shape == PROXY))
    assert all(point.gain is None for point in points.values())
    assert "stands out" in title(finding) or "trains best" in title(finding)
    _, finding, _ = compare(Shapes(diverges=lambda trial, x: True))
    assert title(finding) == "Nothing to compare: all 4 Shapes diverged"
    _, finding, _ = compare(Shapes(diverges=lambda trial, x: trial.shape != PROXY))
    assert title(finding) == "SSM:attention:MLP 2:1:5 (SA_M) is the only one of 4 Shapes that trained"


def test_one_seed_tells_nothing_between_shapes():
    points, finding, _ = compare(Shapes(floor=lambda shape: 0.1 * attention(shape)), seeds=1)
    assert all(point.gain is None for point in points.values())
    assert "one seed cannot tell" in title(finding)
    assert finding.sigma_delta is None


def test_speed_is_the_packs_and_unequal_packs_are_told():
    speed = {1: 3000.0, 2: 5000.0}
    fast = Shapes(
        floor=lambda shape: 0.02 * attention(shape),
        speed=lambda shape: speed[attention(shape)],
        members=lambda trial: 8 if attention(trial.shape) == 2 else 2,
    )
    points, finding, _ = compare(fast)
    assert points["2:2:4 (SA_M)"].tokens_per_s == pytest.approx(5000)
    assert (points["2:2:4 (SA_M)"].members, points["2:1:5 (SA_M)"].members) == (8, 2)
    assert points["2:2:4 (SA_M)"].on_front  # worst, and fastest
    assert any("2 to 8, so the front is but a hint" in line for line in summary(finding))


def test_depths_compare_with_the_proxy_at_equal_parameters():
    deep = Shapes(floor=lambda shape: -0.01 * log2(shape.n_layers))
    points, finding, _ = compare(deep, stage=WidthDepth(depths=[8]))
    assert list(points) == ["d64 L2", "d32 L8"]
    gain = points["d32 L8"].gain
    assert gain.low < 0.02 < gain.high
    sizes = [point.parameters for point in points.values()]
    assert max(sizes) < 1.006 * min(sizes)
    assert title(finding).startswith("Width and depth d32 L8 trains best at equal parameters")
    _, finding, _ = compare(Shapes(), stage=WidthDepth(depths=[8]))
    assert title(finding).startswith("No depth stands out: ")
    assert title(finding).endswith(" cannot be told apart")
    assert all(point.channels == "" for point in points.values())


def test_more_shapes_do_not_make_a_winner_out_of_noise():
    """Nothing differs: a best Shape that beats all others, or any other one, is a false claim."""
    rng, n, claims = np.random.default_rng(0), 400, 0
    for _ in range(n):
        at_KS = rng.normal(0, 0.003, (8, 3)) + rng.normal(0, 0.3, 3)
        losses = [dict(enumerate(map(float, row))) for row in at_KS]
        ranking = ranked(losses, stats.sigma_delta(losses))
        claims += len(ranking.within_noise) < 7
    assert claims / n < 0.07


def test_gains_cover_the_truth():
    """Noise between Shapes is measured between Shapes: the interval holds init draws that differ."""
    truth = {"2:2:4 (SA_M)": -0.004, "1:1:6 (SA_M)": 0.0, "3:1:4 (SA_M)": 0.0}
    covered = []
    for draw in range(25):
        points, _, _ = compare(Shapes(lambda shape: 0.004 * (attention(shape) - 1), draw=draw), seeds=3, extend=0)
        covered += [points[label].gain.low <= gain <= points[label].gain.high for label, gain in truth.items()]
    assert np.mean(covered) > 0.87


POINTS = st.lists(
    st.tuples(st.none() | st.integers(0, 5).map(float), st.integers(1, 5).map(float)), min_size=1, max_size=12
)


@given(POINTS)
def test_the_front_holds_what_nothing_beats_and_covers_the_rest(points):
    on = front(points)
    there = [point for point in points if point[0] is not None]
    kept = [point for point, keep in zip(points, on, strict=True) if keep]
    assert bool(kept) == bool(there)
    for loss, speed in kept:
        assert loss is not None
        assert not any((a < loss and b >= speed) or (a <= loss and b > speed) for a, b in there)
    for loss, speed in there:
        assert any(a <= loss and b >= speed for a, b in kept)
    if there:
        assert min(loss for loss, _ in kept) == min(loss for loss, _ in there)
        assert max(speed for _, speed in kept) == max(speed for _, speed in there)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratios": ["2:1"]}, "2:1:5"),
        ({"ratios": ["2:1:6", "2:2:4"]}, "sum to 9"),
        ({"ratios": ["2:1:5"]}, "fewer than two"),
        ({"ratios": []}, "fewer than two"),
        ({"ratios": ["2:1:5", " 2 : 1 : 5"]}, "twice"),
        ({"ratios": RATIOS, "block_orders": ["SAM", "SAM"]}, "twice"),
        ({"ratios": RATIOS, "block_orders": ["MAS"]}, "SA_M"),
        ({"ratios": RATIOS, "block_orders": []}, "at least 1"),
        ({"ratios": RATIOS, "elr_offsets": (0.5,)}, "0 itself"),
        ({"ratios": RATIOS, "elr_offsets": (0.0, 0.5)}, "below 0"),
        ({"ratios": RATIOS, "extend": 9}, "less than or equal"),
    ],
)
def test_bad_channels_are_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        Channels(**fields)


def test_bad_depths_are_named():
    with pytest.raises(ValidationError, match="twice"):
        WidthDepth(depths=[2, 2])
    with pytest.raises(ValidationError, match="at least 1"):
        WidthDepth(depths=[])
    with pytest.raises(UserError, match="own depth"):
        compare(Shapes(), stage=WidthDepth(depths=[2]))
    with pytest.raises(UserError, match="Depths that work"):
        compare(Shapes(), stage=WidthDepth(depths=[3]))


def test_an_unquoted_ratio_is_what_it_looks_like():
    read = parse_yaml("ratios: [2:1:5, '2:2:4', 1:1:6]", "a plan")
    assert Channels(**read).ratios == ("2:1:5", "2:2:4", "1:1:6")


PLAN = """
proxy: {proxy}
seeds: [0, 1]
budget: {{seq_len: 128, batch_tokens: 1024, total_tokens: 10240, warmup_tokens: 0, decay_tokens: 0, val_tokens: 1024}}
stages:
- {{{stage}}}
"""


@pytest.mark.parametrize(
    ("proxy", "stage", "message"),
    [
        ("cpu-64", "kind: channels, ratios: [2:1:5, 2:2:4]", "stages[0].ratios: .*multiple of"),
        ("cpu-channels", "kind: channels, ratios: [2:1:5, 5:2:4]", "stages[0].ratios: .*sum to 11"),
        ("cpu-channels", "kind: width_depth, depths: [2, 3]", "stages[0].depths: .*at depth 3"),
    ],
)
def test_a_plan_that_cannot_be_trained_is_refused_when_it_is_read(tmp_path: Path, proxy, stage, message):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(proxy=proxy, stage=stage))
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("]", r"\]")):
        load_plan(str(path))

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from stages.landscapes import Landscape, bowl

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.search.forecast import forecast, total
from mup_tune.search.plan import Plan, load_plan
from mup_tune.search.rehearsal import Rehearsed, StageForecast
from mup_tune.trial import Trial, TrialResult

PLAN = """
proxy: cpu-channels
seeds: [0, 1, 2]
budget: {seq_len: 128, batch_tokens: 256, total_tokens: 2560000, warmup_tokens: 0, decay_tokens: 0, val_tokens: 1024}
stages:
  - {kind: elr_ewd, name: elr, ewd_offsets: [-1, 0, 1]}
  - {kind: micro, name: forward, group: forward}
  - {kind: micro, name: wd, group: matrix_wd, n_seeds: 2}
  - {kind: rope_base, values: [1e4, 1e11]}
  - {kind: joint, top: 2, trials: 10, batch: 5}
  - {kind: elr_ewd, name: other, settings: falcon-h1-published, reference: other, incumbent: false}
  - {kind: channels, ratios: ["1:1:6", "4:1:3"]}
  - {kind: basin, widths: [32, 64]}
  - {kind: baselines, include: [untuned, ELR-tuned untuned, random search]}
  - {kind: confirm, against: [other, untuned, ELR-tuned untuned, random search], n_seeds: 3}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(PLAN)
    return load_plan(str(path))


def simulated(plan: Plan, row: Callable[[Trial], TrialResult]) -> list[tuple[int, int]]:
    """Trials of the first round and of all rounds, by stage, as the loop would walk the plan."""
    state, known, found = State(plan.start), dict[str, TrialResult](), []
    for stage in plan.stages:
        first = len(stage.propose(plan.context, state, known))
        spent = 0.0
        while missing := [t for t in stage.propose(plan.context, state, known) if t.hash not in known]:
            known |= {trial.hash: row(trial) for trial in missing}
            spent += sum(trial.flops for trial in missing)
        found.append((first, len(stage.propose(plan.context, state, known))))
        conclusion = stage.conclude(plan.context, state, known)
        assert conclusion.finding.on_path == stage.on_path
        assert stage.on_path or conclusion.state.incumbent == state.incumbent
        state = replace(conclusion.state, flops=state.flops + spent * conclusion.finding.on_path)
    return found


def measured(landscape: Landscape) -> Callable[[Trial], TrialResult]:
    def row(trial: Trial) -> TrialResult:
        made = landscape.row(trial)
        lengths = {f"loss_x{factor}": made.loss for factor in (1, 2, 4, 8)}
        return replace(made, metrics={**lengths, "tokens_per_s": 100.0, "members": 4.0})

    return row


def by_stage(plan: Plan, row: Callable[[Trial], TrialResult]) -> list[tuple[StageForecast, int, int]]:
    return [(line, *counts) for line, counts in zip(forecast(plan), simulated(plan, row), strict=True)]


def test_where_nothing_surprises_a_stage_takes_what_was_forecast(plan: Plan) -> None:
    quiet = Landscape(bowl(dict.fromkeys(("elr", "ewd", "key", "lm_head"), 0.0)), noise=0.0005)
    for line, first, trained in by_stage(plan, measured(quiet)):
        assert first <= trained <= line.trials <= line.max_trials, line
        if line.kind == "micro":  # its joint move is tested only where the curves promise enough
            assert line.trials - trained in (0, 6 * 4), line
        elif line.kind not in ("baselines", "confirm"):  # those count what two stages share, or two references, twice
            assert line.trials == trained, line


@pytest.mark.parametrize("optimum", [-6.0, 0.7, 6.0])
def test_no_surprise_takes_more_than_the_longest_forecast(plan: Plan, optimum: float) -> None:
    axes = ("elr", "ewd", "key", "lm_head", "qkv.ewd", "mlp_up_proj.ewd", "ssm_x")
    restless = Landscape(bowl(dict.fromkeys(axes, optimum), curvature=0.2), noise=0.001)
    rows = by_stage(plan, measured(restless))
    for line, _, trained in rows:
        assert trained <= line.max_trials, line
    assert any(trained > line.trials for line, _, trained in rows)


def test_totals_add_up_and_tokens_and_flops_are_those_of_the_trials(plan: Plan) -> None:
    lines = forecast(plan)
    sums = total(lines)
    assert sums["trials"] == sum(line.trials for line in lines)
    assert sums["max_flops"] == pytest.approx(sum(line.max_flops for line in lines))
    budget = plan.header.budget
    elr = lines[0]
    assert elr.tokens == elr.trials * budget.steps * budget.batch_tokens
    assert elr.flops == elr.trials * plan.context.trials(plan.start, [0])[0].flops
    basin = next(line for line in lines if line.kind == "basin")
    assert basin.flops / basin.trials < elr.flops / elr.trials  # half of its sizes are smaller than the proxy


def test_the_random_search_is_forecast_from_what_the_search_spends(plan: Plan) -> None:
    lines = {line.stage.split("-")[1]: line for line in forecast(plan)}
    search = [lines[name] for name in ("elr", "forward", "wd", "rope_base", "joint")]
    one = plan.context.trials(plan.start, [0])[0].flops
    drawn = lines["baselines"].trials - 5 * len(plan.header.seeds)
    assert drawn == pytest.approx(sum(line.flops for line in search) / one, abs=1)


def test_ewd_is_forecast_where_the_tuned_elr_may_make_it_identifiable(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    stages = "stages:\n  - {kind: elr_ewd, elr_offsets: GRID}\n  - {kind: micro, group: matrix_wd}\n"
    counted = []
    for grid in ("[-3, 0, 3]", "[-1, 0, 1]"):
        path.write_text(PLAN.split("stages:")[0].replace("2560000", "163840") + stages.replace("GRID", grid))
        loaded = load_plan(str(path))
        assert loaded.start.elr < 1 / sqrt(loaded.header.budget.steps)
        counted.append(forecast(loaded)[1].trials)
    assert counted[0] >= 7 * 4 * 3 > counted[1]


def test_every_reference_is_forecast_as_a_model_of_its_own(plan: Plan) -> None:
    line = forecast(plan)[-1]
    assert line.kind == "confirm"
    assert line.trials == 5 * 3


def test_a_stage_says_whether_it_is_on_the_incumbents_way(plan: Plan) -> None:
    beside = [stage.label for stage in plan.stages if not stage.on_path]
    assert beside == ["other", "channels", "basin", "baselines"]


def test_a_rehearsal_refuses_a_joint_search_without_ground_and_draws_as_many_candidates(plan: Plan) -> None:
    stage = next(stage for stage in plan.stages if stage.kind == "joint")
    state = State(plan.start, sensitivity={"elr": 1.0, "key": 0.5})
    asked = Rehearsed(plan.context)
    stage.walk(asked, state)
    assert len(asked.trials) == next(line.trials for line in forecast(plan) if line.kind == "joint")
    with pytest.raises(UserError, match="earlier stages measure only 1 axes"):
        stage.walk(Rehearsed(plan.context), State(plan.start, sensitivity={"elr": 1.0}))
    full = stage.model_copy(update={"top": 1, "radius": 0.125, "trials": 20})
    with pytest.raises(UserError, match="holds 16 different candidates, fewer than 20"):
        full.walk(Rehearsed(plan.context), state)


def test_horizons_are_priced_by_their_own_tokens(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    head = PLAN.split("stages:")[0] + "stages:\n  - {kind: elr_ewd, reference: tuned}\n"
    path.write_text(head + "  - {kind: confirm, against: [tuned], n_seeds: 4, horizons: [1.1, 1.3, 1.9]}\n")
    loaded = load_plan(str(path))
    line, one = forecast(loaded)[-1], loaded.header.budget.total_tokens
    assert line.trials == 2 * 4 + 3 * 4 + 3 * 3  # both, the horizons, and ELR's line on the plan's 3 seeds
    assert line.tokens == pytest.approx(one * (2 * 4 + (1.1 + 1.3 + 1.9) * 4 + 1.9 * 3 * 3))
    assert line.max_trials == line.trials + 3
    assert line.flops / line.tokens == pytest.approx(loaded.context.trials(loaded.start, [0])[0].flops / one)

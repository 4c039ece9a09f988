from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from pydantic import ValidationError

from mup_tune.errors import UserError
from mup_tune.multipliers import FORWARD
from mup_tune.roles import role_table
from mup_tune.settings import LEAST, MOST, Settings
from mup_tune.shape import Shape
from mup_tune.transfer.aim import Aimed, aim
from mup_tune.transfer.resolve import Tuned
from mup_tune.transfer.rules import width_rules, with_depth_rule


def factors(aimed: Aimed) -> dict[str, float]:
    return {rule.name: rule.factor for rule in aimed.rules}


def test_another_batch_moves_eta_by_the_square_root_and_nothing_else(source: Tuned, target: Shape) -> None:
    found = aim(source, target, batch_tokens=128 * 9)
    before, after = source.settings, found.settings
    assert after.eta == pytest.approx(3 * before.eta, rel=1e-12)
    assert after.lam == pytest.approx(before.lam, rel=1e-12)
    assert after.multipliers == before.multipliers
    assert factors(found)["batch.sqrt"] == pytest.approx(3)
    assert found.optimizer.schedule.batch_tokens == 1152
    with pytest.raises(UserError, match="--batch-tokens"):
        aim(source, target, batch_tokens=0)
    with pytest.raises(UserError, match=r"--batch-tokens.*without a run"):
        aim(Tuned(before, "the settings 'mine.yaml'"), target, batch_tokens=128)


@pytest.mark.parametrize(("batch", "tokens"), [(None, 64_000), (512, 51_200), (512, 512_000)])
def test_timescale_keeps_eta_lambda_steps(batch: int | None, tokens: int, source: Tuned, target: Shape) -> None:
    found = aim(source, target, batch_tokens=batch, tokens=tokens, horizon="timescale")
    before, after = source.settings, found.settings
    assert source.budget is not None
    steps = tokens // (batch or source.budget.batch_tokens)
    assert after.eta * after.lam * steps == pytest.approx(before.eta * before.lam * source.budget.steps, rel=1e-12)
    assert after.eta == pytest.approx(before.eta * ((batch or 128) / 128) ** 0.5, rel=1e-12)
    # Groups keep their ratios: vectors are not decayed at any length.
    for now, then in zip(found.table.rows, role_table(target, before).rows, strict=True):
        assert now.weight_decay == pytest.approx(then.weight_decay * factors(found)["horizon.timescale"], rel=1e-12)


def test_falcon_leaves_eta_and_lambda_at_every_length(source: Tuned, target: Shape) -> None:
    found = aim(source, target, tokens=1_280_000)
    assert found.settings == source.settings
    spec = found.optimizer.schedule
    assert (spec.batch_tokens, spec.total_tokens, spec.lr_tuned_at_batch_tokens) == (128, 1_280_000, None)


def test_a_horizon_that_lacks_what_it_needs(source: Tuned, target: Shape) -> None:
    with pytest.raises(UserError, match="--horizon: timescale needs the target's length"):
        aim(source, target, horizon="timescale")
    with pytest.raises(UserError, match=r"--horizon.*without a run"):
        aim(Tuned(source.settings, "a file"), target, tokens=1000, horizon="timescale")
    with pytest.raises(UserError, match="--tokens: 100 is not allowed: it is less than one step of 128"):
        aim(source, target, tokens=100)


def test_width_rules_are_the_role_tables(source: Tuned, target: Shape) -> None:
    settings, base = source.settings, source.settings.base
    told = {rule.name: rule.factor for rule in width_rules(settings, target)}
    table = role_table(target, settings)
    for name in FORWARD:
        value = settings.multipliers.get(name, 1.0) * told.get(f"width.{name}", 1.0)
        assert table.forward[name] == pytest.approx(value, rel=1e-12), name
    (down,) = table.by_parameter["model.layers.{layer}.feed_forward.down_proj.weight"]
    assert down.init_std == pytest.approx(base.d_ff**-0.5 * told["init.d_ff"], rel=1e-12)


@pytest.mark.parametrize("base_layers", [2, 66])
def test_a_depth_rule_changes_nothing_at_the_depth_that_was_tuned(
    base_layers: int, source: Tuned, proxy: Shape
) -> None:
    base = source.settings.base.model_copy(update={"n_layers": base_layers})
    plain = source.settings.model_copy(update={"base": base})
    for depth_rule, other in (("none", "completep"), ("completep", "none")):
        tuned = replace(source, settings=plain.model_copy(update={"depth_rule": depth_rule}))
        switched = with_depth_rule(tuned, other)
        assert switched.depth_rule == other
        before, after = (role_table(proxy, each).forward for each in (tuned.settings, switched))
        assert after == pytest.approx(before, rel=1e-12)
        # And away from it only the closing multipliers move, by the ratio of the depths.
        deep = proxy.model_copy(update={"n_layers": 8})
        moved = role_table(deep, switched).forward
        factor = 1 / 4 if other == "completep" else 1.0
        for name, each in FORWARD.items():
            assert moved[name] == pytest.approx(before[name] * (factor if each.closes_branch else 1), rel=1e-12)
    assert with_depth_rule(source, None) is source.settings


def test_tied_gate_and_up_are_the_geometric_means(source: Tuned, target: Shape) -> None:
    plain, tied = aim(source, target), aim(source, target, tie_gate_up=True)
    name = "model.layers.{layer}.feed_forward.%s_proj.weight"
    gate, up = (plain.table.by_parameter[name % part][0] for part in ("gate", "up"))
    both = [tied.table.by_parameter[name % part][0] for part in ("gate", "up")]
    for row in both:
        assert row.lr == pytest.approx((gate.lr * up.lr) ** 0.5, rel=1e-12)
        assert row.weight_decay == pytest.approx((gate.weight_decay * up.weight_decay) ** 0.5, rel=1e-12)
    assert factors(tied)["tie.gate_up"] == pytest.approx(both[0].lr / gate.lr, rel=1e-12)
    assert [row for row in tied.table.rows if "_proj" not in row.parameter] == [
        row for row in plain.table.rows if "_proj" not in row.parameter
    ]


def test_settings_at_their_bounds_stay_finite_at_the_target(source: Tuned, target: Shape) -> None:
    data = source.settings.model_dump()
    for elr, ewd in ((MOST, LEAST), (LEAST, MOST), (MOST, MOST)):
        wild = Settings.model_validate({**data, "elr": elr, "ewd": ewd})
        table = aim(replace(source, settings=wild), target).table
        assert all(0 < row.lr < inf and row.weight_decay < inf and 0 < row.multiplier < inf for row in table.rows)
    with pytest.raises(ValidationError, match=r"1e\+31 is not allowed: a setting lies between 1e-30 and 1e\+30"):
        Settings.model_validate({**data, "elr": 1e31})

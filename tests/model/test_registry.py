"""What a multiplier acts on is said in the registry alone: role table, population and config follow it."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from random_models import TINY, random_population, random_table, random_tokens

from mup_tune.model import hf
from mup_tune.multipliers import CONSTANT, FORWARD, MULTIPLIERS, Multiplier, acting_on
from mup_tune.roles import HF_NAMES, Role, role_table
from mup_tune.settings import falcon_h1_published
from mup_tune.shape import load_shape

SHAPE = load_shape("falcon-h1-0.5b")


def rows_of(each: Multiplier, rows: tuple[Role, ...]) -> list[Role]:
    """The rows that a forward multiplier should scale, by transformers' names of them."""
    names = HF_NAMES[each.parameter]
    if each.slice and len(names) > 1:
        names = (names[list(SHAPE.slices[each.parameter]).index(each.slice)],)
    return [row for row in rows if row.parameter in names and each.slice in ("", row.slice, *"qkv")]


def entry(config: dict[str, Any], each: Multiplier) -> float:
    field = config[each.config_field]
    return float(field if each.config_index is None else field[each.config_index])


@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_multiplier_scales_its_rows_and_is_its_field_of_the_config(name: str) -> None:
    plain = falcon_h1_published()
    settings = plain.scaled({name: 3.0}) if name in MULTIPLIERS else plain
    before, after = role_table(SHAPE, plain), role_table(SHAPE, settings)
    expected = rows_of(FORWARD[name], after.rows)
    assert expected
    for old, new in zip(before.rows, after.rows, strict=True):
        assert (f"{name} " in new.rule) == (new in expected)
        factor = 3.0 if new in expected and name in MULTIPLIERS else 1.0
        assert new.multiplier == pytest.approx(old.multiplier * factor, rel=1e-12)
    assert entry(hf.hf_config_kwargs(after), FORWARD[name]) == after.forward[name]


def test_the_config_holds_every_forward_multiplier_once() -> None:
    kwargs = hf.hf_config_kwargs(role_table(SHAPE, falcon_h1_published()))
    fields = [value for name, value in kwargs.items() if name.endswith(("_multiplier", "_multipliers"))]
    assert sum(len(value) if isinstance(value, list) else 1 for value in fields) == len(FORWARD)


def test_a_population_scales_its_weights_by_the_product_of_what_acts_on_them() -> None:
    population, table = random_population(TINY, 1), random_table(TINY, 0)
    scales = population.weight_scales()
    assert scales.keys() == {each.parameter for each in FORWARD.values()}
    for parameter, scale in scales.items():
        start = 0
        for slice_, rows in TINY.slices.get(parameter, {"": 1}).items():
            wanted = prod(table.forward[each.name] for each in acting_on(parameter, slice_))
            torch.testing.assert_close(scale[0, start : start + rows], torch.full((rows, 1), wanted))
            start += rows
        assert scale.shape == (1, start, 1)


@pytest.mark.parametrize(("parameter", "slice_"), [("qkv", "v"), ("mlp_up_proj", ""), ("ssm_out_proj", "")])
def test_one_more_multiplier_is_one_more_entry_of_the_registry(
    monkeypatch: pytest.MonkeyPatch, parameter: str, slice_: str
) -> None:
    new = Multiplier("new", "forward", 2.0, CONSTANT, "a test", "", parameter, slice_, "new_multiplier")
    for registry in (MULTIPLIERS, FORWARD):
        monkeypatch.setitem(registry, "new", new)
    assert new.needs_ssm == (parameter == "ssm_out_proj")
    settings = falcon_h1_published()
    assert settings.value("new") == 2.0
    before, after = (role_table(SHAPE, each) for each in (settings, settings.scaled({"new": 3.0})))
    scaled = [b for a, b in zip(before.rows, after.rows, strict=True) if a.multiplier != b.multiplier]
    assert scaled == rows_of(new, after.rows)
    assert hf.hf_config_kwargs(after)["new_multiplier"] == 6.0

    population = random_population(TINY, 2)
    tokens, _ = random_tokens(TINY, 1, 8)
    with torch.no_grad():
        logits = population.logits(tokens)
        population.multipliers.get_buffer("new")[1] *= 1.5
        changed = population.logits(tokens)
    assert torch.equal(changed[0], logits[0])
    assert (changed[1] - logits[1]).abs().max() > 1e-3 * logits[1].abs().max()

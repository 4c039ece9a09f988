from __future__ import annotations

import re

import pytest

from mup_tune.errors import UserError
from mup_tune.files import dump_yaml, parse_yaml
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published
from mup_tune.shape import RELEASED, Shape, load_shape
from mup_tune.transfer.groups import Group, OptimizerFile, match, optimizer_file
from mup_tune.transfer.resolve import Tuned

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def file(source: Tuned, target: Shape) -> OptimizerFile:
    return optimizer_file(role_table(target, source.settings), source.budget)


@pytest.fixture(scope="module")
def shapes(source: Tuned, target: Shape) -> Shapes:
    table = role_table(target, source.settings)
    return {
        name: (sum(role.shape[0] for role in table.of(name)), *table.of(name)[0].shape[1:])
        for name in table.parameters()
    }


def test_every_number_of_the_role_table_survives_the_file(source: Tuned, target: Shape, file: OptimizerFile) -> None:
    again = OptimizerFile.model_validate(parse_yaml(dump_yaml(file.model_dump(mode="json")), "optimizer.yaml"))
    assert again == file
    table = role_table(target, source.settings)
    for name in table.parameters():
        (group,) = (each for each in again.groups if re.fullmatch(each.pattern, name))
        assert len(group.roles()) == len(table.of(name))
        for ours, row in zip(group.roles(), table.of(name), strict=True):
            assert (ours.slice, ours.shape, ours.init, ours.init_std) == (row.slice, row.shape, row.init, row.init_std)
            assert (ours.lr, ours.weight_decay, ours.eps) == (row.lr, row.weight_decay, row.eps)
            assert ours.multiplier == row.multiplier


def test_the_schedule_is_the_runs(file: OptimizerFile) -> None:
    assert file.betas == (0.9, 0.9)
    assert file.clip_norm == 0.5
    spec = file.schedule
    assert (spec.warmup_fraction, spec.decay_fraction, spec.lr_decay_to) == (0.1, 0.2, 0.05)
    assert (spec.power_onset_fraction, spec.batch_tokens, spec.total_tokens) == (0.3, 128, 12_800)


def test_without_a_run_the_schedule_says_that_nothing_tuned_it(target: Shape) -> None:
    spec = optimizer_file(role_table(target, falcon_h1_published()), None).schedule
    assert "not tuned" in spec.origin
    assert spec.total_tokens is None


@pytest.mark.parametrize("name", RELEASED)
def test_patterns_are_disjoint_and_complete_at_every_released_shape(name: str) -> None:
    table = role_table(load_shape(name), falcon_h1_published())
    file = optimizer_file(table, None)
    for parameter in table.parameters():
        assert sum(bool(re.fullmatch(group.pattern, parameter)) for group in file.groups) == 1
    assert sum(group.tensors for group in file.groups) == len(table.parameters())


def without(groups: tuple[Group, ...], text: str) -> tuple[Group, ...]:
    kept = tuple(group for group in groups if text not in group.pattern)
    assert len(kept) < len(groups)
    return kept


def test_match_finds_every_way_to_be_wrong(file: OptimizerFile, shapes: Shapes) -> None:
    assert match(file.groups, shapes).keys() == shapes.keys()
    with pytest.raises(UserError, match=r"'model\.layers\.0\.mamba\.D' is matched by no pattern"):
        match(without(file.groups, r"mamba\.D"), shapes)
    greedy = file.groups[0].model_copy(update={"pattern": r"model\..*dt_bias"})
    with pytest.raises(UserError, match=r"dt_bias.* and "):
        match((*file.groups, greedy), shapes)
    with pytest.raises(UserError, match=r"surplus\.bias.*no pattern"):
        match(file.groups, {**shapes, "model.surplus.bias": (3,)})
    with pytest.raises(UserError, match=r"lm_head\.weight' has the shape"):
        match(file.groups, {**shapes, "lm_head.weight": (1, 2)})
    tied = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    with pytest.raises(UserError, match=r"matches 0 parameters, not 1.*untied"):
        match(file.groups, tied)
    shallow = {name: shape for name, shape in shapes.items() if ".layers.1." not in name}
    with pytest.raises(UserError, match="matches 1 parameters, not 2"):
        match(file.groups, shallow)


def test_patterns_match_whole_names_only(file: OptimizerFile, shapes: Shapes) -> None:
    # A dot is a dot and a layer is a number: near misses of every name stay unmatched.
    for name in shapes:
        for near in ("x" + name, name + "x", name.replace(".", "_", 1), re.sub(r"\.\d+\.", ".a.", name)):
            if near != name:
                assert not any(re.fullmatch(group.pattern, near) for group in file.groups), near

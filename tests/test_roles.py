from __future__ import annotations

from dataclasses import replace
from math import isclose, sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.errors import UserError
from mup_tune.multipliers import FORWARD, GROUPS, MATRICES, MULTIPLIER_NAMES, MULTIPLIERS
from mup_tune.roles import group_lr_wd, role_table
from mup_tune.settings import GLOBAL_AXES, Settings, falcon_h1_published, load_settings, standard, untuned
from mup_tune.shape import RELEASED, Shape, load_shape, make_proxy

# Values of the released config.json files (arXiv 2507.22448), written as the powers and fractions they are.
RELEASED_VALUES = {
    "falcon-h1-0.5b": {
        "lm_head": 0.0390625,
        "key": 0.390625,
        "attention_out": 0.9375,
        "ssm_in": 1.25,
        "ssm_out": 0.23570226039551587,
        "mlp_gate": 0.8838834764831844,
        "mlp_down": 0.5859375,
        "ssm_B": 0.3535533905932738,
    },
    "falcon-h1-1.5b-deep": {
        "lm_head": 0.03125,
        "key": 0.17677669529663689,
        "attention_out": 0.5,
        "ssm_in": 1.0,
        "ssm_out": 0.23570226039551587,
        "mlp_gate": 0.7071067811865476,
        "mlp_down": 0.3125,
        "ssm_B": 0.17677669529663689,
    },
    "falcon-h1-7b": {
        "lm_head": 0.013020833333333334,
        "key": 0.17677669529663689 * 25 / 144,
        "attention_out": 0.10416666666666667,
        "ssm_in": 0.4166666666666667,
        "ssm_out": 0.11785113019775793,
        "mlp_gate": 0.2946278254943948,
        "mlp_down": 0.032552083333333336,
        "ssm_B": 0.17677669529663689,
    },
    "falcon-h1-34b": {
        "lm_head": 0.0078125,
        "key": 0.011048543456039806,
        "attention_out": 0.0375,
        "ssm_in": 0.25,
        "ssm_out": 0.08838834764831845,
        "mlp_gate": 0.17677669529663687,
        "mlp_down": 0.011160714285714286,
        "ssm_B": 0.17677669529663689,
    },
}
BRANCHES = ("attention_out", "ssm_out", "mlp_down")


def test_there_are_35_in_three_kinds() -> None:
    kinds = [multiplier.kind for multiplier in MULTIPLIERS.values()]
    assert (len(set(MULTIPLIER_NAMES)), kinds.count("forward"), kinds.count("lr"), kinds.count("wd")) == (35, 12, 16, 7)
    grouped = [name for group in ("forward", "matrix_lr", "matrix_wd", "vector_lr") for name in GROUPS[group]]
    assert sorted(grouped) == sorted(MULTIPLIER_NAMES)
    assert FORWARD.keys() - MULTIPLIERS.keys() == {"attention_in", "ssm_in"}
    assert [name for name, each in FORWARD.items() if each.closes_branch] == list(BRANCHES)


@pytest.mark.parametrize("name", RELEASED_VALUES)
def test_rules_reproduce_the_released_forward_multipliers(name: str) -> None:
    forward = role_table(load_shape(name), falcon_h1_published()).forward
    constants = {
        "embedding": 2**2.5,
        "ssm_z": 2**-1.5,
        "ssm_x": 0.25,
        "ssm_C": 0.5,
        "ssm_dt": 2**-1.5,
        "attention_in": 1.0,
    }
    released = RELEASED_VALUES[name] | constants
    assert len(released) == 14
    assert forward.keys() == released.keys()
    for field, value in released.items():
        assert isclose(forward[field], value, rel_tol=1e-12), field


@pytest.mark.parametrize("name", RELEASED)
def test_shapes_whose_released_values_were_not_read_say_that_theirs_are_predictions(name: str) -> None:
    assert ("predictions of the rules" in load_shape(name).note) == (name not in RELEASED_VALUES)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("start", ["untuned", "published"])
def test_completep_moves_the_branches_and_eps_inside_the_blocks_and_nothing_else(name: str, start: str) -> None:
    """arXiv 2505.01618, Table 1 at α = 1: branches and eps of the blocks × L₀/L; η, λ, init as they are."""
    shape = load_shape(name)
    settings = falcon_h1_published() if start == "published" else untuned(load_shape("cpu-64"))
    plain, deep = (
        role_table(shape, settings),
        role_table(shape, settings.model_copy(update={"depth_rule": "completep"})),
    )
    ratio = settings.base.n_layers / shape.n_layers
    for field, value in plain.forward.items():
        assert isclose(deep.forward[field], value * (ratio if field in BRANCHES else 1), rel_tol=1e-12), field
    for a, b in zip(plain.rows, deep.rows, strict=True):
        branch = next((each for each in BRANCHES if each in a.rule), None)
        inside = a.parameter.startswith("model.layers.")
        assert isclose(b.multiplier, a.multiplier * (ratio if branch else 1), rel_tol=1e-12)
        assert isclose(b.eps, a.eps * (ratio if inside else 1), rel_tol=1e-12)
        assert replace(b, multiplier=a.multiplier, eps=a.eps, rule=a.rule, source=a.source) == a
        assert b.rule.count("L₀/L") == (branch is not None) + inside
        assert ("2505.01618" in b.source) == inside
        assert "L₀" not in a.rule
    assert sum(any(branch in row.rule for branch in BRANCHES) for row in plain.rows) == 3


def test_completep_at_the_base_depth_is_no_depth_rule() -> None:
    shape = load_shape("falcon-h1-1.5b-deep")
    deep = role_table(shape, falcon_h1_published().model_copy(update={"depth_rule": "completep"}))
    assert deep.forward == role_table(shape, falcon_h1_published()).forward
    assert {row.eps for row in deep.rows} == {1e-16}


def test_the_depth_rule_is_part_of_a_settings_identity_and_survives_a_file(tmp_path: Path) -> None:
    deep = falcon_h1_published().model_copy(update={"depth_rule": "completep"})
    assert deep.content_hash() != falcon_h1_published().content_hash()
    path = tmp_path / "deep.yaml"
    path.write_text(deep.to_yaml())
    assert load_settings(str(path), None) == deep
    path.write_text(deep.to_yaml().replace("completep", "complete-p"))
    with pytest.raises(UserError, match=r"deep\.yaml: depth_rule"):
        load_settings(str(path), None)


@pytest.mark.parametrize("name", RELEASED)
def test_rows_cover_every_parameter_of_the_shape(name: str) -> None:
    shape = load_shape(name)
    table = role_table(shape, falcon_h1_published())
    total = 0
    for row in table.rows:
        size = 1
        for dimension in row.shape:
            size *= dimension
        total += size * (shape.n_layers if "{layer}" in row.parameter else 1)
    assert total == shape.parameters()
    assert len(table.parameters()) == len(set(table.parameters()))
    assert all(table.of(parameter) for parameter in table.parameters())


def test_an_unknown_parameter_is_an_error() -> None:
    table = role_table(load_shape("cpu-64"), falcon_h1_published())
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.weight"):
        table.of("model.layers.0.mlp.weight")


def test_untuned_at_its_own_base_has_unit_factors_and_rsqrt_init() -> None:
    shape = load_shape("cpu-64")
    table = role_table(shape, untuned(shape))
    assert set(table.forward.values()) == {1.0}
    for row in table.rows:
        if row.parameter == "model.embed_tokens.weight":
            assert row.init_std == 1.0
        elif row.init == "normal":
            assert isclose(row.init_std or 0, row.shape[1] ** -0.5)
        assert isclose(row.lr, 1.28e-3)
        assert isclose(row.weight_decay, 0.1) == (row.init == "normal")


@pytest.mark.parametrize("width", [32, 128])
def test_the_standard_parametrisation_keeps_the_global_axes_and_nothing_else(width: int) -> None:
    shape = load_shape(f"cpu-{width}")
    tuned = falcon_h1_published().scaled({"elr": 2.0, "ewd": 3.0, "rope_base": 1e-6, "key": 0.5})
    sp = standard(shape, tuned)
    assert sp.name == "sp"
    assert (sp.elr, sp.ewd, sp.rope_base) == (tuned.elr, tuned.ewd, tuned.rope_base)
    assert sp == untuned(shape).with_values({axis: tuned.value(axis) for axis in GLOBAL_AXES}, name="sp")
    table = role_table(shape, sp)
    assert {row.multiplier for row in table.rows} == {1.0}
    assert {row.lr for row in table.rows} == {tuned.eta}
    assert all(isclose(row.init_std or 0, row.shape[1] ** -0.5) for row in table.rows[1:] if row.init == "normal")


@given(st.sampled_from([2, 4, 8]), st.sampled_from(["untuned", "published"]))
def test_hidden_products_scale_as_mup_and_embedding_and_head_init_stay(factor: int, start: str) -> None:
    """σ·multiplier of a hidden matrix, summed over fan_in terms, keeps its size up to the parked factors."""
    small = load_shape("cpu-32")
    large = load_shape(f"cpu-{32 * factor}")
    settings = untuned(small) if start == "untuned" else falcon_h1_published()
    at_small, at_large = role_table(small, settings), role_table(large, settings)
    for a, b in zip(at_small.rows, at_large.rows, strict=True):
        if a.parameter in ("model.embed_tokens.weight", "lm_head.weight"):
            assert a.init_std == b.init_std
        elif a.init == "normal":
            assert isclose((b.init_std or 0) / (a.init_std or 1), sqrt(b.shape[1] / a.shape[1]))
        assert (a.lr, a.weight_decay, a.eps) == (b.lr, b.weight_decay, b.eps)
    # q·k carries σ_q σ_k d · key: (√d)² · d · d⁻² = 1; up·down, v·out and x·out likewise one 1/d a
    # contraction
    assert isclose(at_large.forward["key"] * factor**2, at_small.forward["key"])
    assert isclose(at_large.forward["mlp_down"] * factor**2, at_small.forward["mlp_down"])
    assert isclose(at_large.forward["attention_out"] * factor**2, at_small.forward["attention_out"])
    assert isclose(at_large.forward["ssm_in"] * factor, at_small.forward["ssm_in"])
    assert isclose(at_large.forward["lm_head"] * factor, at_small.forward["lm_head"])


@given(st.sampled_from(list(MATRICES)), st.floats(0.1, 10), st.floats(0.1, 10))
def test_elr_and_ewd_multipliers_are_orthogonal(name: str, m_elr: float, m_ewd: float) -> None:
    settings = falcon_h1_published().scaled({f"{name}.elr": m_elr, f"{name}.ewd": m_ewd})
    eta, lam = group_lr_wd(settings, name)
    assert isclose(sqrt(eta * lam), settings.elr * m_elr, rel_tol=1e-9)
    assert isclose(sqrt(lam / eta), settings.ewd * m_ewd, rel_tol=1e-9)


@given(st.sampled_from(list(MATRICES)), st.floats(0.1, 10))
def test_the_abc_symmetry_keeps_the_elr_and_is_an_ewd_multiplier(name: str, theta: float) -> None:
    """θ in the weight: η → θη and λ → λ/θ, which is mW → mW/θ at the same mE."""
    settings = falcon_h1_published()
    eta, lam = group_lr_wd(settings, name)
    shifted = group_lr_wd(settings.scaled({f"{name}.ewd": 1 / theta}), name)
    assert shifted == pytest.approx((theta * eta, lam / theta), rel=1e-12)


@given(st.sampled_from(MULTIPLIER_NAMES), st.floats(0.1, 10).filter(lambda x: abs(x - 1) > 0.01))
def test_every_multiplier_changes_the_table(name: str, factor: float) -> None:
    shape = load_shape("falcon-h1-1.5b-deep")
    before = role_table(shape, falcon_h1_published())
    after = role_table(shape, falcon_h1_published().scaled({name: factor}))
    assert [(r.multiplier, r.lr, r.weight_decay) for r in before.rows] != [
        (r.multiplier, r.lr, r.weight_decay) for r in after.rows
    ]


def test_settings_survive_a_file_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    settings = falcon_h1_published().scaled({"elr": 1.1, "key": 0.7, "rope_base": 1e-7})
    path.write_text(settings.to_yaml())
    assert load_settings(str(path), None).content_hash() == settings.content_hash()


def test_a_shape_without_ssm_has_no_ssm_rows_and_needs_no_ssm_base() -> None:
    shape = load_shape("cpu-64").model_copy(update={"d_ssm": 0})
    table = role_table(shape, untuned(shape))
    assert not [row for row in table.rows if "mamba" in row.parameter]
    assert "ssm_out" not in table.forward
    with pytest.raises(UserError, match="without an SSM branch"):
        role_table(load_shape("cpu-64"), untuned(shape))


def test_wrong_settings_name_the_field(tmp_path: object) -> None:
    data = falcon_h1_published().model_dump()
    with pytest.raises(ValueError, match="did you mean 'ssm_out'"):
        Settings.model_validate(data | {"multipliers": {"ssm_outt": 1.0}})
    with pytest.raises(ValueError, match="greater than 0"):
        Settings.model_validate(data | {"elr": 0.0})


def test_proxies_of_every_target_resolve() -> None:
    for name in RELEASED:
        proxy, _ = make_proxy(load_shape(name), 128, 2, 264, "p")
        assert isinstance(proxy, Shape)
        assert role_table(proxy, falcon_h1_published()).forward["ssm_in"] == 10.0


def test_needs_ssm_names_exactly_the_mamba_multipliers() -> None:
    named = {name for name, multiplier in MULTIPLIERS.items() if multiplier.needs_ssm}
    vectors = {"conv1d.lr", "A_log.lr", "D.lr", "dt_bias.lr"}
    matrices = {f"ssm_{side}_proj.{axis}" for side in ("in", "out") for axis in ("elr", "ewd")}
    assert named == vectors | matrices | {f"ssm_{field}" for field in ("z", "x", "B", "C", "dt", "out")}

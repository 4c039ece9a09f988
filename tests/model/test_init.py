from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model.init import draw_
from mup_tune.roles import Role, RoleTable, role_table
from mup_tune.settings import Init, Settings, falcon_h1_published, untuned
from mup_tune.shape import Shape, load_shape

IN_PROJ = "model.layers.0.mamba.in_proj.weight"


@pytest.fixture(scope="module")
def shape() -> Shape:
    return load_shape("cpu-128").model_copy(update={"d_ssm": 256, "d_state": 32})


def drawn(table: RoleTable, parameter: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    slices = table.of(parameter)
    rows = sum(role.shape[0] for role in slices)
    tensor = torch.full((rows, *slices[0].shape[1:]), float("nan"), dtype=dtype)
    draw_(tensor, slices, seed=seed, parameter=parameter)
    return tensor


def with_init(shape: Shape, **changes: object) -> Settings:
    settings = untuned(shape)
    return settings.model_copy(update={"init": Init.model_validate(settings.init.model_dump() | changes)})


def test_every_parameter_is_filled_and_normal_slices_have_their_std(shape: Shape) -> None:
    table = role_table(shape, falcon_h1_published())
    for parameter in table.parameters():
        tensor, start = drawn(table, parameter), 0
        assert torch.isfinite(tensor).all(), parameter
        for role in table.of(parameter):
            part = tensor[start : start + role.shape[0]]
            start += role.shape[0]
            if role.init == "normal":
                assert role.init_std is not None
                error = role.init_std / sqrt(2 * part.numel())  # of a sample std
                assert abs(part.std().item() - role.init_std) < 5 * error
                assert abs(part.mean().item()) < 5 * role.init_std / sqrt(part.numel())


def test_slices_are_scaled_each_by_its_own_std(shape: Shape) -> None:
    slices = role_table(shape, untuned(shape)).of(IN_PROJ)
    slices = tuple(replace(role, init_std=2.0**index) for index, role in enumerate(slices))
    tensor = torch.empty(shape.d_in_proj, shape.d_model)
    draw_(tensor, slices, seed=0, parameter=IN_PROJ)
    parts = tensor.split([role.shape[0] for role in slices])
    for index, part in enumerate(parts):
        assert part.std().item() == pytest.approx(2.0**index, rel=0.1)


def test_ssm_vectors_have_mamba_2s_ranges(shape: Shape) -> None:
    wide = shape.model_copy(update={"d_ssm": 4096 * shape.ssm_head_dim})
    table = role_table(wide, untuned(wide))
    layer = "model.layers.1.mamba."
    a = drawn(table, layer + "A_log").exp()
    assert 1 <= a.min() < 1.1
    assert 15.9 < a.max() <= 16 * (1 + 1e-6)
    assert a.mean().item() == pytest.approx(8.5, abs=5 * 15 / sqrt(12 * 4096))
    log_dt = torch.nn.functional.softplus(drawn(table, layer + "dt_bias").double()).log10()
    assert log_dt.min() >= -3 - 1e-4
    assert log_dt.max() <= -1 + 1e-4
    assert log_dt.mean().item() == pytest.approx(-2, abs=5 * 2 / sqrt(12 * 4096))  # uniform in log dt
    assert (drawn(table, layer + "D") == 1).all()
    for name in ("conv1d.weight", "conv1d.bias"):
        taps = drawn(table, layer + name)
        assert 0.49 < taps.abs().max() <= 0.5  # kernel^-½ at a kernel of 4


def test_settings_with_one_seed_share_their_draws(shape: Shape) -> None:
    one = role_table(shape, with_init(shape, hidden=0.01))
    two = role_table(shape, with_init(shape, hidden=0.08, rule="constant").with_values({"elr": 3e-3}))
    for parameter in one.parameters():
        factor = 8.0 if one.of(parameter)[0].init_std == 0.01 else 1.0
        torch.testing.assert_close(drawn(two, parameter), factor * drawn(one, parameter), rtol=1e-6, atol=0)


def test_a_zero_head_is_zero(shape: Shape) -> None:
    assert not drawn(role_table(shape, with_init(shape, lm_head="zero")), "lm_head.weight").any()


def test_seeds_layers_and_parameters_differ(shape: Shape) -> None:
    table = role_table(shape, untuned(shape))
    layer_0, layer_1 = "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    draws = [
        drawn(table, layer_0),
        drawn(table, layer_1),
        drawn(table, layer_0.replace("k_proj", "v_proj")),
        drawn(table, layer_0, seed=1),
    ]
    flat = torch.stack([draw.flatten() for draw in draws])
    correlation = torch.corrcoef(flat) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / sqrt(flat.shape[1])


def test_repeats_bitwise_and_leaves_the_global_generator_alone(shape: Shape) -> None:
    table = role_table(shape, untuned(shape))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = drawn(table, IN_PROJ)
    torch.manual_seed(8)
    assert torch.equal(first, drawn(table, IN_PROJ))
    torch.manual_seed(7)
    drawn(table, IN_PROJ)
    assert torch.equal(before, torch.get_rng_state())


def test_dtype_and_memory_layout_do_not_change_the_draw(shape: Shape) -> None:
    table = role_table(shape, untuned(shape))
    wanted = drawn(table, IN_PROJ)
    assert torch.equal(drawn(table, IN_PROJ, dtype=torch.bfloat16), wanted.bfloat16())
    transposed = torch.empty(shape.d_model, shape.d_in_proj).T
    draw_(transposed, table.of(IN_PROJ), seed=0, parameter=IN_PROJ)
    assert torch.equal(transposed, wanted)


def test_a_parameter_that_requires_grad_is_filled_in_place(shape: Shape) -> None:
    table = role_table(shape, untuned(shape))
    weight = torch.nn.Parameter(torch.zeros(shape.vocab_size, shape.d_model))
    draw_(weight, table.of("lm_head.weight"), seed=0, parameter="lm_head.weight")
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.std() > 0


def test_meta_tensors_and_wrong_shapes_are_refused(shape: Shape) -> None:
    slices: tuple[Role, ...] = role_table(shape, untuned(shape)).of(IN_PROJ)
    with pytest.raises(UserError, match=r"in_proj.*meta"):
        draw_(torch.empty(shape.d_in_proj, shape.d_model, device="meta"), slices, seed=0, parameter=IN_PROJ)
    with pytest.raises(UserError, match=r"in_proj.*shape"):
        draw_(torch.empty(shape.d_in_proj + 1, shape.d_model), slices, seed=0, parameter=IN_PROJ)


def test_the_dt_draw_inverts_softplus_at_both_ends() -> None:
    # The smallest dt is where float32 could lose the inverse: log(-expm1(-dt)) must not cancel.
    role = Role("p", "", (1 << 16,), "softplus_inverse_dt", None, 1.0, 1.0, 0.0, 1e-16, "", "")
    tensor = torch.empty(1 << 16)
    draw_(tensor, [role], seed=0, parameter="p")
    dt = torch.nn.functional.softplus(tensor.double())
    assert dt.min().log().item() == pytest.approx(log(1e-3), abs=1e-3)
    assert dt.max().log().item() == pytest.approx(log(1e-1), abs=1e-3)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.errors import UserError
from mup_tune.files import shipped
from mup_tune.shape import RELEASED, Shape, load_shape, make_proxy, scaled, width_step

PUBLISHED_COUNTS = {
    "falcon-h1-0.5b": 0.521e9,
    "falcon-h1-1.5b": 1.555e9,
    "falcon-h1-1.5b-deep": 1.555e9,
    "falcon-h1-3b": 3.149e9,
    "falcon-h1-7b": 7.586e9,
    "falcon-h1-34b": 33.64e9,
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    digits = 4 if name != "falcon-h1-0.5b" else 3
    assert f"{load_shape(name).parameters():.{digits - 1}e}" == f"{PUBLISHED_COUNTS[name]:.{digits - 1}e}"


@pytest.mark.parametrize("width", [32, 64, 128, 256, 512])
def test_cpu_family_has_channels_in_ratio_2_1_4_at_every_width(width: int) -> None:
    shape = load_shape(f"cpu-{width}")
    assert (shape.d_ssm, shape.d_attn, shape.d_ff) == (width, width // 2, 2 * width)
    assert (shape.head_dim, shape.ssm_head_dim, shape.d_state, shape.n_heads) == (8, 8, 16, 2 * shape.n_kv_heads)


def test_flops_are_six_per_matmul_weight_plus_attention_and_ssd() -> None:
    shape = load_shape("cpu-64")
    weights = 2 * (64 * (32 + 16 + 16) + 32 * 64 + 64 * (64 + 64 + 32 + 8) + 64 * 64 + 3 * 64 * 128) + 64 * 264
    assert shape.flops_per_token(100) == 6 * weights + 2 * (6 * 32 * 100 + 12 * 16 * 64)


def test_without_an_ssm_branch_nothing_of_it_is_counted() -> None:
    shape = load_shape("cpu-64").model_copy(update={"d_ssm": 0})
    assert (shape.d_conv, shape.d_in_proj, shape.n_ssm_heads) == (0, 0, 0)
    per_layer = 64 * (2 * 32 + 2 * 16) + 3 * 64 * 128 + 2 * 64
    assert shape.parameters() == 2 * per_layer + 64 * (2 * 264 + 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_kv_heads", 3, "multiple of n_kv_heads"),
        ("head_dim", 7, "even"),
        ("d_ssm", 36, "multiple of ssm_head_dim"),
        ("n_groups", 3, "multiple of n_groups"),
        ("n_layers", 0, "greater than or equal to 1"),
        ("d_model", 64.5, "integer"),
    ],
)
def test_inconsistent_sizes_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape.model_validate(load_shape("cpu-64").model_dump() | {field: value})


def test_the_hash_ignores_the_label_and_sees_every_size() -> None:
    shape = load_shape("cpu-64")
    assert shape.model_copy(update={"name": "other"}).content_hash() == shape.content_hash()
    assert shape.model_copy(update={"d_state": 32}).content_hash() != shape.content_hash()


@given(st.sampled_from(RELEASED), st.integers(2, 200), st.integers(1, 8))
def test_a_proxy_is_valid_and_keeps_proportions_as_far_as_it_says(target: str, eighths: int, depth: int) -> None:
    full = load_shape(target)
    proxy, notes = make_proxy(full, 8 * eighths, depth, 300, "proxy")
    assert (proxy.d_model, proxy.n_layers, proxy.vocab_size) == (8 * eighths, depth, 300)
    assert proxy.d_state == full.d_state
    if not notes:
        for field in ("d_attn", "d_ssm", "d_ff"):
            assert getattr(proxy, field) * full.d_model == getattr(full, field) * proxy.d_model
        assert (proxy.head_dim, proxy.ssm_head_dim) == (full.head_dim, full.ssm_head_dim)


def test_half_a_target_needs_no_rounding() -> None:
    proxy, notes = make_proxy(load_shape("falcon-h1-0.5b"), 512, 8, None, "half")
    assert notes == []
    assert (proxy.n_heads, proxy.n_kv_heads, proxy.d_ssm, proxy.d_ff, proxy.head_dim) == (4, 1, 768, 1024, 64)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'falcon-h1-7b'"):
        load_shape("falcon-h1-7")


SHIPPED = sorted(path.stem for path in shipped("proxy_models").glob("*.yaml"))


@given(st.sampled_from(SHIPPED), st.integers(1, 6000))
def test_the_widths_of_a_family_are_the_multiples_of_its_step(name: str, width: int) -> None:
    shape = load_shape(name)
    step = width_step(shape)
    for wanted in (width, step * (1 + width % 9)):
        if wanted % step:
            with pytest.raises(UserError, match=f"has the widths {step}, {2 * step}, {3 * step} …"):
                scaled(shape, wanted)
        else:
            assert scaled(shape, wanted).d_model == wanted

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup_tune.channels import Ratio, at_depth, equalised, nearest, split
from mup_tune.errors import UserError
from mup_tune.multipliers import Base
from mup_tune.roles import role_table
from mup_tune.settings import falcon_h1_published
from mup_tune.shape import RELEASED, Shape, load_shape

ORDERS = ("SA_M", "SAM", "S_A_M")
RATIOS = [Ratio(ssm, attention, 8 - ssm - attention) for ssm in range(1, 7) for attention in range(1, 8 - ssm)]
PROXY = load_shape("cpu-channels")


def valid(shape: Shape) -> Shape:
    """``model_copy`` checks nothing, so every result is checked here."""
    return Shape.model_validate(shape.model_dump())


def kept(shape: Shape) -> tuple[float, ...]:
    return (shape.head_dim, shape.ssm_head_dim, shape.d_state, shape.n_groups, shape.n_heads / shape.n_kv_heads)


def problem(function: Callable[..., object], *arguments: object) -> str:
    """What a :class:`UserError` says, or nothing."""
    try:
        function(*arguments)
    except UserError as refused:
        return str(refused)
    return ""


@given(st.sampled_from(RATIOS))
def test_a_ratio_makes_the_round_trip_through_its_text(ratio: Ratio) -> None:
    assert Ratio.parse(str(ratio)) == ratio


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("2:1", "no ratio"),
        ("2:1:5:0", "no ratio"),
        ("a:1:5", "no ratio"),
        ("2:1:5.0", "no ratio"),
        ("-2:5:5", "no ratio"),
        ("2:1:6", "sum to 9, not 8"),
        ("0:3:5", "at least 1"),
    ],
)
def test_what_is_no_ratio_of_eighths_is_named_with_the_fix(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        Ratio.parse(text)
    assert text in str(raised.value)
    assert "for example 2:1:5" in str(raised.value)


def test_the_eighths_that_a_shape_has() -> None:
    assert str(Ratio.of(PROXY)) == "2:1:5"
    assert Ratio.of(load_shape("cpu-64")) is None  # 2:1:4 are sevenths
    assert Ratio.of(PROXY.model_copy(update={"d_ssm": 0})) is None


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_every_ratio_splits_the_shipped_proxy_at_equal_parameters(ratio: Ratio, order: str) -> None:
    shape = valid(split(PROXY, ratio, order))
    assert (shape.d_ssm, shape.d_attn) == (32 * ratio.ssm, 32 * ratio.attention)
    assert abs(shape.d_ff - 32 * ratio.mlp) <= 0.25 * 32 * ratio.mlp
    assert abs(shape.parameters() / PROXY.parameters() - 1) < 0.005
    assert kept(shape) == kept(PROXY)
    assert (shape.name, shape.block_order) == (f"cpu-channels-{ratio}" + f"-{order}" * (order != "SA_M"), order)


def test_a_proxy_split_as_it_is_stays_as_it_is() -> None:
    again = split(PROXY, Ratio(2, 1, 5))
    assert again.model_copy(update={"name": PROXY.name}) == PROXY


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Shapes whose eighths may or may not hold whole heads."""
    n_kv, per_kv, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    return Shape(
        name="drawn",
        d_model=draw(st.sampled_from((256, 512))),
        n_layers=draw(st.integers(1, 4)),
        n_heads=n_kv * per_kv,
        n_kv_heads=n_kv,
        head_dim=draw(st.sampled_from((8, 16))),
        d_ssm=16 * groups * draw(st.integers(1, 16)),
        ssm_head_dim=16,
        d_state=16,
        n_groups=groups,
        d_ff=draw(st.integers(8, 128)) * 8,
        vocab_size=264,
    )


@given(shapes(), st.sampled_from(RATIOS), st.sampled_from(ORDERS))
def test_a_split_is_exact_at_equal_parameters_or_refused_with_a_d_ff_that_fits(
    shape: Shape, ratio: Ratio, order: str
) -> None:
    try:
        found = valid(split(shape, ratio, order))
    except UserError as refused:
        if "need d_ff" in str(refused):
            return
        fits = int(str(refused.fix).split("d_ff = ")[1].split()[0])
        other = shape.model_copy(update={"d_ff": fits})
        assert (other.d_ssm + other.d_attn + other.d_ff) % 8 == 0
        assert "need d_ff" in (problem(split, other, ratio, order) or "need d_ff")
        return
    chunk = (shape.d_ssm + shape.d_attn + shape.d_ff) // 8
    assert (found.d_ssm, found.d_attn) == (chunk * ratio.ssm, chunk * ratio.attention)
    assert kept(found) == kept(shape)
    # What one d_ff more would add is the resolution; a multiple of 8 is used only within 0.5 %.
    step = 3 * shape.d_model * shape.n_layers
    assert abs(found.parameters() - shape.parameters()) <= max(step / 2, 0.005 * shape.parameters())


@given(shapes(), st.sampled_from(RATIOS))
def test_nearest_is_a_valid_shape_of_whole_heads_and_says_what_it_rounded(shape: Shape, ratio: Ratio) -> None:
    if refused := problem(nearest, shape, ratio):
        assert "need d_ff" in refused
        return
    found, notes = nearest(shape, ratio)
    valid(found)
    assert kept(found) == kept(shape)
    chunk = (shape.d_ssm + shape.d_attn + shape.d_ff) / 8
    for label, eighths, unit in (
        ("d_ssm", ratio.ssm, shape.ssm_head_dim * shape.n_groups),
        ("d_attn", ratio.attention, shape.d_attn // shape.n_kv_heads),
    ):
        got = getattr(found, label)
        assert got == unit or abs(got - eighths * chunk) <= unit / 2
        assert any(note.startswith(label) for note in notes) == (got != eighths * chunk)
    assert any(note.startswith("d_ff") for note in notes) == (found.d_ff != ratio.mlp * chunk)


def test_a_shape_that_can_be_split_has_nothing_to_round() -> None:
    for ratio in RATIOS:
        found, notes = nearest(PROXY, ratio)
        assert found == split(PROXY, ratio)
        assert [note for note in notes if not note.startswith("d_ff")] == []


@pytest.mark.parametrize("name", RELEASED)
def test_released_targets_take_the_ablation_s_winner(name: str) -> None:
    target = load_shape(name)
    shape, notes = nearest(target, Ratio(2, 1, 5))
    valid(shape)
    total = target.d_ssm + target.d_attn + target.d_ff
    assert abs(shape.parameters() / target.parameters() - 1) < 0.001
    assert abs(shape.d_ssm / total - 2 / 8) < 0.01
    assert abs(shape.d_attn / total - 1 / 8) < 0.02
    assert abs(shape.d_ff / total - 5 / 8) < 0.02
    assert shape.d_ff % 8 == 0
    assert (notes == []) == (name == "falcon-h1-0.5b")
    # The width rules follow the new channel counts: every contraction keeps its 1/(contracted dimension).
    before, after = (role_table(each, falcon_h1_published()).forward for each in (target, shape))
    assert after["ssm_out"] / before["ssm_out"] == pytest.approx(target.d_ssm / shape.d_ssm)
    assert after["attention_out"] / before["attention_out"] == pytest.approx(target.d_attn / shape.d_attn)
    assert after["mlp_down"] / before["mlp_down"] == pytest.approx(target.d_ff / shape.d_ff)


def test_a_proxy_of_sevenths_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"= 224, an eighth of it is 28 .* multiple of 128: d_ff = 32 or 160 fits"):
        split(load_shape("cpu-64"), Ratio(2, 1, 5))


def test_a_shape_without_an_ssm_branch_has_nothing_to_share() -> None:
    for refused in (split, nearest):
        with pytest.raises(UserError, match="no SSM branch"):
            refused(PROXY.model_copy(update={"d_ssm": 0}), Ratio(2, 1, 5))


def test_equalised_prefers_a_multiple_of_eight_while_it_is_near_enough() -> None:
    wide, narrow = load_shape("cpu-512"), load_shape("cpu-32")
    for shape in (wide, narrow):
        wanted = shape.model_copy(update={"d_ff": shape.d_ff + 3}).parameters()
        found = equalised(shape, wanted)
        assert found.d_ff == (shape.d_ff if shape is wide else shape.d_ff + 3)
    with pytest.raises(UserError, match="more than 25%"):
        equalised(narrow, narrow.model_copy(update={"d_ff": 90}).parameters())


@given(st.sampled_from(("cpu-128", "cpu-256", "cpu-512", "falcon-h1-34b")), st.integers(1, 80))
def test_width_is_traded_for_depth_at_equal_parameters_or_depths_that_work_are_named(name: str, depth: int) -> None:
    shape = load_shape(name)
    try:
        found = valid(at_depth(shape, depth))
    except UserError as refused:
        works = str(refused).split("Depths that work: ")[1].split(";")[0].split(", ")
        assert all(at_depth(shape, int(each)).n_layers == int(each) for each in works)
        return
    assert found.n_layers == depth
    assert abs(found.parameters() / shape.parameters() - 1) < 0.006
    assert kept(found) == kept(shape)
    ratio = found.d_model / shape.d_model
    assert (found.d_ssm, found.d_attn) == (ratio * shape.d_ssm, ratio * shape.d_attn)
    assert abs(found.d_ff / (ratio * shape.d_ff) - 1) <= 0.25


def test_the_same_depth_is_the_same_shape_and_no_depth_is_refused() -> None:
    for name in ("cpu-256", "falcon-h1-7b"):
        shape = load_shape(name)
        assert at_depth(shape, shape.n_layers).model_copy(update={"name": shape.name}) == shape
        assert Base.of(at_depth(shape, shape.n_layers)) == Base.of(shape)
    with pytest.raises(UserError, match="at least one layer"):
        at_depth(PROXY, 0)

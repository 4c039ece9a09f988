"""Shapes at equal parameters: channels shared in eighths, and width traded for depth (arXiv 2507.22448, §2).

The inner channels C = d_ssm + d_attn + d_ff are cut into eight chunks, shared by SSM, attention and MLP. Head
dims, d_state, groups and query heads per KV head stay as they are; d_ff absorbs what is left of the parameter
count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

from mup_tune.errors import UserError
from mup_tune.shape import BlockOrder, Shape, scaled

EIGHTHS = 8
MLP_MULTIPLE = 8  # what matmul kernels like d_ff to be a multiple of
TOLERANCE = 0.005  # of the parameter count, that being a multiple may cost
LARGEST_CHANGE = 0.25  # of d_ff; beyond it the shape compared is no longer the one asked for


@dataclass(frozen=True)
class Ratio:
    """SSM : attention : MLP in eighths of the inner channels, each at least 1; Falcon-H1's is 2:1:5."""

    ssm: int
    attention: int
    mlp: int

    def __post_init__(self) -> None:
        parts = (self.ssm, self.attention, self.mlp)
        if min(parts) < 1 or sum(parts) != EIGHTHS:
            wrong = "every part is at least 1" if min(parts) < 1 else f"its parts sum to {sum(parts)}, not {EIGHTHS}"
            raise UserError(
                f"the ratio {self} is not allowed: {wrong}",
                field="channels",
                fix=f"Share {EIGHTHS} eighths among SSM:attention:MLP, for example 2:1:5",
            )

    def __str__(self) -> str:
        return f"{self.ssm}:{self.attention}:{self.mlp}"

    @classmethod
    def parse(cls, text: str) -> Ratio:
        """``"2:1:5"`` as a Ratio.

        Raises:
            UserError: not three whole numbers, one below 1, or a sum other than 8.
        """
        parts = [part.strip() for part in text.split(":")]
        if len(parts) != 3 or not all(part.isdecimal() and part.isascii() for part in parts):
            raise UserError(
                f"{text!r} is no ratio of channels",
                field="channels",
                fix="Write three whole numbers SSM:attention:MLP that sum to 8, for example 2:1:5",
            )
        return cls(*(int(part) for part in parts))

    @classmethod
    def of(cls, shape: Shape) -> Ratio | None:
        """The eighths that ``shape`` has exactly, else None."""
        total = _inner_channels(shape)
        parts = [EIGHTHS * channels for channels in (shape.d_ssm, shape.d_attn, shape.d_ff)]
        if any(part % total or not part for part in parts):
            return None
        return cls(*(part // total for part in parts))


def split(shape: Shape, ratio: Ratio, block_order: BlockOrder = "SA_M") -> Shape:
    """``shape`` with its inner channels shared as ``ratio`` says, in ``block_order``, at equal parameters.

    Raises:
        UserError: a chunk holds no whole number of heads, or equal parameters would change d_ff by more than
        25 %.
    """
    ssm_unit, attention_unit = _units(shape)
    total, unit = _inner_channels(shape), EIGHTHS * lcm(ssm_unit, attention_unit)
    if total % unit:
        below, above = total // unit * unit, (total // unit + 1) * unit
        fits = [n - shape.d_ssm - shape.d_attn for n in (below, above) if n > shape.d_ssm + shape.d_attn]
        raise UserError(
            f"{shape.name!r} has d_ssm + d_attn + d_ff = {total}, an eighth of it is {total / EIGHTHS:g} channels, and "
            f"that is no whole number of {ssm_unit} (SSM heads × groups) and of {attention_unit} (the query heads of "
            "one KV head)",
            field="channels",
            fix=f"Use channels that sum to a multiple of {unit}: d_ff = {' or '.join(map(str, fits))} fits",
        )
    chunk = total // EIGHTHS
    named = f"{shape.name}-{ratio}" + ("" if block_order == "SA_M" else f"-{block_order}")
    changed = _with_channels(shape, ratio.ssm * chunk, ratio.attention * chunk, ratio.mlp * chunk)
    changed = changed.model_copy(update={"name": named, "block_order": block_order})
    return equalised(changed, shape.parameters())


def nearest(shape: Shape, ratio: Ratio) -> tuple[Shape, list[str]]:
    """``shape`` shared as near to ``ratio`` as whole heads allow, at equal parameters, and what was rounded.

    Raises:
        UserError: equal parameters would change d_ff by more than 25 %.
    """
    chunk = _inner_channels(shape) / EIGHTHS
    notes: list[str] = []

    def fit(label: str, eighths: int, unit: int, of: str) -> int:
        rounded = max(1, int(eighths * chunk / unit + 0.5)) * unit
        if rounded != eighths * chunk:
            notes.append(f"{label}: {eighths * chunk:g} rounded to {rounded} (a multiple of {unit}: {of})")
        return rounded

    ssm_unit, attention_unit = _units(shape)
    d_ssm = fit("d_ssm", ratio.ssm, ssm_unit, "whole SSM heads in every group")
    d_attn = fit("d_attn", ratio.attention, attention_unit, "all query heads of a KV head")
    wanted = ratio.mlp * chunk
    changed = _with_channels(shape, d_ssm, d_attn, round(wanted)).model_copy(update={"name": f"{shape.name}-{ratio}"})
    result = equalised(changed, shape.parameters())
    if result.d_ff != wanted:
        count, before = result.parameters(), shape.parameters()
        notes.append(f"d_ff: {wanted:g} became {result.d_ff}, so that {count:,} parameters meet the {before:,} before")
    return result, notes


def equalised(shape: Shape, parameters: int) -> Shape:
    """``shape`` with the d_ff whose parameter count is nearest to ``parameters``.

    A multiple of 8 where that is within 0.5 % of the count, else the nearest whole number.

    Raises:
        UserError: d_ff would change by more than 25 %.
    """
    missing = parameters - shape.parameters()
    if not missing:
        return shape
    exact = shape.d_ff + missing / (3 * shape.d_model * shape.n_layers)

    def at(d_ff: int) -> Shape | None:
        allowed = d_ff >= 1 and abs(d_ff - shape.d_ff) <= LARGEST_CHANGE * shape.d_ff
        return shape.model_copy(update={"d_ff": d_ff}) if allowed else None

    multiple = at(round(exact / MLP_MULTIPLE) * MLP_MULTIPLE)
    if multiple and abs(multiple.parameters() - parameters) <= TOLERANCE * parameters:
        return multiple
    found = at(round(exact))
    if found is None:
        raise UserError(
            f"{shape.name!r} would need d_ff = {exact:.0f} instead of {shape.d_ff} to have {parameters:,} parameters: "
            f"a change of more than {LARGEST_CHANGE:.0%}",
            field="channels",
            fix="Choose channels nearer to the Shape's own, or a wider Shape, where a head weighs less",
        )
    return found


def at_depth(shape: Shape, depth: int) -> Shape:
    """``shape`` with ``depth`` layers at equal parameters: width traded for depth, nothing rounded.

    Raises:
        UserError: no width comes near enough for d_ff to absorb the rest; the nearest depths that work are
        named.
    """
    if depth < 1:
        raise UserError(f"{depth} is not allowed: a Shape has at least one layer", field="depths")
    found = _traded(shape, depth)
    if found is not None:
        return found
    works = [each for each in range(1, max(4 * shape.n_layers, 2 * depth) + 1) if _traded(shape, each)]
    near = [*[each for each in works if each < depth][-2:], *[each for each in works if each > depth][:2]]
    raise UserError(
        f"no width of {shape.name!r} at depth {depth} comes near its {shape.parameters():,} parameters: widths go in "
        f"steps of {_width_step(shape)}, by its head counts, and d_ff would change by more than {LARGEST_CHANGE:.0%}",
        field="depths",
        fix=f"Depths that work: {', '.join(map(str, near))}; more heads make the steps finer",
    )


def _traded(shape: Shape, depth: int) -> Shape | None:
    """The width nearest in parameters at ``depth``, d_ff absorbing the rest; None where it cannot."""
    wanted, width = shape.parameters(), _width_step(shape)
    while scaled(shape, width + _width_step(shape), depth).parameters() <= wanted:
        width += _width_step(shape)
    around = [scaled(shape, each, depth) for each in (width, width + _width_step(shape))]
    closest = min(around, key=lambda each: abs(each.parameters() - wanted))
    try:
        return equalised(closest, wanted)
    except UserError:
        return None


def _width_step(shape: Shape) -> int:
    """The smallest step of d_model at which :func:`mup_tune.shape.scaled` has nothing to round."""
    return shape.d_model // gcd(shape.d_model, shape.n_kv_heads, shape.n_ssm_heads // shape.n_groups, shape.d_ff)


def _inner_channels(shape: Shape) -> int:
    return shape.d_ssm + shape.d_attn + shape.d_ff


def _units(shape: Shape) -> tuple[int, int]:
    """The channels that SSM and attention grow by: a head in every group; a KV head with its query heads."""
    if not shape.d_ssm:
        raise UserError(
            f"{shape.name!r} has no SSM branch (d_ssm = 0), so there is nothing to share with it",
            field="channels",
            fix="Use a Shape with an SSM branch",
        )
    return shape.ssm_head_dim * shape.n_groups, shape.d_attn // shape.n_kv_heads


def _with_channels(shape: Shape, d_ssm: int, d_attn: int, d_ff: int) -> Shape:
    heads, per_kv = d_attn // shape.head_dim, shape.n_heads // shape.n_kv_heads
    return shape.model_copy(
        update={"d_ssm": d_ssm, "n_heads": heads, "n_kv_heads": heads // per_kv, "d_ff": d_ff},
    )

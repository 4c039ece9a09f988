"""Lists of axes, as plans name them and as stages move them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator

from mup_tune.errors import UserError, as_value_error
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.settings import Settings, check_axis
from mup_tune.shape import Shape


def _checked(axes: list[str] | str) -> list[str] | str:
    if isinstance(axes, str):
        if axes != "all":
            raise ValueError(f"{axes!r} is not allowed: give 'all' or a list of axes")
        return axes
    for axis in axes:
        with as_value_error():
            check_axis(axis)
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"{axes} is not allowed: name at least one axis, each once")
    return axes


Axes = Annotated[list[str] | str, AfterValidator(_checked)]  # "all", or names


def acting(axes: Sequence[str], shape: Shape) -> tuple[str, ...]:
    """Those of ``axes`` that do something at ``shape``."""
    return tuple(axis for axis in axes if shape.d_ssm or axis not in MULTIPLIERS or not MULTIPLIERS[axis].needs_ssm)


def named(axes: list[str] | str, everything: Sequence[str], shape: Shape) -> tuple[str, ...]:
    """The axes that ``axes`` stands for and that act at ``shape``; ``everything`` is what "all" means.

    Raises:
        UserError: none of them acts there.
    """
    wanted = tuple(everything if axes == "all" else axes)
    there = acting(wanted, shape)
    if not there:
        raise UserError(
            f"without an SSM branch (d_ssm = 0) none of {', '.join(wanted)} does anything",
            field="axes",
            fix="Name axes of another branch",
        )
    return there


def most_sensitive(
    axes: Sequence[str], sensitivity: Mapping[str, float], top: int, refuse: bool, field: str = "top"
) -> tuple[str, ...]:
    """The ``top`` of ``axes`` along which the loss bends most, in their order; fewer where fewer bend.

    Raises:
        UserError: fewer bend, and ``refuse``: before anything is spent. An axis that turns out flat ends no
        run half-way.
    """
    measured = {axis: sensitivity[axis] for axis in axes if sensitivity.get(axis, 0.0) > 0}
    if len(measured) < top and refuse:
        raise UserError(
            f"{field} = {top} but earlier stages measure only {len(measured)} axes",
            field=field,
            fix="Put a `surface`, `micro` or `elr_ewd` stage before this one, lower it, or name them",
        )
    taken = sorted(measured, key=lambda axis: (-measured[axis], axes.index(axis)))[:top]
    return tuple(axis for axis in axes if axis in taken)


def moved(centre: Settings, offsets: Mapping[str, float]) -> Settings:
    """``centre`` with log2 ``offsets`` added to its axes."""
    return centre.scaled({axis: 2.0**offset for axis, offset in offsets.items()})

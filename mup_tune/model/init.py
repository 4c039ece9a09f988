"""The training init: tensors in ``transformers``' shapes, slice by slice, from their rows of the role table.

Draws are standard ones scaled by the slice's std, from a generator seeded by (seed, parameter) alone: two
Settings with one seed start from the same draws (common random numbers), and so do two models that share a
parameter's shape. The SSM's distributions are Mamba-2's (arXiv 2405.21060); ``transformers``' own init is a
loading default and no training init: dt_bias = 1 gives dt = 1.31, and A_log = log(1 … n_heads) grows with
width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import log, prod, sqrt

import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.roles import Role

A_LOW, A_HIGH = 1.0, 16.0
DT_LOW, DT_HIGH, DT_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def draw_(tensor: Tensor, slices: Sequence[Role], *, seed: int, parameter: str) -> None:
    """Fill one parameter in place; no global random state is read or changed.

    Args:
        tensor: in ``transformers``' shape, the slices one after another along its first dimension. Drawn in
            float32 on the tensor's own device (a CPU and a GPU draw differently) and rounded to its dtype.
        slices: the parameter's rows of the role table, in order.
        seed: the trial's seed.
        parameter: the concrete name, ``model.layers.3.mamba.D``, which seeds the draw with ``seed``.

    Raises:
        UserError: a tensor on the meta device, or one whose shape is not that of the slices.
    """
    draw_each_([tensor], [slices], seed=seed, parameter=parameter)


@torch.no_grad()
def draw_each_(tensors: Sequence[Tensor], slices: Sequence[Sequence[Role]], *, seed: int, parameter: str) -> None:
    """:func:`draw_` of one parameter of several models on one device, whose Settings alone may differ.

    They share one draw, and every model's own std scales it.
    """
    for tensor, own in zip(tensors, slices, strict=True):
        _check(tensor, own, parameter)
    generator = torch.Generator(device=tensors[0].device).manual_seed(_seed_of(seed, parameter))
    start = 0
    for roles in zip(*slices, strict=True):
        rows, drawn = roles[0].shape[0], _drawn(roles[0], generator)
        for tensor, role in zip(tensors, roles, strict=True):
            target, std = tensor.narrow(0, start, rows), _scale(role)
            if std is None:
                target.copy_(drawn)
            elif target.dtype == drawn.dtype:
                torch.mul(drawn, std, out=target)
            else:
                target.copy_(drawn * std)
        start += rows


def _check(tensor: Tensor, slices: Sequence[Role], parameter: str) -> None:
    if tensor.is_meta:
        raise UserError(
            f"the parameter {parameter!r} is on the meta device and holds no numbers",
            fix="Build the model on a real device, then initialise it",
        )
    expected = (sum(role.shape[0] for role in slices), *slices[0].shape[1:])
    if tuple(tensor.shape) != expected:
        raise UserError(f"the parameter {parameter!r} has the shape {tuple(tensor.shape)}, its role says {expected}")


def _seed_of(seed: int, parameter: str) -> int:
    """63 bits of a hash, so that neighbouring seeds and names share nothing."""
    digest = hashlib.sha256(f"{seed}:{parameter}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _drawn(role: Role, generator: torch.Generator) -> Tensor:
    """One slice's draw before :func:`_scale`, float32 on the generator's device."""
    draw = torch.empty(role.shape, dtype=torch.float32, device=generator.device)
    match role.init:
        case "normal":
            return draw.normal_(generator=generator)
        case "conv_uniform":
            return draw.uniform_(-1, 1, generator=generator)
        case "log_uniform_A":
            return (A_LOW + (A_HIGH - A_LOW) * _spread(draw, generator)).log_()
        case "softplus_inverse_dt":
            log_dt = log(DT_LOW) + (log(DT_HIGH) - log(DT_LOW)) * _spread(draw, generator)
            dt = log_dt.exp_().clamp_(min=DT_FLOOR)
            return dt + torch.log(-torch.expm1(-dt))
        case "zeros":
            return draw.zero_()
        case "ones":
            return draw.fill_(1.0)


def _scale(role: Role) -> float | None:
    """What a slice's draw is multiplied by; None where the draw is the init itself."""
    match role.init:
        case "normal":
            return _std(role)
        case "conv_uniform":
            # The bound is kernel^-½, PyTorch's for a depthwise convolution; the std of U(±b) is b/√3.
            return _std(role) * sqrt(3)
        case _:
            return None


def _spread(draw: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) with one number in each n-th, in random order: every head's own law is unchanged, but two seeds
    no longer differ in how many slow heads they drew, which is most of a narrow proxy's noise."""
    order = torch.randperm(draw.numel(), generator=generator, device=draw.device)
    return (draw.uniform_(generator=generator) + order.view_as(draw)) / draw.numel()


def _std(role: Role) -> float:
    if role.init_std is None:
        raise AssertionError(f"{role.parameter}: the init {role.init!r} needs a std over {prod(role.shape)} numbers")
    return role.init_std

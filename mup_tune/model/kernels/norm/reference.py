"""The norm kernels' twins, of :func:`mup_tune.model.layers.rms_norm`.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

from torch import Tensor

from mup_tune.model.layers import rms_norm


def add_norm_reference(residual_PND: Tensor, branch_PND: Tensor | None, weight_PD: Tensor) -> tuple[Tensor, Tensor]:
    """``summed`` and ``normed`` of :func:`~mup_tune.model.kernels.norm.add_norm`."""
    summed_PND = residual_PND if branch_PND is None else residual_PND + branch_PND
    return summed_PND, group_norm_reference(summed_PND, weight_PD, 1)


def group_norm_reference(y_PNC: Tensor, weight_PC: Tensor, n_groups: int) -> Tensor:
    """What :func:`~mup_tune.model.kernels.norm.group_norm` writes."""
    return rms_norm(y_PNC[:, None], weight_PC, n_groups)[:, 0]

"""What a loss depends on where ELR, EWD and the multipliers of single groups move at once: their products.

A matrix trains at ELR·mE and EWD·mW, a vector at η·m with η = ELR/EWD (:func:`mup_tune.roles.group_lr_wd`).
So moving ELR is moving every group's mE, exactly, and a response surface that took them for independent axes
would mistake their sums for interactions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mup_tune.multipliers import FORWARD, LR_OF, MULTIPLIERS, VECTORS, WD_OF
from mup_tune.search.axes import acting
from mup_tune.shape import Shape
from mup_tune.stats.losses import Array


def coordinates(units: Mapping[str, float], shape: Shape) -> Array:
    """The matrix [M, K] that takes a step in K axes, in their units, to what M coordinates move by.

    Coordinates are log2 ELR and log2 EWD of every matrix, log2 η of every vector, log2 of the forward
    multipliers, and the RoPE base in its unit; those that none of the axes moves are left out.

    Args:
        units: log2 of each axis' unit, in order.
    """
    place = {axis: index for index, axis in enumerate(units)}

    def row(powers: Mapping[str, float]) -> Array:
        """The product of the axes to these powers; axes that do not move are left out."""
        found = np.zeros(len(place))
        for axis, power in powers.items():
            if axis in place:
                found[place[axis]] = power * units[axis]
        return found

    rows = [row({name: 1.0}) for name in FORWARD if name in MULTIPLIERS]
    for group, rate in LR_OF.items():
        if not acting([rate], shape):
            continue
        if group in VECTORS:
            rows.append(row({"elr": 1.0, "ewd": -1.0, rate: 1.0}))
        else:
            decay = WD_OF.get(group)
            rows.append(row({"elr": 1.0, rate: 1.0}))
            rows.append(row({"ewd": 1.0, **({decay: 1.0} if decay else {})}))
    if "rope_base" in place:
        rows.append(row({"rope_base": 1 / units["rope_base"]}))
    return np.unique([each for each in rows if each.any()], axis=0)

"""What all parts of the page share: the templates and how numbers read in them."""

from __future__ import annotations

from functools import cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mup_tune.report import formats


@cache
def environment() -> Environment:
    """The templates with the page's filters; an unknown name in one is an error."""
    found = Environment(
        loader=PackageLoader("mup_tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("loss", "mnat", "mnat_ci", "log2", "log2_ci", "value", "p_value", "plural", "si"):
        found.filters[name] = getattr(formats, name)
    found.filters["mean"] = mean
    return found


def mean(losses: dict[int, float | None]) -> float | None:
    """Mean over the seeds that ended."""
    ended = [loss for loss in losses.values() if loss is not None]
    return float(np.mean(ended)) if ended else None

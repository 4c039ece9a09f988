"""The templates, and how numbers read in them."""

from __future__ import annotations

from functools import cache
from typing import Any

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
    for name in (
        "loss",
        "mnat",
        "mnat_ci",
        "log2",
        "log2_ci",
        "value",
        "times",
        "times_ci",
        "p_value",
        "plural",
        "si",
        "scientific",
        "duration",
    ):
        found.filters[name] = getattr(formats, name)
    return found


def rendered(template: str, **values: Any) -> str:
    """A template's HTML; figures are markup already, all other text is escaped."""
    return environment().get_template(template).render(**values)

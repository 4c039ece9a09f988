"""Tables inside the page: JSON that stays text whatever it holds, and columns as short as they can be."""

from __future__ import annotations

import json
from base64 import b64encode
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from pandas.api.types import is_float_dtype

from mup_tune.stats.losses import Array

REPEATED = 4  # trials a value: from here on a column is its distinct values and which of them each trial has
MOST_DISTINCT = 65_536


def script_json(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">``, which nothing in it can end."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def table(trials: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The columns of a table by name."""
    return {str(name): column(trials[name]) for name in trials}


def column(values: pd.Series[Any]) -> dict[str, Any]:
    """A column in one of three forms; floats have six significant digits, which float32 holds exactly.

    ``distinct`` with ``codes`` where values repeat, the codes left out where there is but one. ``floats`` for
    other numbers, and ``values`` for what is left. Codes are uint16, floats float32, both little-endian in
    base64.
    """
    floats = is_float_dtype(values)
    cells = [float(f"{each:.6g}") for each in values] if floats else values.tolist()
    distinct = list(dict.fromkeys(cells))
    finite = not floats or all(map(isfinite, distinct))
    if finite and len(distinct) <= min(max(1, len(cells) // REPEATED), MOST_DISTINCT):
        code = {each: index for index, each in enumerate(distinct)}
        codes = np.array([code[each] for each in cells], "<u2")
        return {"distinct": distinct} | ({"codes": _base64(codes)} if len(distinct) > 1 else {})
    return {"floats": _base64(np.array(cells, "<f4"))} if floats else {"values": cells}


def _base64(numbers: Array) -> str:
    return b64encode(numbers.tobytes()).decode("ascii")

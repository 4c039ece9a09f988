"""The explorer: every trial of a run, for figures and a table that readers filter themselves.

The page's scripts draw (``templates/explorer/``). What they draw is decided here: which columns, which axes,
in which order, with which lines of a model.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from mup_tune.multipliers import MULTIPLIERS
from mup_tune.report.cuts import cuts
from mup_tune.report.embedded import script_json, table
from mup_tune.report.html import rendered
from mup_tune.run.tables import slug
from mup_tune.run.view import RunView
from mup_tune.settings import AXES, GLOBAL_AXES

BEST = 20  # rows of the table that needs no scripts
SHOWN = 8  # axes that the figures begin with
ALIKE = ["shape", "d_model", "n_layers", "total_tokens"]  # losses compare where all of these agree
SIZES = {"d_model": "width", "n_layers": "depth", "total_tokens": "tokens"}
KINDS = {"forward": "forward multiplier", "lr": "LR multiplier", "wd": "WD multiplier"}


def section(run: RunView) -> Markup:
    """The whole section with its data; empty before a first trial has ended."""
    trials = run.trials
    if trials.empty:
        return Markup()
    by_stage = {str(stage): part for stage, part in trials.groupby("stage", sort=False)}
    begun = max(by_stage, key=lambda stage: len(by_stage[stage]))
    orders = {stage: explained(part) for stage, part in by_stage.items()}
    first = list(orders[begun])[:SHOWN]
    data = {
        "trials": len(trials),
        "columns": table(trials),
        "alike": ALIKE,
        "axes": [{"name": name, "kind": _kind(name)} for name in (*AXES, *SIZES)],
        "shown": SHOWN,
        "begin": begun,
        "stages": _stages(run, orders),
        "together": explained(trials),
        "incumbent": {axis: _six(run.settings.value(axis)) for axis in AXES} if run.settings else {},
    }
    return Markup(
        rendered(
            "explorer.html",
            data=script_json(data),
            file=slug(run.plan.name),
            trials=len(trials),
            shown=SHOWN,
            axes=first,
            best=_best(by_stage[begun]),
        )
    )


def explained(trials: pd.DataFrame) -> dict[str, float]:
    """Axes that vary, by the share of the loss' variance that a parabola along each alone explains.

    Of the commonest size and length of training, seeds' means taken out where seeds have enough trials. The
    global axes come first, then those that explain most. It orders axes and proves nothing.
    """
    names = [name for name in (*AXES, *SIZES) if trials[name].nunique() > 1]
    alike = trials.groupby(ALIKE, sort=False).ngroup()
    same = trials[(alike == alike.mode()[0]) & (trials["status"] == "ok")]
    loss = same["loss"].to_numpy()
    if 2 * same["seed"].nunique() <= len(same):
        loss = loss - same.groupby("seed")["loss"].transform("mean").to_numpy()
    found = {name: _explained(np.log2(same[name].to_numpy(dtype=np.float64)), loss) for name in names}
    return dict(sorted(found.items(), key=lambda each: (each[0] not in GLOBAL_AXES, -each[1])))


def _explained(at: np.ndarray[Any, np.dtype[np.float64]], loss: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    places = len(np.unique(at))
    if places < 2 or not loss.var():  # nothing ended, or nothing differs
        return 0.0
    away = (at - at.mean()) / at.std()
    left = loss - np.polyval(np.polyfit(away, loss, min(2, places - 1)), away)
    return round(max(0.0, 1 - float(left.var() / loss.var())), 4)


def _stages(run: RunView, orders: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The stages that have trials: titles where concluded, the order of axes, the lines of their models."""
    findings = {finding.stage: finding for finding in run.findings}
    rows = []
    for stage, order in orders.items():
        finding = findings.get(stage)
        lines = cuts(finding) if finding else {}
        title = finding.title if finding else "in progress"
        drawn = {axis: _rounded(asdict(cut)) for axis, cut in lines.items() if axis in order}
        rows.append({"key": stage, "title": title, "order": order, "cuts": drawn})
    return rows


def _rounded(value: Any) -> Any:
    """The same with six significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    return _six(value) if isinstance(value, float) else value


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def _kind(axis: str) -> str:
    """What an axis is, in a word or two below its name."""
    if axis in SIZES:
        return SIZES[axis]
    return "global" if axis in GLOBAL_AXES else KINDS[MULTIPLIERS[axis].kind]


def _best(trials: pd.DataFrame) -> list[dict[str, Any]]:
    ended = trials[trials["status"] == "ok"].sort_values("loss", kind="stable")
    return [{str(key): value for key, value in row.items()} for row in ended.head(BEST).to_dict("records")]

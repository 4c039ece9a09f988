"""The tables of a report. Every number of the page is in a row of one of them.

Losses and gains are nats/token, offsets log2, intervals 95 % CIs. No column is rounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from math import log2
from typing import Any

import pandas as pd

from mup_tune.findings import Finding
from mup_tune.findings.surface import ResponseSurface
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.report import facts, words
from mup_tune.report.claims import claims_of
from mup_tune.report.training import compared
from mup_tune.run.view import RunView
from mup_tune.settings import GLOBAL_AXES, Settings
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

POINTS = 240  # of a learning curve; a page draws no more
KINDS = {**dict.fromkeys(GLOBAL_AXES, "global"), **{each.name: each.kind for each in MULTIPLIERS.values()}}

Rows = list[dict[str, Any]]
ABOUT = {
    "facts": "what was run: plan, Shape, budget, data, machine, trials",
    "stages": "a row a concluded stage: what it trained, its noise, what it found",
    "settings": "all 38 settings before the first stage and after the last",
    "axes": "a row an axis of a stage: optimum, gain, decision and why",
    "points": "a row a trained point of an axis and seed",
    "claims": "a row a comparison, in nats and in tokens, and one a source of a mixture",
    "sensitivities": "curvature of the loss along each axis, nats/token per (log2)², of the last stage that has it",
    "curves": "training loss of the incumbent and of each reference, and the differences, as the page draws them",
    "trials": "a row a trial: its Settings, seed and loss",
    "packs": "a row a pack: what trained it, and how fast",
    "findings": "every value that a stage stored, by its place: what the figures draw",
}


def tables(run: RunView) -> dict[str, pd.DataFrame]:
    """By name, in the order of :data:`ABOUT`."""
    made: dict[str, Rows | pd.DataFrame] = {
        "facts": [
            {"group": group, "term": term, "value": value}
            for group, rows in facts.what_was_run(run)
            for term, value in rows
        ],
        "stages": [_stage(run, finding) for finding in run.findings],
        "settings": _settings(run),
        "axes": [row for finding in run.findings for row in _axes(finding)],
        "points": [row for finding in run.findings for row in _points(finding)],
        "claims": [row for finding in run.findings for row in _claims(finding)],
        "sensitivities": [
            {"axis": axis, **interval("curvature", each)} for axis, each in curvatures(run.findings).items()
        ],
        "curves": _curves(run),
        "trials": run.trials,
        "packs": run.packs,
        "findings": [
            {"stage": finding.stage, "field": field, "value": value}
            for finding in run.findings
            for field, value in _leaves(finding.model_dump(mode="json"))
        ],
    }
    return {name: frame(made[name]) for name in ABOUT}


def csv(table: pd.DataFrame) -> bytes:
    """A header row, and numbers as Python reads them back."""
    buffer = io.BytesIO()  # a text buffer would hold four bytes a character
    table.to_csv(buffer, index=False)
    return buffer.getvalue()


def frame(rows: Rows | pd.DataFrame) -> pd.DataFrame:
    """Columns in the order in which rows have them."""
    if isinstance(rows, pd.DataFrame):
        return rows
    return pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)), dtype=object)


def interval(name: str, value: Interval | None) -> dict[str, float | None]:
    """The three columns of a value with its CI."""
    told = (None, None, None) if value is None else (value.value, value.low, value.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), told, strict=True))


def factor(saved: TokensSaved | None) -> dict[str, Any]:
    """The columns of a gain in tokens; without an upper end where it lies beyond what was trained."""
    told = interval("tokens_factor", saved.factor if saved else None)
    return told | ({"tokens_factor_high": None} if saved and saved.beyond else {})


def curvatures(findings: Sequence[Finding]) -> dict[str, Interval]:
    """By axis, in nats/token per (log2)²: of the last stage on the incumbent's path that tells it."""
    found: dict[str, Interval] = {}
    for finding in findings:
        if finding.on_path:
            found |= {axis.axis: axis.fit.curvature for axis in finding.axes if axis.fit is not None}
            if isinstance(finding.result, ResponseSurface):
                found |= {effect.axis: effect.curvature for effect in finding.result.effects}
    return found


def endpoints(run: RunView) -> tuple[Settings, Settings] | None:
    """The incumbent's Settings before the first stage and after the last; None before one has concluded."""
    path = [finding for finding in run.findings if finding.on_path]
    return (path[0].before, path[-1].after) if path else None


def _settings(run: RunView) -> Rows:
    ends = endpoints(run)
    if ends is None:
        return []
    before, after = ends
    return [
        {
            "setting": name,
            "kind": kind,
            "before": before.value(name),
            "after": after.value(name),
            "log2_change": log2(after.value(name) / before.value(name)),
        }
        for name, kind in KINDS.items()
    ]


def _stage(run: RunView, finding: Finding) -> dict[str, Any]:
    trials = run.trials[run.trials["stage"] == finding.stage]
    return {
        "stage": finding.stage,
        "kind": finding.kind,
        "title": finding.title,
        "on_path": finding.on_path,
        "trials": len(trials),
        "diverged": int((trials["status"] != "ok").sum()),
        "sigma_delta": finding.sigma_delta,
        "found": " ".join(words.summary(finding)),
    }


def _axes(finding: Finding) -> Iterator[dict[str, Any]]:
    for axis in finding.axes:
        yield {
            "stage": finding.stage,
            "axis": axis.axis,
            "pass": axis.pass_,
            "before": axis.before,
            "after": axis.after,
            **interval("optimum_log2", axis.fit.optimum if axis.fit else None),
            **interval("curvature", axis.fit.curvature if axis.fit else None),
            **interval("gain", axis.gain),
            "p_value": axis.p_value,
            "decision": axis.decision,
            "why": words.why(finding, axis),
        }


def _points(finding: Finding) -> Iterator[dict[str, Any]]:
    for axis in finding.axes:
        for point in axis.points:
            place = {"offset_log2": point.offset, "value": point.value}
            for seed, loss in point.losses.items():
                yield {
                    "stage": finding.stage,
                    "axis": axis.axis,
                    "pass": axis.pass_,
                    **place,
                    "seed": seed,
                    "loss": loss,
                }


def _claims(finding: Finding) -> Iterator[dict[str, Any]]:
    for claim in claims_of(finding):
        compared = claim.comparison
        sides = {"stage": finding.stage, "candidate": compared.candidate, "reference": compared.reference}
        yield {
            **sides,
            "source": "",
            "loss": claim.candidate_loss,
            "reference_loss": claim.reference_loss,
            "seeds": claim.seeds,
            **interval("gain", compared.gain),
            "p_value": compared.gain.p_value if compared.gain else None,
            **factor(claim.saved),
            "verdict": claim.verdict,
        }
        for source, gain in compared.by_source.items():
            yield {**sides, "source": source, **interval("gain", gain)}


def _curves(run: RunView) -> Rows:
    losses, gaps, _ = compared(run)
    return [
        {"what": what, "settings": name, "tokens": tokens[index], unit: values[index]}
        for what, unit, drawn in (("training loss", "loss", losses), ("difference", "gap_mnat", gaps))
        for name, (tokens, values) in drawn.items()
        for index in thinned(len(tokens))
    ]


def thinned(count: int) -> list[int]:
    """At most :data:`POINTS` places of so many, evenly spread, the last among them."""
    step = -(-count // POINTS) or 1
    return list(range(count - 1, -1, -step))[::-1]


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below, with its place: ``result.shapes[0].comparisons[1].gain.low``."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            named = f".{key}" if str(key).isidentifier() else f"[{str(key)!r}]"
            yield from _leaves(each, (at + named).removeprefix("."))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{at}[{index}]")
    elif value is not None:
        yield at, value

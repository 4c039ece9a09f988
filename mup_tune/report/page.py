"""The page: one self-contained HTML file from a run. Nothing is fetched, nothing decided here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mup_tune.files import out_file, write_out
from mup_tune.findings import AxisFinding, Finding
from mup_tune.findings.validation import Validation
from mup_tune.report import caveats, costs, explorer, facts, gain_rows, gains, overview, power, words
from mup_tune.report import claims as claimed
from mup_tune.report.claims import Claim
from mup_tune.report.figures import sensitivity
from mup_tune.report.figures.axes import axis_panel
from mup_tune.report.figures.curves import learning_curves
from mup_tune.report.figures.forest import Row, forest, token_forest
from mup_tune.report.figures.glance import glance
from mup_tune.report.figures.schedule import schedule_figure
from mup_tune.report.figures.seeds import seed_strips
from mup_tune.report.figures.waterfall import waterfall
from mup_tune.report.html import rendered
from mup_tune.report.overview import MARKS, MOVES
from mup_tune.report.plain import Names, same
from mup_tune.report.training import Training, training
from mup_tune.run.folder import PLAN
from mup_tune.run.tables import slug
from mup_tune.run.verdict import last_confirmation
from mup_tune.run.view import RunView
from mup_tune.settings import Settings
from mup_tune.stats.tokens import TokensSaved

FEW = 6  # axes up to which nothing is folded
LATER = {"curves": "Loss curves", "noise": "Noise and power", "cost": "Cost by stage", "trials": "Explore the trials"}
MOST_SAID = 6  # sentences of a stage beyond which they are folded
ARXIV = {
    "2507.22448": "Falcon-H1: the model, its 12 forward multipliers, ELR and EWD, the schedule",
    "2601.04890": "Learnable Multipliers: the split 12 + 16 + 7 of the 35, stability of the width rules (§2, Table 1)",
    "2203.03466": "µTransfer: the parametrisation tables behind the width rules (Table 8)",
    "2405.21060": "Mamba-2: the SSM branch",
}


@dataclass(frozen=True)
class StageView:
    """One concluded stage with its figures; ``ok`` and ``diverged`` count the trials that it trained.

    ``shown`` and ``folded``: panels of its axes, those that decided something first. ``rows``: its axes in
    tables, by the title that folds them. ``key``: the first stage with panels explains their marks.
    """

    anchor: str
    finding: Finding
    lead: str
    said: list[str]
    shown: list[tuple[AxisFinding, Markup]]
    folded: list[tuple[AxisFinding, Markup]]
    rows: list[tuple[str, list[AxisFinding]]]
    gains: Markup | None
    claims: list[Claim]
    sections: list[Markup]
    ok: int
    diverged: int
    key: bool


def render(run: RunView) -> str:
    """The page as HTML text."""
    names, claims = gains.names(run), gains.claims_of(run)
    title, subtitle = gains.headline_of(run)
    stages = _stages(run, names)
    found, whole = caveats.caveats(run, names), _whole(run, names)
    return rendered(
        "page.html",
        plan_name=run.plan.name,
        about=run.plan.about,
        live=run.live,
        headline=title,
        subtitle=subtitle,
        tuned=facts.what_was_tuned(run),
        names=names,
        claims=claims,
        confirmation=last_confirmation(run.findings),
        fewer=_fewer,
        tiles=costs.tiles(run),
        caveats=found,
        verdicts=caveats.verdicts(run, found),
        stages=stages,
        most_said=MOST_SAID,
        groups=facts.what_was_run(run),
        final=run.settings,
        used=run.settings is not None and not same(run.settings, run.plan.start),
        file_name=slug(run.plan.name),
        start_yaml=run.plan.start.to_yaml(),
        plan_yaml=_plan(run),
        parametrisation=_parametrisation(run.settings),
        arxiv=ARXIV,
        marks=MARKS,
        words=words,
        notes=lambda finding, axes: any(words.note(finding, axis) for axis in axes),
        **whole,
        contents=_contents(stages, whole),
    )


def write(run: RunView, out: Path) -> None:
    """Render to ``out``.

    Raises:
        UserError: ``out`` cannot be written, and why.
    """
    out_file(out)
    write_out(out, render(run))


def _whole(run: RunView, names: Names) -> dict[str, Any]:
    """What belongs to the whole run, with the data that the text beside it needs."""
    sizes, claims, steps = gain_rows.by_size(run), gain_rows.all_claims(run, names), gain_rows.steps(run, names)
    changed, curves, strips = overview.changes(run), training(run), power.strips(run, names)
    swept = [each for each in changed if each.swept]
    seen = changed if len(swept) > FEW else swept
    return {
        "larger": any(isinstance(each.result, Validation) for each in run.findings),
        "sizes_figure": forest(
            [replace(row, saved=None) for row in sizes], "sizes", "Gain at every size that was measured"
        )
        if sizes
        else None,
        "tokens_figure": token_forest(sizes, "tokens", "Tokens saved at every size that was measured"),
        "claims_figure": forest(claims, "claims", "Every claim with its 95 % CI") if claims else None,
        "gain_steps": waterfall(steps, "steps") if steps else None,
        "changes": changed,
        "glance": glance(seen, "glance") if seen else None,
        "unseen": len(changed) - len(seen),
        "derived": overview.derived(run),
        "training": curves,
        "curves": _curve_figures(curves, names),
        "noise": power.powers(run),
        "seed_figure": seed_strips(strips, "seeds") if strips else None,
        "cost": costs.of_stages(run),
        "trials": explorer.section(run),
        "schedule_figure": schedule_figure(run.plan.budget, run.settings) if run.settings else None,
    }


def _contents(stages: Sequence[StageView], there: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the sections there are; a stage goes by its own name."""
    found = [("gain", "Where it came from")] if there["gain_steps"] or there["claims_figure"] else []
    found += [("multipliers", "All settings")] if there["changes"] else []
    found += [(stage.anchor, f"{n} · {gain_rows.stage_name(stage.finding)}") for n, stage in enumerate(stages, 1)]
    for anchor, title in LATER.items():
        if there[anchor]:
            found.append((anchor, title))
    return [*found, ("run", "What was run"), ("glossary", "Glossary")]


def _stages(run: RunView, names: Names) -> list[StageView]:
    found: list[StageView] = []
    for index, finding in enumerate(run.findings):
        explained = any(stage.shown or stage.folded for stage in found)
        found.append(_stage(run, finding, index, names, explained))
    return found


def _stage(run: RunView, finding: Finding, index: int, names: Names, explained: bool) -> StageView:
    anchor = "stage-" + (re.sub(r"[^A-Za-z0-9]+", "-", finding.stage).strip("-") or str(index))
    rows = [Row(named(axis), axis.gain) for axis in finding.axes if axis.gain is not None]
    rows.sort(key=lambda row: -row.interval.value if row.interval else 0.0)
    described = f"Gain of each axis in the stage {finding.title}, largest first"
    sections = (words.section(finding, anchor), sensitivity.section(finding.axes, anchor))
    drawn = [] if words.draws_points(finding) else [axis for axis in finding.axes if axis.points]
    panels = [(axis, axis_panel(axis, f"{anchor}-axis{place}")) for place, axis in enumerate(drawn)]
    first = [each for each in panels if len(panels) <= FEW or decided(each[0])]
    trials = run.trials[run.trials["stage"] == finding.stage]
    ok = int((trials["status"] == "ok").sum())
    best = "gain of the best point (mnat/token)"
    return StageView(
        anchor=anchor,
        finding=finding,
        lead=names.tell(lead.title) if (lead := words.headline(finding)) else "",
        said=[names.tell(sentence) for sentence in words.summary(finding)],
        shown=first,
        folded=[each for each in panels if each not in first],
        rows=[] if words.draws_axes(finding) else _tables(finding.axes),
        gains=forest(rows, f"{anchor}-gains", described, best) if panels and len(rows) > 1 else None,
        claims=claimed.claims_of(finding),
        sections=[Markup(names.tell(section, short=True)) for section in sections if section],
        ok=ok,
        diverged=len(trials) - ok,
        key=not explained,
    )


def decided(axis: AxisFinding) -> bool:
    """Whether something was found on an axis, so that it is not folded away."""
    return axis.decision in (*MOVES, "dropped")


def _tables(axes: Sequence[AxisFinding]) -> list[tuple[str, list[AxisFinding]]]:
    """All axes where they are few, else those that decided something and the others folded."""
    if len(axes) <= FEW:
        return [("", list(axes))] if axes else []
    first, rest = ([axis for axis in axes if decided(axis) == wanted] for wanted in (True, False))
    count = "1 axis" if len(rest) == 1 else f"{len(rest)} axes"
    title = f"{count} flat, kept or not identifiable"
    return [(name, part) for name, part in (("", first), (title, rest)) if part]


def named(axis: AxisFinding) -> str:
    """The axis, and its pass where there were several."""
    return axis.axis if axis.pass_ == 1 else f"{axis.axis} (pass {axis.pass_})"


def _fewer(saved: TokensSaved) -> str:
    """``18 % fewer tokens for the same loss``."""
    share = 100 * (1 - 1 / saved.factor.value)
    if share < 0:
        return f"{100 * (1 / saved.factor.value - 1):.0f} % more tokens for the same loss"
    return f"{'more than ' if saved.beyond else ''}{share:.0f} % fewer tokens for the same loss"


def _curve_figures(found: Training, names: Names) -> list[Markup]:
    """Losses, and the differences to the incumbent."""
    if not (found.losses or found.crowd):
        return []
    losses = {names.short(name): curve for name, curve in found.losses.items()}
    gaps = {f"{names.short(name)} − incumbent": curve for name, curve in found.gaps.items()}
    label = "training loss (nats/token)"
    figures = [learning_curves(losses, "curves-loss", label, 0, zero=False, crowd=found.crowd, lost=found.lost)]
    if gaps:
        figures.append(learning_curves(gaps, "curves-gap", "difference (mnat/token)", 1, zero=True))
    return figures


def _plan(run: RunView) -> str:
    """The text of the resolved plan, as the run holds it."""
    path = run.path / PLAN
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _parametrisation(settings: Settings | None) -> str:
    completep = settings is not None and settings.depth_rule == "completep"
    depth = "residual branches ∝ L₀/L (CompleteP)" if completep else "no depth factor"
    hidden = "σ₀·√(fan_in/fan_in₀)" if settings is None or settings.init.rule == "fan_in" else "σ₀, at every width"
    return (
        "abc-parametrisation, Falcon-H1's: every width factor sits in the forward multipliers (each contraction gets "
        "1/width); η, λ and the 23 LR and WD multipliers are the same at every size; hidden matrices start from "
        f"{hidden}, embedding and lm_head from a constant σ₀; AdamW with coupled decay θ ← θ − η·λ·θ; {depth}."
    )

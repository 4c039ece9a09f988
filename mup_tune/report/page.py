"""The page: one self-contained HTML file from a run. Nothing is fetched, nothing decided here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log2
from pathlib import Path

from markupsafe import Markup

from mup_tune.files import out_file, write_out
from mup_tune.findings import AxisFinding, Comparison, Finding
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.report import claims as claimed
from mup_tune.report import explorer, facts, words
from mup_tune.report.claims import Claim
from mup_tune.report.figures import sensitivity
from mup_tune.report.figures.axes import Bar, axis_panel, intervals
from mup_tune.report.figures.curves import Curve, learning_curves
from mup_tune.report.figures.schedule import schedule_figure
from mup_tune.report.html import rendered
from mup_tune.run.verdict import last_confirmation
from mup_tune.run.view import RunView
from mup_tune.settings import GLOBAL_AXES, Settings

KINDS = {"forward": "forward", "lr": "LR", "wd": "WD", "global": "global"}
# A mark beside the word, so that no decision is told by colour alone.
MARKS = {
    "moved": "▲",
    "re-centred": "△",
    "kept": "●",
    "flat": "≈",
    "edge": "⇥",
    "not identifiable": "?",
    "dropped": "✕",
}
MOVES = ("moved", "re-centred", "edge")
ARXIV = {
    "2507.22448": "Falcon-H1: the model, its 12 forward multipliers, ELR and EWD, the schedule",
    "2601.04890": "Learnable Multipliers: the split 12 + 16 + 7 of the 35, stability of the width rules (§2, Table 1)",
    "2203.03466": "µTransfer: the parametrisation tables behind the width rules (Table 8)",
    "2405.21060": "Mamba-2: the SSM branch",
}


@dataclass(frozen=True)
class StageView:
    """One concluded stage with its figures; ``ok`` and ``diverged`` count the trials that it trained."""

    anchor: str
    finding: Finding
    panels: list[tuple[AxisFinding, Markup]]
    gains: Markup | None
    claims: list[Claim]
    claims_figure: Markup | None
    sections: list[Markup]
    ok: int
    diverged: int


@dataclass(frozen=True)
class Change:
    """One setting before and after the run. ``decision``: of the last stage that swept it."""

    name: str
    kind: str
    before: float
    after: float
    decision: str
    mark: str

    @property
    def log2(self) -> float:
        return log2(self.after / self.before)

    @property
    def moved(self) -> bool:
        return abs(self.log2) > 1e-9


def render(run: RunView) -> str:
    """The page as HTML text."""
    confirmation = last_confirmation(run.findings)
    claims = claimed.claims_of(confirmation) if confirmation else []
    title, subtitle = claimed.headline(run.findings, claims, len(run.plan.stages), run.live)
    losses, gaps, curve_seeds = facts.curves(run)
    path = [finding for finding in run.findings if finding.on_path]
    return rendered(
        "page.html",
        plan_name=run.plan.name,
        about=run.plan.about,
        live=run.live,
        headline=title,
        subtitle=subtitle,
        claims=claims,
        claims_figure=_claims_figure(claims, "headline"),
        confirmation=confirmation,
        groups=facts.what_was_run(run),
        stages=[_stage(run, finding, index) for index, finding in enumerate(run.findings)],
        curve_figures=_curve_figures(losses, gaps),
        curve_seeds=curve_seeds,
        changes=_changes(run, path),
        derived=_derived(path),
        final=run.incumbent,
        start_yaml=run.plan.start.to_yaml(),
        schedule_figure=_schedule_figure(run),
        parametrisation=_parametrisation(run.incumbent),
        arxiv=ARXIV,
        marks=MARKS,
        words=words,
        explorer=explorer.section(run),
    )


def write(run: RunView, out: Path) -> None:
    """Render to ``out``.

    Raises:
        UserError: ``out`` cannot be written, and why.
    """
    out_file(out)
    write_out(out, render(run))


def _stage(run: RunView, finding: Finding, index: int) -> StageView:
    anchor = "stage-" + (re.sub(r"[^A-Za-z0-9]+", "-", finding.stage).strip("-") or str(index))
    bars = [Bar(named(axis), axis.gain) for axis in finding.axes if axis.gain is not None]
    bars.sort(key=lambda bar: -bar.interval.value)
    described = f"Gain of each axis in the stage {finding.title}, largest first"
    sections = (words.section(finding, anchor), sensitivity.section(finding.axes, anchor))
    claims = claimed.claims_of(finding)
    drawn = [] if words.draws_points(finding) else [axis for axis in finding.axes if axis.points]
    trials = run.trials[run.trials["stage"] == finding.stage]
    ok = int((trials["status"] == "ok").sum())
    return StageView(
        anchor=anchor,
        finding=finding,
        panels=[(axis, axis_panel(axis, f"{anchor}-axis{place}")) for place, axis in enumerate(drawn)],
        gains=intervals(bars, f"{anchor}-gains", described, "gain of the best point (mnat/token)")
        if len(bars) > 1
        else None,
        claims=claims,
        claims_figure=None if words.draws_comparisons(finding) else _claims_figure(claims, anchor),
        sections=[Markup(section) for section in sections if section],
        ok=ok,
        diverged=len(trials) - ok,
    )


def named(axis: AxisFinding) -> str:
    """The axis, and its pass where there were several."""
    return axis.axis if axis.pass_ == 1 else f"{axis.axis} (pass {axis.pass_})"


def _claims_figure(claims: list[Claim], anchor: str) -> Markup | None:
    pairs = [(each.comparison, gain) for each in claims if (gain := each.comparison.gain) is not None]
    bars = [Bar(_label(comparison), gain) for comparison, gain in pairs]
    if not bars:
        return None
    return intervals(bars, f"{anchor}-comparisons", "Gain over each reference with its 95 % CI")


def _label(comparison: Comparison) -> str:
    """The reference; where that is the incumbent, the candidate is what tells the rows apart."""
    return comparison.candidate if comparison.reference == "incumbent" else f"over {comparison.reference}"


def _curve_figures(losses: dict[str, Curve], gaps: dict[str, Curve]) -> list[Markup]:
    if not losses:
        return []
    return [
        learning_curves(losses, "curves-loss", "training loss (nats/token)", 0, zero=False),
        learning_curves(gaps, "curves-gap", "difference (mnat/token)", 1, zero=True),
    ]


def _changes(run: RunView, path: list[Finding]) -> list[Change]:
    """The global axes and all 35 multipliers of the incumbent, before the first stage and after the last."""
    if not path:
        return []
    before, after = path[0].before, path[-1].after
    decisions: dict[str, str] = {}
    for finding in path:
        moved = {axis.axis for axis in finding.axes if axis.decision in MOVES}
        # What one pass moved, a later pass of the same stage does not unmove by keeping it.
        decisions |= {axis.axis: axis.decision for axis in finding.axes if axis.axis not in moved}
        decisions |= {axis.axis: axis.decision for axis in finding.axes if axis.decision in MOVES}
    kinds = {**dict.fromkeys(GLOBAL_AXES, "global"), **{each.name: each.kind for each in MULTIPLIERS.values()}}
    unused = {each.name for each in MULTIPLIERS.values() if each.needs_ssm} if not run.plan.proxy.d_ssm else set()
    rows = []
    for name, kind in kinds.items():
        decision = "no SSM branch" if name in unused else str(decisions.get(name, "not swept"))
        rows.append(Change(name, KINDS[kind], before.value(name), after.value(name), decision, MARKS.get(decision, "")))
    return rows


def _derived(path: list[Finding]) -> list[tuple[str, float, float]]:
    """η and λ, which follow from ELR and EWD."""
    if not path:
        return []
    before, after = path[0].before, path[-1].after
    return [("η = ELR/EWD", before.eta, after.eta), ("λ = ELR·EWD", before.lam, after.lam)]


def _schedule_figure(run: RunView) -> Markup | None:
    if run.incumbent is None:
        return None
    return schedule_figure(run.plan.budget, run.incumbent)


def _parametrisation(settings: Settings | None) -> str:
    completep = settings is not None and settings.depth_rule == "completep"
    depth = "residual branches ∝ L₀/L (CompleteP)" if completep else "no depth factor"
    hidden = "σ₀·√(fan_in/fan_in₀)" if settings is None or settings.init.rule == "fan_in" else "σ₀, at every width"
    return (
        "abc-parametrisation, Falcon-H1's: every width factor sits in the forward multipliers (each contraction gets "
        "1/width); η, λ and the 23 LR and WD multipliers are the same at every size; hidden matrices start from "
        f"{hidden}, embedding and lm_head from a constant σ₀; AdamW with coupled decay θ ← θ − η·λ·θ; {depth}."
    )

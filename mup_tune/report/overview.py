"""All settings of a run before and after it, and how sensitive the loss is to each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2

from mup_tune.findings import Finding
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.surface import ResponseSurface
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.run.view import RunView
from mup_tune.settings import GLOBAL_AXES
from mup_tune.stats import Interval

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
NOT_SWEPT, NO_SSM = "not swept", "no SSM branch"


@dataclass(frozen=True)
class Change:
    """One setting before and after the run.

    ``decision``: of the last stage that swept it. ``curvature``: nats/token per (log2)², of the last that
    fitted one.
    """

    name: str
    kind: str
    before: float
    after: float
    decision: str
    curvature: Interval | None = None

    @property
    def mark(self) -> str:
        return MARKS.get(self.decision, "")

    @property
    def log2(self) -> float:
        return log2(self.after / self.before)

    @property
    def moved(self) -> bool:
        return abs(self.log2) > 1e-9

    @property
    def swept(self) -> bool:
        return self.decision not in (NOT_SWEPT, NO_SSM, "not identifiable")


def changes(run: RunView) -> list[Change]:
    """The global axes and all 35 multipliers of the incumbent, before the first stage and after the last."""
    path = on_path(run)
    if not path:
        return []
    before, after = path[0].before, path[-1].after
    decisions, curved = _decisions(path), dict(_curvatures(path))
    kinds = {**dict.fromkeys(GLOBAL_AXES, "global"), **{each.name: each.kind for each in MULTIPLIERS.values()}}
    unused = {each.name for each in MULTIPLIERS.values() if each.needs_ssm} if not run.plan.proxy.d_ssm else set()
    return [
        Change(
            name=name,
            kind=KINDS[kind],
            before=before.value(name),
            after=after.value(name),
            decision=NO_SSM if name in unused else decisions.get(name, NOT_SWEPT),
            curvature=curved.get(name),
        )
        for name, kind in kinds.items()
    ]


def derived(run: RunView) -> list[tuple[str, float, float]]:
    """η and λ, which follow from ELR and EWD."""
    path = on_path(run)
    if not path:
        return []
    before, after = path[0].before, path[-1].after
    return [("η = ELR/EWD", before.eta, after.eta), ("λ = ELR·EWD", before.lam, after.lam)]


def on_path(run: RunView) -> list[Finding]:
    """The stages that searched for the incumbent."""
    return [finding for finding in run.findings if finding.on_path]


def _decisions(path: Sequence[Finding]) -> dict[str, str]:
    found: dict[str, str] = {}
    for finding in path:
        moved = {axis.axis for axis in finding.axes if axis.decision in MOVES}
        # What one pass moved, a later pass of the same stage does not unmove by keeping it.
        found |= {axis.axis: str(axis.decision) for axis in finding.axes if axis.axis not in moved}
        found |= {axis.axis: str(axis.decision) for axis in finding.axes if axis.decision in MOVES}
    return found


def _curvatures(path: Sequence[Finding]) -> Iterator[tuple[str, Interval]]:
    """In the order of stages, so that the last one of an axis counts."""
    for finding in path:
        for axis in finding.axes:
            if axis.fit is not None:
                yield axis.axis, axis.fit.curvature
        if isinstance(finding.result, GlobalAxes) and finding.result.bowl and (fit := finding.result.bowl.fit):
            yield from (("elr", fit.xx), ("ewd", fit.yy))
        if isinstance(finding.result, ResponseSurface):
            yield from ((effect.axis, effect.curvature) for effect in finding.result.effects)

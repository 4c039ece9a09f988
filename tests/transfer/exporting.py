"""Exports and the runs behind them, without training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mup_tune.findings import Comparison, Finding, State
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.multipliers import MultiplierPasses
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape
from mup_tune.stats import Interval
from mup_tune.transfer.aim import aim
from mup_tune.transfer.export import Export, export
from mup_tune.transfer.formats import formats
from mup_tune.transfer.resolve import Tuned
from mup_tune.trial import Budget

PLAN_HASH, CORPUS = "plan-hash", {"name": "text", "hash": "c0ffee"}


def export_hf(tuned: Tuned, target: Shape, out: Path, **options: Any) -> Export:
    """The default format; ``options`` are those of :func:`aim`."""
    return export(aim(tuned, target, **options), out, formats(["hf"]))


def make_run(
    folder: Path,
    tuned: Settings,
    budget: Budget,
    proxy: Shape,
    gain: Interval | None,
    complete: bool = True,
    later: Settings | None = None,
) -> Path:
    """A run that swept, and confirmed ``tuned`` against the untuned start with this gain (None: not yet).

    ``later`` is what a further stage made of the confirmed incumbent.
    """
    start = untuned(proxy)
    plan: dict[str, Any] = {
        "name": "quickstart",
        "seeds": [0, 1],
        "budget": budget.model_dump(mode="json"),
        "proxy": proxy.model_dump(mode="json"),
        "start": start.model_dump(mode="json"),
        "stages": [{"kind": "micro"}, {"kind": "confirm"}],
    }
    with RunFolder.create_or_resume(folder, plan, PLAN_HASH, CORPUS) as run:
        journal = Journal(run, writable=True)
        facts = {"kind": "micro", "title": "", "result": MultiplierPasses(passes=(), most=1)}
        found = [Finding(stage="01-micro", before=start, after=tuned, **facts)]
        if gain is not None:
            losses = {
                "candidate_losses": {7: 2.0, 8: 2.1},
                "reference_losses": {7: 2.0 + gain.value, 8: 2.1 + gain.value},
            }
            compared = Comparison(candidate="incumbent", reference="ELR-tuned untuned", gain=gain, **losses)
            facts = {"kind": "confirm", "title": "", "result": Confirmation(comparisons=(compared,))}
            found.append(Finding(stage="02-confirm", before=tuned, after=tuned, **facts))
        if later is not None:
            facts = {"kind": "micro", "title": "", "result": MultiplierPasses(passes=(), most=1)}
            found.append(Finding(stage="03-micro", before=tuned, after=later, **facts))
        if complete:
            journal.set_note("complete", True)
        journal.close()
    conclude(folder, found, {"ELR-tuned untuned": start})
    return folder


def conclude(folder: Path, findings: Iterable[Finding], references: dict[str, Settings] | None = None) -> None:
    """Stages added to the journal of a run of :func:`make_run`."""
    with RunFolder.create_or_resume(folder, {}, PLAN_HASH, CORPUS) as run:
        journal = Journal(run, writable=True)
        for finding in findings:
            journal.begin_stage(finding.stage, finding.kind, finding.title, finding.before)
            journal.conclude(finding.stage, finding, State(finding.after, references or {}))
        journal.close()


BETTER, WORSE, UNCLEAR = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.001, -0.01, 0.012)

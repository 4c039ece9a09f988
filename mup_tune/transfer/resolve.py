"""What is transferred: Settings, the budget and proxy they come from, and what their run says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mup_tune.errors import UserError, unknown
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import slug
from mup_tune.run.verdict import last_confirmation
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import Shape
from mup_tune.transfer.evidence import BEST, INCUMBENT, evidence_of, lowest_loss
from mup_tune.transfer.provenance import Evidence, RunFacts
from mup_tune.trial import Budget


@dataclass(frozen=True)
class Tuned:
    """Settings and where they come from. All but the first two are None where they come without a run.

    ``origin`` names the place in words. ``validated`` is the largest d_model that a trial of the run had.
    """

    settings: Settings
    origin: str
    budget: Budget | None = None
    proxy: Shape | None = None
    run: RunFacts | None = None
    evidence: Evidence | None = None
    validated: int | None = None


def resolve(source: str, chosen: str | None = None) -> Tuned:
    """Settings of a run folder, named ones, or those of a YAML file.

    Args:
        source: a run folder, ``falcon-h1-published``, or a file.
        chosen: of a run: ``incumbent`` (the default), ``best`` for the lowest mean loss on the confirmation's
            fresh seeds, a stage, or a named reference.

    Raises:
        UserError: nothing of that name, a folder that is no run, or a run that has no incumbent yet.
    """
    folder = Path(source)
    if folder.is_dir():
        return _from_run(folder, chosen)
    if chosen is not None:
        raise UserError(
            f"{chosen!r} names settings of a run, and {source!r} is no run folder",
            field="--from",
            fix="Leave it out, or give a run folder",
        )
    if source == "untuned":
        raise UserError(
            "'untuned' is relative to a proxy, so there is nothing to transfer",
            field="RUN|SETTINGS",
            fix="Give a run folder, falcon-h1-published, or a settings YAML that names its base",
        )
    if folder.suffix not in (".yaml", ".yml") and len(folder.parts) > 1:
        raise UserError("no such run folder or settings file", file=source)
    settings = load_settings(source, None)
    return Tuned(settings, f"the settings {source!r}")


def _from_run(folder: Path, chosen: str | None) -> Tuned:
    run = RunFolder.open(folder)
    journal = Journal(run, writable=False)
    known = _settings_of(journal)
    if not known:
        raise UserError(
            "this run has no incumbent yet: its first stage has not ended",
            file=folder,
            fix="Let the sweep go on, or transfer named settings",
        )
    what = slug(chosen or INCUMBENT)
    if what == BEST:
        best = lowest_loss(journal.findings())
        confirmed = last_confirmation(journal.findings())
        known[BEST] = confirmed.before if confirmed and best == INCUMBENT else known[slug(best)]
        what, said = BEST, f"{_named(best)}, which had the lowest mean loss on the confirmation's fresh seeds,"
    else:
        said = _named(what)
    if what not in known:
        raise UserError(unknown("settings", what, [*known, BEST]), file=folder, field="--from")
    name, record = folder.resolve().name, run.record
    return Tuned(
        settings=known[what],
        origin=f"{said} of the run {name!r} (plan {run.plan.name!r})",
        budget=run.plan.budget,
        proxy=run.plan.proxy,
        run=RunFacts(
            name=name,
            plan=run.plan.name,
            plan_hash=record.plan_hash,
            corpus=record.corpus.name,
            corpus_hash=record.corpus.hash,
            mup_tune=record.version,
        ),
        evidence=evidence_of(journal, known[INCUMBENT], len(run.plan.stages)),
        validated=max((row.trial.shape.d_model for row in journal.rows.values()), default=None),
    )


def _named(what: str) -> str:
    return "the incumbent" if what == INCUMBENT else repr(what)


def _settings_of(journal: Journal) -> dict[str, Settings]:
    """What a run can hand on, by the names of its files in ``settings/``; nothing before a stage ends."""
    known: dict[str, Settings] = {}
    for stage in journal.stages():
        concluded = journal.conclusion(stage)
        if concluded:
            finding, state = concluded
            known |= {slug(name): settings for name, settings in state.references.items()}
            known[slug(stage)] = finding.after
            known[INCUMBENT] = state.incumbent
    return known

"""``report.md``: the answer, the claims, the Settings and the tables of a run, for a reader of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from mup_tune.findings import Finding
from mup_tune.markdown import bullets, plain, table
from mup_tune.report import facts, formats, words
from mup_tune.report.claims import Claim
from mup_tune.report.gains import claims_of, headline_of, names
from mup_tune.report.plain import Names
from mup_tune.report.standalone import Drawn
from mup_tune.report.tables import ABOUT
from mup_tune.run.view import RunView


def markdown(run: RunView, tables: Mapping[str, pd.DataFrame], figures: Iterable[Drawn]) -> str:
    """The text. Links are relative to the folder that it lies in."""
    title, below = headline_of(run)
    claims = claims_of(run)
    progress = "This run is in progress. " if run.live else ""
    parts = [
        f"# {plain(title)}",
        plain(below),
        plain(f"Plan {run.plan.name}, {formats.instant(run.record.created)}. {run.plan.about}"),
        f"{progress}[The whole page](index.html) explains every figure.",
        *([_claims(claims, names(run))] if claims else []),
        *_settings(run),
        "## What each stage found",
        *map(_stage, run.findings),
        "## What was run",
        *(_facts(group, rows) for group, rows in facts.what_was_run(run)),
        "## Tables",
        tables_list({name: (len(each), ABOUT[name]) for name, each in tables.items()}),
        "Losses and gains are nats/token, offsets log2. `_low` and `_high` are the ends of 95 % CIs.",
        "## Figures",
        *(f"![{plain(each.description)}](figures/{each.name}.svg)" for each in figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def tables_list(tables: Mapping[str, tuple[int, str]]) -> str:
    """Links to ``tables/``: each with its number of rows, and what it holds."""
    return bullets(f"[{name}.csv](tables/{name}.csv), {rows:,} rows: {about}" for name, (rows, about) in tables.items())


def _claims(claims: Iterable[Claim], known: Names) -> str:
    head = ("over", "gain (mnat/token)", "95 % CI", "tokens for the same loss", "95 % CI", "seeds", "verdict")
    return table(head, (_claim(each, known.term(each.comparison.reference)) for each in claims))


def _claim(claim: Claim, over: str) -> list[str]:
    gain, saved = claim.comparison.gain, claim.saved
    return [
        plain(over),
        formats.mnat(gain.value) if gain else formats.NONE,
        formats.mnat_ci(gain),
        formats.times(saved.factor.value) if saved else formats.NONE,
        formats.times_ci(saved) if saved else formats.NONE,
        str(claim.seeds),
        plain(claim.verdict),
    ]


def _settings(run: RunView) -> list[str]:
    if run.settings is None:
        return []
    yaml = run.settings.to_yaml()
    fence = "`" * 3
    while fence in yaml:
        fence += "`"
    return ["## Settings", f"{fence}yaml\n{yaml.rstrip()}\n{fence}"]


def _stage(finding: Finding) -> str:
    return f"### {plain(finding.title)}\n\n{bullets(map(plain, words.summary(finding)))}"


def _facts(group: str, rows: Iterable[tuple[str, str]]) -> str:
    return table((group, ""), ((plain(term), plain(value)) for term, value in rows))

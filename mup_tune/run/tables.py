"""Tables of a run for its users. Nothing of mup-tune reads them: what a command says comes from the journal.

``tables/``: trials, stages and curves as Parquet, trials, stages and packs as CSV, findings.json. Their
columns are in :mod:`~mup_tune.run.columns`. ``settings/``: incumbent.yaml, one YAML a concluded stage, one a
named reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic_core import to_json

from mup_tune.errors import UserError
from mup_tune.files import write_atomic
from mup_tune.run import frames
from mup_tune.run.columns import STAGES, TRIALS
from mup_tune.run.curves import write_table
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal

FINDINGS = "findings.json"


def write_tables(folder: RunFolder, journal: Journal) -> None:
    """Write ``tables/`` and ``settings/`` anew from what the journal knows; each file appears whole.

    The incumbent's file comes first, and what cannot be written stops none of the others.

    Raises:
        UserError: names the first file that could not be written, when all others are.
    """
    findings, state = journal.findings(), journal.state()
    learned = {"stages": journal.stages(), "findings": findings, "state": state.to_json() if state else None}
    # References first: where one bears a stage's name, the stage's file is the one users were told of.
    named = {slug(name): settings for name, settings in state.references.items()} if state else {}
    named |= {slug(finding.stage): finding.after for finding in findings}
    if state:
        named.pop("incumbent", None)
        named = {"incumbent": state.incumbent, **named}
    trials, stages, packs = frames.trial_table(journal), frames.stage_table(journal), frames.pack_table(journal)
    tables = folder.tables
    made: dict[Path, Callable[[], str | bytes]] = {
        **{folder.settings / _file(stem): settings.to_yaml for stem, settings in named.items()},
        tables / "trials.parquet": lambda: frames.to_parquet(trials, TRIALS),
        tables / "stages.parquet": lambda: frames.to_parquet(stages, STAGES),
        tables / "trials.csv": lambda: frames.to_csv(trials),
        tables / "stages.csv": lambda: frames.to_csv(stages),
        tables / "packs.csv": lambda: frames.to_csv(packs),
        tables / FINDINGS: lambda: to_json(learned, indent=1) + b"\n",  # json's takes ten times the text's size
    }
    writes: dict[Path, Callable[[], None]] = {path: partial(_write, path, made[path]) for path in made}
    # Last, for it is the one that takes time.
    curves = tables / "curves.parquet"
    writes[curves] = partial(write_table, curves, folder.curves, journal.packs())
    failed: list[tuple[Path, Exception]] = []
    for path, write in writes.items():
        try:
            path.parent.mkdir(exist_ok=True)
            write()
        except (OSError, ValueError, ArithmeticError, UserError) as error:  # of the disk, an encoding, a column
            failed.append((path, error))
    if failed:
        path, first = failed[0]
        why = first.strerror if isinstance(first, OSError) else first
        more = f", and {len(failed) - 1} more files neither" if len(failed) > 1 else ""
        raise UserError(f"could not be written ({why}){more}", file=path, fix="The same command tries again") from None


def _write(path: Path, content: Callable[[], str | bytes]) -> None:
    write_atomic(path, content())


def slug(name: str) -> str:
    """A file's stem for a name that people chose."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _file(stem: str) -> str:
    """The YAML file's name, which is UTF-8 whatever the locale says of file names."""
    return os.fsdecode(f"{stem}.yaml".encode())

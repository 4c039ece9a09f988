"""Write an export: the files of every format asked for, a step-0 checkpoint, and the README, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mup_tune.errors import UserError
from mup_tune.files import out_folder
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format
from mup_tune.transfer.provenance import Evidence, Rule
from mup_tune.transfer.readme import readme
from mup_tune.transfer.step_0 import write_step_0


@dataclass(frozen=True)
class Export:
    """What was written, for people and scripts. ``note`` is the target Shape's own.

    ``verification`` and ``lost`` hold sentences by format: what was checked, and what it cannot carry.
    """

    out: Path
    origin: str
    settings: str
    target: str
    parameters: int
    evidence: Evidence | None
    rules: tuple[Rule, ...]
    warnings: tuple[str, ...]
    note: str
    verification: dict[str, str]
    lost: dict[str, tuple[str, ...]]
    files: tuple[str, ...]


def export(aimed: Aimed, out: Path, formats: Sequence[Format], init_seed: int | None = None) -> Export:
    """Write ``aimed`` to ``out``: all of it or, on any error, nothing.

    Args:
        init_seed: writes a step-0 checkpoint of this seed.

    Raises:
        UserError: ``out`` holds something already, a format cannot express the Settings, or a verification
            fails.
    """
    place = _new_folder(out)
    files: dict[str, str] = {}
    for each in formats:
        files |= each.files(aimed)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        for name, text in files.items():
            (beside / name).write_text(text, encoding="utf-8")
        verification = {each.name: each.verify(beside, aimed) for each in formats}
        weights = () if init_seed is None else write_step_0(beside, aimed.table, init_seed)
        text = readme(aimed, formats, verification, init_seed)
        (beside / "README.md").write_text(text, encoding="utf-8")
        os.replace(beside, place)  # takes the place of an empty folder, never of a full one
    except OSError as error:
        raise UserError(f"cannot be written ({error})", file=out, field="--out") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Export(
        out=out,
        origin=aimed.tuned.origin,
        settings=aimed.settings.name,
        target=aimed.target.name,
        parameters=aimed.target.parameters(),
        evidence=aimed.tuned.evidence,
        rules=aimed.rules,
        warnings=aimed.warnings,
        note=aimed.target.note,
        verification=verification,
        lost={each.name: lost for each in formats if (lost := each.lost(aimed))},
        files=tuple(sorted((*files, *weights, "README.md"))),
    )


def _new_folder(out: Path) -> Path:
    """Where ``out`` lies; it may be there already if it is empty."""
    place = out_folder(out)
    if place.is_dir() and any(place.iterdir()):
        raise UserError(f"{str(out)!r} exists and is not empty", field="--out", fix="Name a new folder")
    return place

"""Export for ``transformers`` and PyTorch loops: config, role table, optimizer, settings, README."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError
from mup_tune.files import dump_yaml
from mup_tune.model.hf import hf_config_kwargs
from mup_tune.roles import Role, RoleTable, role_table
from mup_tune.shape import Shape
from mup_tune.transfer.groups import OptimizerFile, optimizer_file
from mup_tune.transfer.readme import readme
from mup_tune.transfer.resolve import Tuned, warnings
from mup_tune.transfer.verify import verify


@dataclass(frozen=True)
class Export:
    """What was written, for people and scripts. ``note`` is the target Shape's own."""

    out: Path
    origin: str
    settings: str
    target: str
    parameters: int
    warnings: tuple[str, ...]
    note: str
    verification: str
    files: tuple[str, ...]


def export_hf(tuned: Tuned, target: Shape, out: Path) -> Export:
    """Write the export of ``tuned`` at ``target``: all of it or, on any error, nothing.

    Raises:
        UserError: ``out`` holds something already, the target is none that ``transformers`` can build, or the
            verification fails.
    """
    _check_out(out)
    table = role_table(target, tuned.settings)
    config, optimizer = _config(table), optimizer_file(table, tuned.budget)
    if tuned.batch_tokens is not None:
        optimizer = optimizer.model_copy(update={"schedule": optimizer.schedule.at_batch(tuned.batch_tokens)})
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        _write(beside, config, table, optimizer)
        verification = verify(beside, config, table, optimizer)
        found = warnings(tuned, target)
        text = readme(tuned, table, optimizer, found, verification)
        (beside / "README.md").write_text(text, encoding="utf-8")
        os.replace(beside, out)  # takes the place of an empty folder, never of a full one
    except OSError as error:
        raise UserError(f"cannot be written ({error})", file=out, field="--out") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Export(
        out=out,
        origin=tuned.origin,
        settings=tuned.settings.name,
        target=target.name,
        parameters=target.parameters(),
        warnings=tuple(found),
        note=target.note,
        verification=verification,
        files=tuple(sorted(path.name for path in out.iterdir())),
    )


def _config(table: RoleTable) -> dict[str, Any]:
    """``config.json``: the RoPE base where transformers 4 and 5 look for it; no token ids of a tokenizer."""
    kwargs = hf_config_kwargs(table)
    rope = {"rope_type": "default", "rope_theta": kwargs["rope_theta"]}
    return {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        **kwargs,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _write(folder: Path, config: dict[str, Any], table: RoleTable, optimizer: OptimizerFile) -> None:
    texts = {
        "config.json": json.dumps(config, indent=2) + "\n",
        "role_table.csv": _csv(table),
        "settings.yaml": table.settings.to_yaml(),
        "shape.yaml": dump_yaml(table.shape.model_dump(mode="json")),
        "optimizer.yaml": dump_yaml(optimizer.model_dump(mode="json")),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _csv(table: RoleTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Role)], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        shape = "x".join(str(size) for size in row.shape)
        writer.writerow({**asdict(row), "shape": shape, "init_std": "" if row.init_std is None else row.init_std})
    return text.getvalue()


def _check_out(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{str(out)!r} exists and is not empty", field="--out", fix="Name a new folder")
    if not out.parent.is_dir():
        raise UserError(f"the folder {str(out.parent)!r} does not exist", field="--out")

"""``json``: everything that a transfer knows, in one file, with the schema that it follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mup_tune.files import FrozenModel, read_json, validated
from mup_tune.roles import Role
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format, to_json
from mup_tune.transfer.groups import OptimizerFile, match

FILE, SCHEMA = "transfer.json", "transfer.schema.json"


class TransferFile(FrozenModel):
    """All of ``transfer.json``. ``config`` is ``config.json``; ``roles`` has a row a parameter slice.

    Provenance and rules stand in ``optimizer``, which is what ``optimizer.yaml`` holds too.
    """

    format: Literal[1] = 1
    settings: Settings
    shape: Shape
    parameters: int
    warnings: tuple[str, ...]
    config: dict[str, Any]
    optimizer: OptimizerFile
    roles: tuple[Role, ...]


class AsJson(Format):
    name = "json"
    about = "everything in one JSON file, with its JSON schema, for scripts and other trainers"

    def files(self, aimed: Aimed) -> dict[str, str]:
        file = TransferFile(
            settings=aimed.settings,
            shape=aimed.target,
            parameters=aimed.target.parameters(),
            warnings=aimed.warnings,
            config=aimed.config,
            optimizer=aimed.optimizer,
            roles=aimed.table.rows,
        )
        return {FILE: to_json(file.model_dump(mode="json")), SCHEMA: to_json(TransferFile.model_json_schema())}

    def section(self, aimed: Aimed) -> str:
        return (
            f"`{FILE}` holds the settings, the Shape, `config.json`, the parameter groups, the schedule, every row of "
            f"the role table, the rules and where all of it comes from. `{SCHEMA}` is its JSON schema."
        )

    def settings(self, folder: Path) -> Settings:
        return validated(TransferFile, read_json(folder / FILE), folder / FILE).settings

    def verify(self, folder: Path, aimed: Aimed) -> str:
        file = validated(TransferFile, read_json(folder / FILE), folder / FILE)
        owned = match(file.optimizer.groups, aimed.table.shapes())
        return f"read back through its schema: {len(owned)} tensors, each matched by exactly one group"

"""Weights & Biases: one wandb run a mup-tune run, whatever the number of its trials.

A wandb run a trial would be a thousand of them. So trials are rows of one table, the run's progress and each
stage's curves are charts, and the incumbent is in the summary. History cannot be rewritten there. So
``RUN/log/wandb.json`` keeps the id and how much was told by drivers that closed it, and the next one goes on
from there. After one that was killed a part is told again, at the same places: wandb may have lost it.
"""

from __future__ import annotations

import json
import os
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from mup_tune.files import read_json, write_atomic
from mup_tune.loggers.logger import Committed, Concluded, Logger
from mup_tune.settings import AXES

if TYPE_CHECKING:
    from mup_tune.run.folder import RunFolder

X_AXES = {"run/*": "trials", "best_loss/*": "trials", "gain*": "trials", "curve/*": "tokens"}


class WeightsAndBiases(Logger):
    """wandb's own variables count: WANDB_MODE, WANDB_ENTITY, WANDB_PROJECT (mup-tune if absent) and more."""

    name = "wandb"
    needs = ("wandb",)

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        folder.log.mkdir(exist_ok=True)
        self._file = folder.log / "wandb.json"
        kept: dict[str, Any] = read_json(self._file) if self._file.exists() else {}
        self.id = str(kept.get("id") or token_hex(4))
        self.packs, self.stages = int(kept.get("packs", 0)), int(kept.get("stages", 0))
        self._told_packs, self._told_stages = self.packs, self.stages
        self.run = wandb.init(
            id=self.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "mup-tune"),
            name=None if kept else os.environ.get("WANDB_NAME", folder.path.name),  # it may have been renamed there
            dir=str(folder.log),
            config={"plan": folder.plan.model_dump(mode="json"), "run": folder.record.model_dump(mode="json")},
            # The terminal belongs to the sweep's own display.
            settings=wandb.Settings(console="off", quiet=True, show_info=False, show_warnings=False),
        )
        for metric in dict.fromkeys(X_AXES.values()):
            self.run.define_metric(metric, hidden=True)
        for metric, axis in X_AXES.items():
            self.run.define_metric(metric, step_metric=axis)
        self._keep()

    @property
    def where(self) -> str:
        if self.run.offline:
            return f"`wandb sync {Path(self.run.dir).parent}` uploads it"
        return str(self.run.url)

    def committed(self, pack: Committed) -> None:
        self.run.log({"trials": pack.trials, **_finite(pack.values)})
        self._told_packs += 1

    def concluded(self, stage: Concluded) -> None:
        import pandas as pd
        import wandb

        if gains := _finite(stage.gains):
            self.run.log({"trials": stage.trials, **gains})
        lines = pd.DataFrame({f"curve/{stage.stage}/{line}": curve for line, curve in stage.curves.items()})
        for tokens, losses in lines.iterrows():
            self.run.log({"tokens": tokens, **_finite({str(name): loss for name, loss in losses.items()})})
        if stage.newest:  # each time whole, so an older stage's would only be replaced
            tables = {"trials": stage.view.trials, "stages": stage.view.stages}
            self.run.log({f"tables/{name}": wandb.Table(dataframe=table) for name, table in tables.items()})
        self.run.summary.update({f"stages/{stage.stage}": " ".join(stage.sentences)})
        if stage.view.settings is not None:
            self.run.summary.update({f"incumbent/{axis}": stage.view.settings.value(axis) for axis in AXES})
        self._told_stages += 1

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)
        self._keep()

    def _keep(self) -> None:
        kept = {"id": self.id, "packs": self._told_packs, "stages": self._told_stages}
        write_atomic(self._file, json.dumps(kept) + "\n")


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isfinite(value)}

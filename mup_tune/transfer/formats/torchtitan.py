"""``torchtitan``: parameter groups for torchtitan's optimizer, by patterns over parameter names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mup_tune.files import read_json, validated
from mup_tune.settings import Settings
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format, config_json, first_matches, lost_in_schedule, made_from, searched, to_json

DATA, CODE = "torchtitan.json", "torchtitan_groups.py"
TEMPLATE = '''\
"""AdamW's parameter groups for torchtitan. The numbers are in {data}."""

import json
from pathlib import Path

from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

DATA = json.loads(Path(__file__).with_name("{data}").read_text(encoding="utf-8"))


def optimizer_config() -> OptimizersContainer.Config:
    """A group for every kind of parameter; the first pattern that is found in a name wins."""
    return OptimizersContainer.Config(param_groups=[ParamGroupConfig(**group) for group in DATA["param_groups"]])
'''
SECTION = """\
| file | holds |
|---|---|
| `config.json` | the model, for torchtitan's `transformers` backend |
| `{data}` | the parameter groups, arguments of the learning rate's schedule, and where they come from |
| `{code}` | `optimizer_config()`, which gives them to `OptimizersContainer.Config` |

**torchtitan has no Mamba-2 model of its own.** The patterns are over `transformers`' parameter names, whatever stands
before them, so they fit its `transformers` backend or a port that keeps these names. That backend draws an init of its
own: start from a step-0 checkpoint, which `--init-seed` writes. With pipeline parallelism a stage lacks some
parameters, and torchtitan refuses a pattern that matches nothing there."""


class TorchTitan(Format):
    name = "torchtitan"
    about = "parameter groups for torchtitan's optimizer, by transformers' parameter names"

    def files(self, aimed: Aimed) -> dict[str, str]:
        data = {"param_groups": _groups(aimed), "lr_scheduler": _schedule(aimed), **made_from(aimed)}
        return {**config_json(aimed), DATA: to_json(data), CODE: TEMPLATE.format(data=DATA)}

    def section(self, aimed: Aimed) -> str:
        return SECTION.format(data=DATA, code=CODE)

    def lost(self, aimed: Aimed) -> tuple[str, ...]:
        return lost_in_schedule(aimed)

    def settings(self, folder: Path) -> Settings:
        return validated(Settings, read_json(folder / DATA)["settings"], folder / DATA, "settings")

    def verify(self, folder: Path, aimed: Aimed) -> str:
        groups = read_json(folder / DATA)["param_groups"]
        first_matches((each["pattern"] for each in groups), aimed)
        return f"every parameter meets its own of {len(groups)} patterns first, as torchtitan searches them"


def _groups(aimed: Aimed) -> list[dict[str, Any]]:
    """Arguments of ``ParamGroupConfig``; torchtitan has no defaults that a group could fall back on."""
    return [
        {
            "pattern": searched(group),
            "optimizer_name": "AdamW",
            "optimizer_kwargs": {
                "lr": group.lr,
                "betas": list(aimed.optimizer.betas),
                "eps": group.eps,
                "weight_decay": group.weight_decay,
            },
        }
        for group in aimed.optimizer.groups
    ]


def _schedule(aimed: Aimed) -> dict[str, Any]:
    """Arguments of ``LRSchedulersContainer.Config``."""
    spec, steps = aimed.optimizer.schedule, aimed.steps
    known = {"warmup_steps": steps.warmup, "total_steps": steps.total} if steps else {}
    return {**known, "decay_ratio": spec.decay_fraction, "decay_type": "linear", "min_lr_factor": spec.lr_decay_to}

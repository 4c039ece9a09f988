"""``automodel``: NVIDIA NeMo AutoModel: the ``transformers`` model, with overrides by parameter name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mup_tune.files import dump_yaml, read_yaml, validated
from mup_tune.settings import Settings
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format, config_json, first_matches, lost_in_schedule, made_from, searched
from mup_tune.transfer.groups import Group

FILE = "automodel.yaml"
SECTION = """\
| file | holds |
|---|---|
| `config.json` | the model; AutoModel builds it through `transformers` |
| `{file}` | `model`, `optimizer` and `lr_scheduler` of a recipe; `mup_tune` says where they come from |

Copy the three blocks into your recipe and set the folder's path. `lr_mult` and `wd_mult` are relative to the
optimizer's own `lr` and `weight_decay`, and the first pattern that matches a name wins. The optimizer steps with the
multipliers through AutoModel's `lr_scheduler` only, so keep that block. `from_config` draws an init that is none to
train from: start from a step-0 checkpoint, which `--init-seed` writes here."""


class AutoModel(Format):
    name = "automodel"
    about = "model, optimizer and lr_scheduler blocks of an NVIDIA NeMo AutoModel recipe"

    def files(self, aimed: Aimed) -> dict[str, str]:
        return {**config_json(aimed), FILE: dump_yaml({**_recipe(aimed), "mup_tune": made_from(aimed)})}

    def section(self, aimed: Aimed) -> str:
        return SECTION.format(file=FILE)

    def lost(self, aimed: Aimed) -> tuple[str, ...]:
        found = list(lost_in_schedule(aimed))
        eps = {group.eps for group in aimed.optimizer.groups}
        if len(eps) > 1:
            found.append(
                f"eps by group: AutoModel has one for all, {_outer_eps(aimed):g}; the depth rule wants {min(eps):g} "
                "inside the blocks"
            )
        return tuple(found)

    def settings(self, folder: Path) -> Settings:
        return validated(Settings, read_yaml(folder / FILE)["mup_tune"]["settings"], folder / FILE, "mup_tune.settings")

    def verify(self, folder: Path, aimed: Aimed) -> str:
        overrides = read_yaml(folder / FILE)["optimizer"]["param_group_overrides"]
        first_matches((each["pattern"] for each in overrides), aimed)
        return f"every parameter meets its own of {len(overrides)} patterns first, as AutoModel searches them"


def _recipe(aimed: Aimed) -> dict[str, Any]:
    file, settings = aimed.optimizer, aimed.settings
    eta, steps = settings.eta, aimed.steps
    scheduler: dict[str, Any] = {
        "lr_decay_style": "WSD",
        "lr_wsd_decay_style": "exponential",
        "init_lr": 0.0,
        "max_lr": eta,
        "min_lr": eta * file.schedule.lr_decay_to,
    }
    if steps:
        scheduler |= {
            "lr_warmup_steps": steps.warmup,
            "lr_decay_steps": steps.total,
            "wsd_decay_steps": steps.decay,
        }
    return {
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": ".",
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": eta,
            "weight_decay": settings.lam,
            "betas": list(file.betas),
            "eps": _outer_eps(aimed),
            "param_group_overrides": [_override(group, settings) for group in file.groups],
        },
        "lr_scheduler": scheduler,
    }


def _override(group: Group, settings: Settings) -> dict[str, Any]:
    return {
        "pattern": searched(group),
        "lr_mult": group.lr / settings.eta,
        "wd_mult": group.weight_decay / settings.lam,
    }


def _outer_eps(aimed: Aimed) -> float:
    """That of the embedding, which no depth rule changes."""
    return aimed.table.rows[0].eps

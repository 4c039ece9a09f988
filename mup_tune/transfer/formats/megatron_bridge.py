"""``megatron-bridge``: NVIDIA Megatron Bridge, which builds Falcon-H1 from ``config.json`` and a checkpoint.

Its ``CONFIG_MAPPING`` reads the multipliers. Learning rates, weight decay and eps are overrides by parameter
name, which a subclass of its ``OptimizerConfigOverrideProvider`` hands to Megatron Core.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError
from mup_tune.files import read_json, validated
from mup_tune.roles import EPS, HF_NAMES
from mup_tune.settings import Settings
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format, config_json, lost_in_schedule, made_from, to_json
from mup_tune.transfer.groups import Group, match

DATA, CODE = "megatron_bridge.json", "megatron_overrides.py"
SINCE = "0.6.0"  # the first release with pull request 4845
_LAYER, _MIXER, _ATTENTION = "decoder.layers.{layer}.", "mamba_mixer.", "self_attention."
# Megatron's parameter for each of ours. Ours that share one are fused there.
NAMES = {
    "embedding_weight": "embedding.word_embeddings.weight",
    "input_norm": f"{_LAYER}norm.weight",
    "ssm_in_proj": f"{_LAYER}{_MIXER}in_proj.weight",
    "conv1d_weight": f"{_LAYER}{_MIXER}conv1d_weight",
    "conv1d_bias": f"{_LAYER}{_MIXER}conv1d_bias",
    "dt_bias": f"{_LAYER}{_MIXER}dt_bias",
    "A_log": f"{_LAYER}{_MIXER}A_log",
    "D": f"{_LAYER}{_MIXER}D",
    "gated_norm": f"{_LAYER}{_MIXER}norm.weight",
    "ssm_out_proj": f"{_LAYER}{_MIXER}out_proj.weight",
    "qkv": f"{_LAYER}{_ATTENTION}linear_qkv.weight",
    "attention_out_proj": f"{_LAYER}{_ATTENTION}linear_proj.weight",
    "pre_ff_norm": f"{_LAYER}mlp.linear_fc1.layer_norm_weight",
    "mlp_gate_proj": f"{_LAYER}mlp.linear_fc1.weight",
    "mlp_up_proj": f"{_LAYER}mlp.linear_fc1.weight",
    "mlp_down_proj": f"{_LAYER}mlp.linear_fc2.weight",
    "final_norm": "decoder.final_norm.weight",
    "lm_head_weight": "output_layer.weight",
}
TEMPLATE = '''\
"""Learning rate, weight decay and eps of every parameter, for Megatron Bridge. The numbers are in {data}."""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from megatron.bridge.training.config import OptimizerConfigOverrideProvider
from megatron.core.optimizer import ParamKey

DATA = json.loads(Path(__file__).with_name("{data}").read_text(encoding="utf-8"))


@dataclass
class MupOverrides(OptimizerConfigOverrideProvider):
    """Gives every parameter its own group. A parameter that no name, or more than one, matches is an error."""

    def build_config_overrides(self, context):
        groups = DATA["groups"]
        for chunk in context.model if isinstance(context.model, list) else [context.model]:
            if getattr(getattr(chunk, "config", None), "use_mup", False):
                raise ValueError("use_mup scales a second time what config.json and these groups scale already")
            for parameter, _ in chunk.named_parameters():
                found = [group["name"] for group in groups if fnmatchcase(parameter, group["name"])]
                if len(found) != 1:
                    raise ValueError(f"{{parameter}} is matched by {{found or 'no group'}} of {data}")
        return {{ParamKey(name=group["name"]): dict(group["override"]) for group in groups}}
'''
SECTION = """\
| file | holds |
|---|---|
| `config.json` | what Megatron Bridge builds the model from; its bridge reads the 14 multiplier fields |
| `{data}` | a group of overrides for every parameter, optimizer and scheduler arguments, and where they come from |
| `{code}` | `MupOverrides`, the provider that hands the groups to Megatron Core |

```
provider = AutoBridge.from_hf_pretrained("FOLDER").to_megatron_provider()
cfg.optimizer_config_override_provider = megatron_overrides.MupOverrides()
cfg.optimizer: the values under "optimizer" in {data}; cfg.scheduler: those under "scheduler"
```

* Use Megatron Bridge {since} or newer. Older ones nearly cancel `ssm_in_multiplier` (pull request 4845).
* Leave `use_mup` off: it would scale again what is scaled here. The provider refuses it.
* Megatron draws another init. Start from a step-0 checkpoint, which `--init-seed` writes.
* `linear_fc1` holds gate and up, so they share lr and weight_decay; `linear_qkv` holds q, k and v, which share them
  anyway."""


class MegatronBridge(Format):
    name = "megatron-bridge"
    about = "config.json and an override provider for NVIDIA Megatron Bridge"

    def files(self, aimed: Aimed) -> dict[str, str]:
        return {
            **config_json(aimed),
            DATA: to_json({**_recipe(aimed), "groups": _groups(aimed), **made_from(aimed)}),
            CODE: TEMPLATE.format(data=DATA),
        }

    def section(self, aimed: Aimed) -> str:
        return SECTION.format(data=DATA, code=CODE, since=SINCE)

    def lost(self, aimed: Aimed) -> tuple[str, ...]:
        found = list(lost_in_schedule(aimed))
        if not aimed.settings.rope_base.is_integer():
            found.append(f"rope_base {aimed.settings.rope_base!r} is cut to a whole number")
        return tuple(found)

    def settings(self, folder: Path) -> Settings:
        return validated(Settings, read_json(folder / DATA)["settings"], folder / DATA, "settings")

    def verify(self, folder: Path, aimed: Aimed) -> str:
        groups = read_json(folder / DATA)["groups"]
        owner = match(aimed.optimizer.groups, aimed.table.shapes())
        wrapped = {f"module.{_megatron_name(name)}": group for name, group in owner.items()}
        for name, group in wrapped.items():
            found = [each for each in groups if fnmatchcase(name, each["name"])]
            if len(found) != 1 or found[0]["override"] != _override(aimed, group):
                raise UserError(f"Megatron's parameter {name!r} does not meet its own group", file=DATA)
        return f"{len(wrapped)} parameter names of Megatron's Falcon-H1 each meet exactly one of {len(groups)} groups"


def _recipe(aimed: Aimed) -> dict[str, Any]:
    """Arguments of Megatron's optimizer and scheduler configs; iterations where the budget is known."""
    file, settings = aimed.optimizer, aimed.settings
    (beta1, beta2), steps = file.betas, aimed.steps
    optimizer = {
        "optimizer": "adam",
        "lr": settings.eta,
        "min_lr": settings.eta * file.schedule.lr_decay_to,
        "weight_decay": settings.lam,
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "adam_eps": EPS,
        "clip_grad": file.clip_norm,
    }
    scheduler: dict[str, Any] = {
        "lr_decay_style": "WSD",
        "lr_wsd_decay_style": "exponential",
        "lr_warmup_init": 0.0,
        "start_weight_decay": settings.lam,
        "end_weight_decay": settings.lam,
        "weight_decay_incr_style": "constant",
    }
    if steps:
        scheduler |= {
            "lr_warmup_iters": steps.warmup,
            "lr_decay_iters": steps.total,
            "lr_wsd_decay_iters": steps.decay,
        }
    return {"optimizer": optimizer, "scheduler": scheduler}


def _groups(aimed: Aimed) -> list[dict[str, Any]]:
    """One group a Megatron parameter.

    Raises:
        UserError: parameters that Megatron fuses have different values.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    owner = match(aimed.optimizer.groups, aimed.table.shapes())
    for parameter in aimed.table.by_parameter:
        ours, name = _ours(parameter), _glob(NAMES[_ours(parameter)])
        override = _override(aimed, owner[parameter.format(layer=0)])
        other, known = found.setdefault(name, (ours, override))
        if known != override:
            raise UserError(
                f"{other} and {ours} are one parameter in Megatron, and their lr or weight_decay differ",
                field="--format megatron-bridge",
                fix="Give --tie-gate-up, which sets both to their geometric mean",
            )
    return [{"name": name, "override": override} for name, (_, override) in found.items()]


def _override(aimed: Aimed, group: Group) -> dict[str, Any]:
    """Peak and final lr, weight decay, and eps where it is not the optimizer's.

    Megatron Core tells groups apart by lr and weight decay when it loads a checkpoint, not by eps. So a group
    of another eps writes the same decay as 2λ · ½, which it does tell apart.
    """
    override = {
        "max_lr": group.lr,
        "min_lr": group.lr * aimed.optimizer.schedule.lr_decay_to,
        "start_wd": group.weight_decay,
        "end_wd": group.weight_decay,
        "wd_mult": 1.0,
    }
    if group.eps == EPS:
        return override
    doubled = 2 * group.weight_decay
    return {**override, "start_wd": doubled, "end_wd": doubled, "wd_mult": 0.5, "eps": group.eps}


def _ours(parameter: str) -> str:
    return next(ours for ours, names in HF_NAMES.items() if parameter in names)


def _glob(name: str) -> str:
    """A name for fnmatch, whose * runs over dots: a wrapper's prefix before, a layer's last digit behind."""
    # Older Megatron Core has conv1d as a module: conv1d.weight.
    return "*" + name.replace("{layer}", "*[0-9]").replace("conv1d_", "conv1d?")


def _megatron_name(parameter: str) -> str:
    """The concrete Megatron name of a concrete ``transformers`` one."""
    parts = parameter.split(".")
    layer = parts[2] if parts[1] == "layers" else ""
    template = ".".join(["model", "layers", "{layer}", *parts[3:]]) if layer else parameter
    return NAMES[_ours(template)].format(layer=layer)

"""The Shape that is aimed at: a shipped name, a Shape's YAML, or the ``config.json`` of a FalconH1 model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mup_tune.errors import UserError, located
from mup_tune.files import read_json, shipped, validated
from mup_tune.model.hf import CONFIG
from mup_tune.model.layers import RMS_NORM_EPS
from mup_tune.shape import RELEASED, Shape, load_shape

# What exports have at one value only, that of every released Falcon-H1: the role table knows no other.
ONLY = {
    "attention_bias": False,
    "mlp_bias": False,
    "projectors_bias": False,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
    "mamba_norm_before_gate": False,
    "hidden_act": "silu",
    "rms_norm_eps": RMS_NORM_EPS,
}
NOT_TAKEN = (
    "its multipliers, RoPE, token ids and context length are not taken over: all multipliers follow from the settings"
)


def load_target(name_or_file: str) -> Shape:
    """The Shape to aim at, one that ``transformers`` can build.

    Raises:
        UserError: no such Shape or file, tied embeddings, biases, sizes that do not divide, another block
            order than SA_M, or no SSM branch.
    """
    path = Path(name_or_file)
    config = path / CONFIG if path.is_dir() else path
    if config.suffix == ".json" or path.is_dir():
        if not config.is_file():
            raise UserError(
                f"the folder holds no {CONFIG}" if path.is_dir() else "no such file",
                file=name_or_file,
                field="--target",
                fix="Give a shipped Shape, a Shape's YAML file, or the config.json of a FalconH1 model",
            )
        return _checked(from_config(read_json(config), config), config)
    shape = load_shape(name_or_file)
    return _checked(shape, name_or_file)


def from_config(config: dict[str, Any], file: str | Path) -> Shape:
    """The Shape of a ``FalconH1Config``'s values; its note says what was not read.

    Raises:
        UserError: another model, tied embeddings, a size that is missing, not a whole number, or divides
            badly.
    """
    with located(file):
        if config.get("model_type") != "falcon_h1":
            raise UserError(
                f"{config.get('model_type')!r} is not allowed: only 'falcon_h1' can be aimed at", field="model_type"
            )
        _refuse_non_finite(config)
        if config.get("tie_word_embeddings"):
            raise UserError(
                "true is not allowed: lm_head needs a multiplier, an init and a learning rate of its own",
                field="tie_word_embeddings",
                fix="Set it to false, as the released 0.5B … 34B have it",
            )
        for field, needed in ONLY.items():
            if config.get(field, needed) != needed:
                raise UserError(
                    f"{json.dumps(config[field])} is not allowed: a transfer knows {json.dumps(needed)} only",
                    field=field,
                    fix=f"Set it to {json.dumps(needed)}",
                )
        d_model, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        d_ssm = _size(config, "mamba_d_ssm", default=_expanded(config, d_model))
        ssm_heads = _size(config, "mamba_n_heads")
        sizes = {
            "d_model": d_model,
            "n_layers": _size(config, "num_hidden_layers"),
            "n_heads": heads,
            "n_kv_heads": _divides(config, "num_key_value_heads", heads, "num_attention_heads"),
            "head_dim": _head(config, "head_dim", d_model, heads, "hidden_size / num_attention_heads"),
            "d_ssm": d_ssm,
            "ssm_head_dim": _head(config, "mamba_d_head", d_ssm, ssm_heads, "mamba_d_ssm / mamba_n_heads"),
            "d_state": _size(config, "mamba_d_state"),
            "n_groups": _divides(config, "mamba_n_groups", ssm_heads, "mamba_n_heads", default=1),
            "d_ff": _size(config, "intermediate_size"),
            "vocab_size": _size(config, "vocab_size"),
            "conv_kernel": _size(config, "mamba_d_conv", default=4),
        }
        if ssm_heads * sizes["ssm_head_dim"] != d_ssm:
            raise UserError(
                f"{ssm_heads} heads of {sizes['ssm_head_dim']} channels are not mamba_d_ssm = {d_ssm}",
                field="mamba_d_head",
                fix="Make mamba_n_heads × mamba_d_head = mamba_d_ssm",
            )
    name = Path(file).resolve().parent.name if Path(file).name == CONFIG else Path(file).stem
    facts = {
        "name": name,
        "gated_norm": bool(config.get("mamba_rms_norm", False)),
        "note": f"read from {file}; {NOT_TAKEN}",
    }
    return validated(Shape, {**sizes, **facts}, file)


def aims() -> list[Shape]:
    """All shipped Shapes that can be aimed at: released ones first, then proxies, by parameters."""
    proxies = [load_shape(each.stem) for each in shipped("proxy_models").glob("*.yaml") if each.stem not in RELEASED]
    return [*map(load_shape, RELEASED), *sorted(proxies, key=lambda shape: shape.parameters())]


def _checked(shape: Shape, file: str | Path) -> Shape:
    if shape.block_order != "SA_M":
        raise UserError(
            f"{shape.block_order} is not allowed: FalconH1 is built as SA_M only",
            file=file,
            field="block_order",
            fix="Aim at a Shape of block order SA_M",
        )
    if not shape.d_ssm:
        raise UserError(
            "0 is not allowed: FalconH1 has no models without an SSM branch",
            file=file,
            field="d_ssm",
            fix="Aim at a Shape with one",
        )
    return shape


def _refuse_non_finite(config: dict[str, Any]) -> None:
    for field, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(
                    f"{number} is not allowed: it is no finite number", field=field, fix="Correct the config"
                )


def _size(config: dict[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UserError("is required and missing", field=field, fix="Write it into the config")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{value!r} is not allowed: it is a whole number, at least 1", field=field)
    return value


def _divides(config: dict[str, Any], field: str, of: int, name: str, default: int | None = None) -> int:
    value = _size(config, field, default)
    if of % value:
        raise UserError(f"{value} does not divide {name} = {of}", field=field, fix=f"Make it a divisor of {of}")
    return value


def _head(config: dict[str, Any], field: str, channels: int, heads: int, rule: str) -> int:
    """A head's size; without one (or ``auto``) ``transformers`` divides channels by heads."""
    if config.get(field) not in (None, "auto"):
        return _size(config, field)
    if channels % heads:
        raise UserError(f"is missing, and {rule} = {channels}/{heads} is no whole number", field=field, fix="Write it")
    return channels // heads


def _expanded(config: dict[str, Any], d_model: int) -> int | None:
    """d_ssm where the config names only the factor over the residual width."""
    expand = config.get("mamba_expand")
    return None if expand is None else int(expand * d_model)

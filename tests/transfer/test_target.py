from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exporting import export_hf
from typer import Typer
from typer.testing import CliRunner

from mup_tune.cli import transfer as command
from mup_tune.errors import UserError
from mup_tune.shape import RELEASED, Shape, load_shape
from mup_tune.transfer.resolve import Tuned
from mup_tune.transfer.target import from_config, load_target


@pytest.fixture(scope="module")
def config(export: Path) -> dict[str, Any]:
    return json.loads((export / "config.json").read_text())


def test_an_exported_config_is_its_own_target(export: Path, target: Shape) -> None:
    for where in (export, export / "config.json"):
        found = load_target(str(where))
        assert found.content_hash() == target.content_hash()
        assert "not taken over" in found.note


def test_a_config_that_transformers_saved_gives_the_same_numbers(
    source: Tuned, export: Path, target: Shape, tmp_path: Path
) -> None:
    import transformers

    transformers.FalconH1Config.from_pretrained(str(export)).save_pretrained(tmp_path / "saved")
    export_hf(source, load_target(str(tmp_path / "saved")), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == (export / "config.json").read_text()


def test_sizes_that_a_config_leaves_out_are_divided(config: dict[str, Any], target: Shape) -> None:
    del config["head_dim"]
    shape = from_config({**config, "mamba_d_head": "auto", "mamba_d_ssm": None, "mamba_expand": 1}, "config.json")
    assert (shape.head_dim, shape.ssm_head_dim, shape.d_ssm) == (64 // 4, target.ssm_head_dim, 64)
    config["head_dim"] = target.head_dim


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type: 'llama' is not allowed"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: true is not allowed: lm_head needs a multiplier"),
        ({"attention_bias": True}, "attention_bias: true is not allowed.*Set it to false"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: 1e-06 is not allowed.*Set it to 1e-05"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias: false is not allowed.*Set it to true"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide num_attention_heads = 4"),
        ({"mamba_n_groups": 3}, "mamba_n_groups: 3 does not divide mamba_n_heads = 4"),
        ({"mamba_d_head": 15}, "mamba_d_head: 4 heads of 15 channels are not mamba_d_ssm = 64"),
        ({"mamba_d_head": None, "mamba_d_ssm": 66}, "mamba_d_head: is missing, and .* = 66/4 is no whole number"),
        ({"head_dim": 15}, "head_dim = 15 must be even"),
        ({"hidden_size": 64.5}, "hidden_size: 64.5 is not allowed"),
        ({"vocab_size": None}, "vocab_size: is required and missing"),
        ({"ssm_multipliers": [1.0, float("nan")]}, "ssm_multipliers: nan is not allowed"),
        ({"key_multiplier": float("inf")}, "key_multiplier: inf is not allowed"),
    ],
)
def test_a_config_that_cannot_be_aimed_at_is_refused_by_its_own_names(
    change: dict[str, Any], said: str, config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=said) as refused:
        load_target(str(path))
    assert str(path) in str(refused.value)


def test_other_targets_that_are_none(target: Shape, tmp_path: Path) -> None:
    for order in ("SAM", "S_A_M"):
        path = tmp_path / f"{order}.yaml"
        path.write_text(json.dumps({**target.model_dump(), "block_order": order}))
        with pytest.raises(UserError, match=rf"{order}\.yaml: block_order: {order} is not allowed"):
            load_target(str(path))
    attention = tmp_path / "attention.yaml"
    attention.write_text(json.dumps({**target.model_dump(), "d_ssm": 0}))
    with pytest.raises(UserError, match=r"attention\.yaml: d_ssm: 0 is not allowed"):
        load_target(str(attention))
    with pytest.raises(UserError, match=r"--target: the folder holds no config\.json"):
        load_target(str(tmp_path))
    with pytest.raises(UserError, match=r"absent\.json: --target: no such file"):
        load_target(str(tmp_path / "absent.json"))


def test_the_command_lists_what_can_be_aimed_at() -> None:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    rows = json.loads(CliRunner().invoke(app, ["targets", "--json"]).stdout)
    assert [row["target"] for row in rows[:6]] == list(RELEASED)
    assert all(row["released"] == (row["target"] in RELEASED) for row in rows)
    for row in rows:
        shape = load_shape(row["target"])
        sizes = (row["d_model"], row["layers"], row["parameters"], row["vocabulary"])
        assert sizes == (shape.d_model, shape.n_layers, shape.parameters(), shape.vocab_size)

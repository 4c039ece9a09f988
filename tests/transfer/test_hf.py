from __future__ import annotations

import csv
import importlib.util
import json
import os
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer import Typer
from typer.testing import CliRunner

from mup_tune.cli import transfer as command
from mup_tune.errors import UserError
from mup_tune.files import read_yaml
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import Shape, load_shape
from mup_tune.transfer import hf
from mup_tune.transfer.groups import OptimizerFile, optimizer_file
from mup_tune.transfer.hf import export_hf
from mup_tune.transfer.resolve import Source
from mup_tune.trial import Budget

FILES = {"README.md", "config.json", "optimizer.yaml", "role_table.csv", "settings.yaml", "shape.yaml"}

# From the released sizes alone: d, d_attn, head_dim, d_ssm, d_state, d_ff, parameters in units of 1e9.
RELEASED = {
    "falcon-h1-0.5b": (1024, 8 * 64, 64, 1536, 128, 2048, 0.521),
    "falcon-h1-1.5b-deep": (1280, 6 * 128, 128, 1536, 256, 3072, 1.555),
    "falcon-h1-7b": (3072, 12 * 128, 128, 3072, 256, 12288, 7.586),
    "falcon-h1-34b": (5120, 20 * 128, 128, 4096, 256, 21504, 33.64),
}


@pytest.mark.parametrize("name", RELEASED)
def test_published_settings_give_the_released_configs(name: str, published: Source, tmp_path: Path) -> None:
    export = export_hf(published, load_shape(name), tmp_path / "out")
    d, d_attn, head_dim, d_ssm, d_state, d_ff, billions = RELEASED[name]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected: dict[str, Any] = {
        "embedding_multiplier": 2**2.5,
        "lm_head_multiplier": 40 / d,
        "key_multiplier": 2**-2.5 * (1280 / d) ** 2 * sqrt(128 / head_dim),
        "attention_in_multiplier": 1,
        "attention_out_multiplier": 491520 / (d * d_attn),
        "ssm_in_multiplier": 1280 / d,
        "ssm_out_multiplier": 2**8.5 / d_ssm,
        "ssm_multipliers": [2**-1.5, 2**-2, 2**-2.5 * 256 / d_state, 2**-1, 2**-1.5],
        "mlp_multipliers": [2**-0.5 * 1280 / d, 1228800 / (d * d_ff)],
        "rope_theta": 1e11,
    }
    for key, value in expected.items():
        assert config[key] == pytest.approx(value, rel=1e-12), key
    # The export's own verification has already built the model on the meta device and counted.
    assert export.verification.startswith(f"verified with transformers {transformers.__version__}")
    assert export.parameters == load_shape(name).parameters()
    assert export.parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_the_folder_is_whole_and_reads_back(export: Path, tuned: Settings, target: Shape) -> None:
    assert {path.name for path in export.iterdir()} == FILES
    assert not [path for path in export.parent.iterdir() if path.name.startswith(".")]
    assert load_settings(str(export / "settings.yaml"), None) == tuned
    assert load_shape(str(export / "shape.yaml")) == target
    OptimizerFile.model_validate(read_yaml(export / "optimizer.yaml"))
    rows = list(csv.DictReader((export / "role_table.csv").open()))
    table = role_table(target, tuned)
    assert [(row["parameter"], row["slice"]) for row in rows] == [(row.parameter, row.slice) for row in table.rows]
    for row, role in zip(rows, table.rows, strict=True):
        assert (float(row["lr"]), float(row["weight_decay"])) == (role.lr, role.weight_decay)
        assert row["init_std"] == ("" if role.init_std is None else repr(role.init_std))


def test_transformers_reads_the_rope_base_and_freezes_no_row(export: Path) -> None:
    config = transformers.FalconH1Config.from_pretrained(str(export))
    assert config.rope_parameters["rope_theta"] == 1e11
    written = json.loads((export / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 1e11  # 4.x reads the first
    model = transformers.FalconH1ForCausalLM(config)
    inverse = 1e11 ** -(1 / 8)  # the second of 16/2 frequencies
    assert model.model.rotary_emb.inv_freq[1].item() == pytest.approx(inverse, rel=1e-5)
    assert model.model.embed_tokens.padding_idx is None


def test_the_readme_leads_with_the_init(export: Path) -> None:
    text = (export / "README.md").read_text()
    first = text.splitlines()[0]
    for word in ("from_config", "init", "dt_bias = 1", "log(1..n_heads)", "decay"):
        assert word in first
    assert "abc-parametrisation" in text
    assert "vocabulary 264" in text
    assert "12,800" in text  # the budget η was tuned at
    assert "verified with transformers" in text


def test_no_export_where_something_lies_already(source: Source, target: Shape, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    for out in (full, full / "mine.txt", tmp_path / "absent" / "out"):
        with pytest.raises(UserError, match="--out"):
            export_hf(source, target, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    export_hf(source, target, empty)
    assert {path.name for path in empty.iterdir()} == FILES


def test_a_missing_pattern_fails_the_export_and_leaves_nothing(
    source: Source, target: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(table: RoleTable, budget: Budget | None) -> OptimizerFile:
        file = optimizer_file(table, budget)
        return file.model_copy(update={"groups": tuple(g for g in file.groups if "dt_bias" not in g.pattern)})

    monkeypatch.setattr(hf, "optimizer_file", sabotaged)
    with pytest.raises(UserError, match=r"dt_bias' is matched by no pattern"):
        export_hf(source, target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mamba_rms_norm": False}, "norm.*matches 0 parameters"),  # a parameter less
        ({"mamba_conv_bias": False}, r"conv1d.*bias.*matches 0 parameters"),
        ({"attention_bias": True}, r"q_proj\.bias.*no pattern"),  # one more
        ({"intermediate_size": 136}, "has the shape"),
        ({"mamba_d_head": 15}, "cannot build this target"),
    ],
)
def test_transformers_own_word_counts(
    changes: dict[str, Any],
    match: str,
    source: Source,
    target: Shape,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = hf.hf_config_kwargs
    monkeypatch.setattr(hf, "hf_config_kwargs", lambda table: {**original(table), **changes})
    with pytest.raises(UserError, match=match):
        export_hf(source, target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_transformers_the_skip_is_said(
    source: Source, target: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name, *rest)
    )
    export = export_hf(source, target, tmp_path / "out")
    assert "SKIPPED" in export.verification
    assert "SKIPPED" in (tmp_path / "out" / "README.md").read_text()


def test_base_equal_to_target_is_in_the_folder(same_widths: Source, target: Shape, tmp_path: Path) -> None:
    export = export_hf(same_widths, target, tmp_path / "out")
    assert "NO WIDTH SCALING TOOK PLACE" in " ".join(export.warnings)
    assert "NO WIDTH SCALING TOOK PLACE" in (tmp_path / "out" / "README.md").read_text()


def test_attention_only_has_no_falcon_h1_config(source: Source, target: Shape, tmp_path: Path) -> None:
    attention_only = Shape.model_validate({**target.model_dump(), "d_ssm": 0})
    with pytest.raises(UserError, match="d_ssm"):
        export_hf(source, attention_only, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_warnings_or_json(run_folder: Path, target: Shape, tmp_path: Path) -> None:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    shape = tmp_path / "tiny.yaml"
    shape.write_text(json.dumps(target.model_dump()))
    arguments = ["transfer", str(run_folder), "--target", str(shape), "--out"]
    spoken = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert spoken.exit_code == 0, spoken.output
    assert "warning: vocabulary 264 at the proxy, 512 at the target" in spoken.output
    assert "verified with transformers" in spoken.output
    quiet = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--json"])
    facts = json.loads(quiet.stdout)
    assert set(facts["files"]) == FILES == set(os.listdir(facts["out"]))
    assert facts["parameters"] == target.parameters()
    assert len(facts["warnings"]) == 1

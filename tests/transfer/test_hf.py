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
from exporting import export_hf
from typer import Typer
from typer.testing import CliRunner

from mup_tune.cli import transfer as command
from mup_tune.errors import UserError
from mup_tune.files import read_yaml
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import Shape, load_shape
from mup_tune.transfer import aim
from mup_tune.transfer.groups import OptimizerFile, optimizer_file
from mup_tune.transfer.load import load_transfer
from mup_tune.transfer.resolve import Tuned
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
def test_published_settings_give_the_released_configs(name: str, published: Tuned, tmp_path: Path) -> None:
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
    assert export.verification["hf"].startswith(f"verified with transformers {transformers.__version__}")
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


def test_no_export_where_something_lies_already(source: Tuned, target: Shape, tmp_path: Path) -> None:
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
    source: Tuned, target: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(table: RoleTable, budget: Budget | None) -> OptimizerFile:
        file = optimizer_file(table, budget)
        return file.model_copy(update={"groups": tuple(g for g in file.groups if "dt_bias" not in g.pattern)})

    monkeypatch.setattr(aim, "optimizer_file", sabotaged)
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
    source: Tuned,
    target: Shape,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = aim.hf_config
    monkeypatch.setattr(aim, "hf_config", lambda table: {**original(table), **changes})
    with pytest.raises(UserError, match=match):
        export_hf(source, target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_transformers_the_skip_is_said(
    source: Tuned, target: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name, *rest)
    )
    export = export_hf(source, target, tmp_path / "out")
    assert "SKIPPED" in export.verification["hf"]
    assert "SKIPPED" in (tmp_path / "out" / "README.md").read_text()


def test_base_equal_to_target_is_in_the_folder(same_widths: Tuned, target: Shape, tmp_path: Path) -> None:
    export = export_hf(same_widths, target, tmp_path / "out")
    assert "NO WIDTH SCALING TOOK PLACE" in " ".join(export.warnings)
    assert "NO WIDTH SCALING TOOK PLACE" in (tmp_path / "out" / "README.md").read_text()


def test_completep_is_in_the_config_the_groups_and_the_words(source: Tuned, target: Shape, tmp_path: Path) -> None:
    """Depth 2 at the base, 8 at the target: branches and eps inside blocks get 1/4; nothing else moves."""
    deep = target.model_copy(update={"n_layers": 8})
    settings = source.settings.model_copy(update={"depth_rule": "completep"})
    for name, each in (("plain", source.settings), ("deep", settings)):
        export_hf(Tuned(each, "a test", source.budget, source.proxy), deep, tmp_path / name)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "deep")]
    branches = {"attention_out_multiplier", "ssm_out_multiplier"}
    for key, value in configs[0].items():
        if key == "mlp_multipliers":
            assert configs[1][key] == pytest.approx([value[0], value[1] / 4], rel=1e-12)
        else:
            assert configs[1][key] == (pytest.approx(value / 4, rel=1e-12) if key in branches else value), key
    files = [OptimizerFile.model_validate(read_yaml(tmp_path / name / "optimizer.yaml")) for name in ("plain", "deep")]
    for a, b in zip(files[0].groups, files[1].groups, strict=True):
        assert (a.pattern, a.lr, a.weight_decay) == (b.pattern, b.lr, b.weight_decay)
        assert b.eps == pytest.approx(a.eps / (4 if "layers" in a.pattern else 1))
    assert "depth rule: completep" in files[1].parametrisation
    assert "depth rule: none" in files[0].parametrisation
    assert "Depth rule: completep." in (tmp_path / "deep" / "README.md").read_text()
    with (tmp_path / "deep" / "role_table.csv").open() as rows:
        assert any("mlp_down ∝ (d₀·d_ff₀)/(d·d_ff) · L₀/L" in row["rule"] for row in csv.DictReader(rows))


def test_a_scaled_batch_is_the_same_in_every_file_and_said(source: Tuned, target: Shape, tmp_path: Path) -> None:
    for name, batch in (("plain", None), ("scaled", 512)):
        export_hf(source, target, tmp_path / name, batch_tokens=batch)
    files = [
        OptimizerFile.model_validate(read_yaml(tmp_path / each / "optimizer.yaml")) for each in ("plain", "scaled")
    ]
    for a, b in zip(files[0].groups, files[1].groups, strict=True):
        assert b.lr == pytest.approx(2 * a.lr, rel=1e-12)
        assert b.weight_decay == pytest.approx(a.weight_decay, rel=1e-12)
        assert (a.init, a.eps) == (b.init, b.eps)
    spec = files[1].schedule
    assert (spec.batch_tokens, spec.total_tokens, spec.lr_tuned_at_batch_tokens) == (512, None, 128)
    assert files[0].schedule.lr_tuned_at_batch_tokens is None
    scaled = load_settings(str(tmp_path / "scaled" / "settings.yaml"), None)
    rows = list(csv.DictReader((tmp_path / "scaled" / "role_table.csv").open()))
    assert (
        float(rows[0]["lr"])
        == files[1].groups[0].lr
        == pytest.approx(scaled.eta * scaled.value("embedding_weight.elr"))
    )
    text = (tmp_path / "scaled" / "README.md").read_text()
    assert "tuned at 128 tokens a batch and is scaled here, in every file, to 512: times √(b/b_ref) = 2 " in text
    assert "--batch-tokens" in (tmp_path / "plain" / "README.md").read_text()
    transfer = load_transfer(tmp_path / "scaled", total_tokens=51_200)
    assert transfer.schedule is not None
    assert transfer.schedule.steps == 100
    assert load_transfer(tmp_path / "scaled").schedule is None


def test_what_is_a_prediction_is_said(published: Tuned, tmp_path: Path) -> None:
    export = export_hf(published, load_shape("falcon-h1-3b"), tmp_path / "out")
    assert "predictions of the rules" in export.note
    assert "predictions of the rules" in (tmp_path / "out" / "README.md").read_text()


def test_attention_only_has_no_falcon_h1_config(source: Tuned, target: Shape, tmp_path: Path) -> None:
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
    assert "warning: extrapolation in vocabulary 264 at the proxy, 512 at the target" in spoken.output
    assert "confirmed: the 95 % CI lies above 0; gain over ELR-tuned untuned +20.0 mnat/token" in spoken.output
    assert "width.lm_head" in spoken.output
    assert "verified with transformers" in spoken.output
    quiet = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--json"])
    facts = json.loads(quiet.stdout)
    assert set(facts["files"]) == FILES == set(os.listdir(facts["out"]))
    assert facts["parameters"] == target.parameters()
    assert len(facts["warnings"]) == 2  # vocabulary, and a length that is not given
    assert (facts["evidence"]["verdict"], facts["evidence"]["gain"]["low"]) == ("better", 0.01)
    assert {rule["name"] for rule in facts["rules"]} >= {"width.key", "init.d_ff", "depth.none", "horizon.falcon"}
    scaled = CliRunner().invoke(app, [*arguments, str(tmp_path / "three"), "--batch-tokens", "2048"])
    assert scaled.exit_code == 0, scaled.output
    assert "√(b/b_ref) = 4 " in (tmp_path / "three" / "README.md").read_text()

"""The contract of every format, and what each promises its trainer."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exporting import BETTER, make_run
from safetensors.torch import load_file

from mup_tune.cli.transfer import FormatOption
from mup_tune.errors import UserError
from mup_tune.markdown import plain
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer.aim import Aimed, aim
from mup_tune.transfer.export import export
from mup_tune.transfer.format import Format
from mup_tune.transfer.formats import formats
from mup_tune.transfer.load import load_transfer
from mup_tune.transfer.resolve import Tuned, resolve
from mup_tune.transfer.step_0 import write_step_0
from mup_tune.trial import Budget
from mup_tune.version import VERSION

NAMES = ("hf", "json", "megatron-bridge", "automodel", "torchtitan")


@pytest.fixture(scope="module")
def aimed(
    tmp_path_factory: pytest.TempPathFactory, tuned: Settings, budget: Budget, proxy: Shape, target: Shape
) -> Aimed:
    """From a run, at a budget of its own, gate and up tied: what every format can write."""
    run = make_run(tmp_path_factory.mktemp("run") / "first", tuned, budget, proxy, BETTER)
    return aim(resolve(str(run)), target, batch_tokens=512, tokens=512_000, tie_gate_up=True)


@pytest.fixture(scope="module")
def folder(aimed: Aimed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All formats in one folder, with a step-0 checkpoint. Read only."""
    out = tmp_path_factory.mktemp("formats") / "all"
    export(aimed, out, formats(NAMES), init_seed=3)
    return out


def test_every_format_is_known() -> None:
    assert set(Format.known) == set(NAMES)
    assert all(name in FormatOption.__metadata__[0].help for name in NAMES)
    assert [each.name for each in formats(["json, hf", "json"])] == ["json", "hf"]
    with pytest.raises(UserError, match="--format: unknown format 'megatron-bridg'; did you mean 'megatron-bridge'"):
        formats(["hf,megatron-bridg"])


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_a_format(name: str, aimed: Aimed, tmp_path: Path) -> None:
    (format_,) = formats([name])
    done = [export(aimed, tmp_path / each, [format_]) for each in ("one", "two")]
    contents = [{path.name: path.read_bytes() for path in each.out.iterdir()} for each in done]
    assert contents[0] == contents[1]
    assert set(contents[0]) == set(done[0].files)
    text = b"".join(content for file, content in contents[0].items() if file != "README.md").decode()
    readme = contents[0]["README.md"].decode()
    for said in ("plan-hash", "c0ffee", VERSION, "falcon-h1"):
        assert said in text, said
        assert said in readme, said
    for rule in aimed.rules:
        assert rule.name in text
        assert rule.name in readme
    assert format_.settings(tmp_path / "one") == aimed.settings
    assert f"## {name}: {format_.about}" in readme
    assert all(lost in readme for lost in format_.lost(aimed))


def test_formats_lie_beside_each_other(folder: Path, aimed: Aimed) -> None:
    for each in formats(NAMES):
        for name, text in each.files(aimed).items():
            assert (folder / name).read_text() == text


def groups_by_name(aimed: Aimed) -> dict[str, tuple[float, float, float]]:
    return {
        name: (row.lr, row.weight_decay, row.eps) for name in aimed.table.parameters() for row in aimed.table.of(name)
    }


@pytest.mark.parametrize("depth_rule", ["none", "completep"])
def test_megatrons_groups_are_the_role_tables(depth_rule: Any, aimed: Aimed, target: Shape, tmp_path: Path) -> None:
    deep = target.model_copy(update={"n_layers": 3})
    found = aim(aimed.tuned, deep, depth_rule=depth_rule, tie_gate_up=True)
    export(found, tmp_path / "out", formats(["megatron-bridge"]))
    data = json.loads((tmp_path / "out" / "megatron_bridge.json").read_text())
    wanted = groups_by_name(found)
    # A concrete name of either side, where the conversion is no rename of the last part.
    pairs = {
        "module.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "module.decoder.layers.2.norm.weight": "model.layers.2.input_layernorm.weight",
        "module.decoder.layers.2.mamba_mixer.norm.weight": "model.layers.2.mamba.norm.weight",
        "module.decoder.layers.2.mamba_mixer.conv1d.weight": "model.layers.2.mamba.conv1d.weight",
        "module.decoder.layers.2.mamba_mixer.conv1d_bias": "model.layers.2.mamba.conv1d.bias",
        "module.decoder.layers.2.mamba_mixer.D": "model.layers.2.mamba.D",
        "module.decoder.layers.2.mamba_mixer.dt_bias": "model.layers.2.mamba.dt_bias",
        "module.decoder.layers.2.self_attention.linear_qkv.weight": "model.layers.2.self_attn.k_proj.weight",
        "module.decoder.layers.2.mlp.linear_fc1.layer_norm_weight": "model.layers.2.pre_ff_layernorm.weight",
        "module.decoder.layers.2.mlp.linear_fc1.weight": "model.layers.2.feed_forward.up_proj.weight",
        "module.decoder.final_norm.weight": "model.final_layernorm.weight",
        "module.output_layer.weight": "lm_head.weight",
    }
    from fnmatch import fnmatch

    for theirs, ours in pairs.items():
        (group,) = (each["override"] for each in data["groups"] if fnmatch(theirs, each["name"]))
        lr, weight_decay, eps = wanted[ours]
        assert (group["max_lr"], group["min_lr"]) == (lr, pytest.approx(0.05 * lr))
        assert group["start_wd"] == group["end_wd"]
        assert group["start_wd"] * group["wd_mult"] == pytest.approx(weight_decay, rel=1e-12)
        assert group.get("eps", data["optimizer"]["adam_eps"]) == eps
    # A checkpoint is loaded by lr and decay: groups that differ in eps alone must differ there too.
    keys = [{key: value for key, value in each["override"].items() if key != "eps"} for each in data["groups"]]
    for a, first in zip(keys, data["groups"], strict=True):
        for b, second in zip(keys, data["groups"], strict=True):
            assert a != b or first["override"].get("eps") == second["override"].get("eps")


def test_megatron_refuses_gate_and_up_that_differ(source: Tuned, target: Shape, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mlp_gate_proj and mlp_up_proj are one parameter.*--tie-gate-up"):
        export(aim(source, target), tmp_path / "out", formats(["hf,megatron-bridge"]))
    assert not list(tmp_path.iterdir())
    rope = aim(
        replace(source, settings=source.settings.with_values({"rope_base": 1e6 + 0.5})), target, tie_gate_up=True
    )
    assert any("rope_base 1000000.5" in each for each in Format.known["megatron-bridge"].lost(rope))


def test_automodels_multipliers_give_the_role_tables_rates(folder: Path, aimed: Aimed) -> None:
    recipe = yaml.safe_load((folder / "automodel.yaml").read_text())  # as others read YAML
    optimizer, scheduler = recipe["optimizer"], recipe["lr_scheduler"]
    for name, (lr, weight_decay, eps) in groups_by_name(aimed).items():
        first = next(each for each in optimizer["param_group_overrides"] if re.search(each["pattern"], name))
        assert optimizer["lr"] * first["lr_mult"] == pytest.approx(lr, rel=1e-12)
        assert optimizer["weight_decay"] * first["wd_mult"] == pytest.approx(weight_decay, rel=1e-12)
        assert optimizer["eps"] == eps
    steps = (scheduler["lr_warmup_steps"], scheduler["wsd_decay_steps"], scheduler["lr_decay_steps"])
    assert steps == (100, 200, 1000)


def test_no_format_takes_the_proxys_steps_for_the_targets(aimed: Aimed, target: Shape) -> None:
    unknown = aim(aimed.tuned, target, tie_gate_up=True)
    for name in ("megatron-bridge", "automodel", "torchtitan"):
        texts = Format.known[name].files(unknown)
        assert not any(re.search("warmup_(steps|iters)", text) for text in texts.values())
        assert any("steps of warmup and decay" in each for each in Format.known[name].lost(unknown))


def test_automodel_says_that_it_has_one_eps(aimed: Aimed, target: Shape) -> None:
    deep = target.model_copy(update={"n_layers": 8})
    lost = Format.known["automodel"].lost(aim(aimed.tuned, deep, depth_rule="completep"))
    assert any("one for all, 1e-16; the depth rule wants 2.5e-17" in each for each in lost)
    assert not any("eps" in each for each in Format.known["automodel"].lost(aimed))
    assert any("power schedule" in each for each in Format.known["automodel"].lost(aimed))


def test_torchtitans_groups_are_the_role_tables_under_any_prefix(folder: Path, aimed: Aimed) -> None:
    groups = json.loads((folder / "torchtitan.json").read_text())["param_groups"]
    for name, (lr, weight_decay, eps) in groups_by_name(aimed).items():
        for prefix in ("", "model."):
            first = next(each for each in groups if re.search(each["pattern"], prefix + name))
            kwargs = first["optimizer_kwargs"]
            assert (kwargs["lr"], kwargs["weight_decay"], kwargs["eps"]) == (lr, weight_decay, eps)
        assert not any(re.search(each["pattern"], name + "x") for each in groups)


@pytest.mark.parametrize("file", ["megatron_overrides.py", "torchtitan_groups.py"])
def test_the_loaders_are_python_and_read_the_file_beside_them(file: str, folder: Path) -> None:
    tree = ast.parse((folder / file).read_text())
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert [each for each in named if each.endswith(".json") and (folder / each).is_file()]


def test_a_step_0_checkpoint_is_what_init_weights_draws(folder: Path, aimed: Aimed, tmp_path: Path) -> None:
    import transformers

    model = transformers.FalconH1ForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    drawn = transformers.FalconH1ForCausalLM(model.config)
    load_transfer(folder).init_weights_(drawn, seed=3)
    for (name, a), b in zip(model.named_parameters(), drawn.parameters(), strict=True):
        assert torch.equal(a, b), name
    files = write_step_0(tmp_path, aimed.table, seed=3, shard_bytes=100_000)
    assert len(files) > 3
    index = json.loads((tmp_path / files[0]).read_text())
    whole, shards = load_file(folder / "model.safetensors"), {each: load_file(tmp_path / each) for each in files[1:]}
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == 4 * aimed.target.parameters()
    for name, file in index["weight_map"].items():
        assert torch.equal(shards[file][name], whole[name])


def test_a_checkpoint_that_does_not_fit_leaves_no_export(
    aimed: Aimed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mup_tune.transfer import step_0

    monkeypatch.setattr(step_0.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="--init-seed: the step-0 checkpoint takes"):
        export(aimed, tmp_path / "out", formats(["hf"]), init_seed=0)
    assert not list(tmp_path.iterdir())


def test_markdown_shows_names_as_they_are() -> None:
    """By CommonMark's rules: every backslash escape stands for its character, and no other mark is left."""
    name = r"a [/x](y) $5% or $10 <b> &lt; `c` *d* _e_ ~f~ | # \[/y]"
    written = plain(name)
    assert re.sub(r"\\(.)", r"\1", written) == name
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]<>|&$~#]", re.sub(r"\\.", "", written))
    assert plain("falcon_h1 at cpu-64") == "falcon_h1 at cpu-64"

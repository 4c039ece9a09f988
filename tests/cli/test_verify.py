from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from program import mup_tune

FACTORIES = """
from transformers import FalconH1Config, FalconH1ForCausalLM

def right(config):
    return FalconH1ForCausalLM(FalconH1Config(**config))

def wrong(config):
    return right({**config, "key_multiplier": 1.0})

def backward(config):
    model = right(config)
    model.lm_head.weight.requires_grad_(False)
    return model

def other_rope(config):
    return right({**config, "rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})

def broken(config):
    import no_such_dependency
"""


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    done = mup_tune("transfer", "falcon-h1-published", "--target", "cpu-32", "--out", tmp_path / "export")
    assert done.returncode == 0, done.stderr
    (tmp_path / "factories_of_a_user.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path / "export"


def test_the_exit_code_is_the_verdict_and_the_fault_is_named(export: Path) -> None:
    done = mup_tune("verify", export, "--model", "factories_of_a_user:right")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pass: logits agree within")
    done = mup_tune("verify", export, "--model", "factories_of_a_user:wrong")
    assert done.returncode == 1
    assert "fail: key is missing: key_multiplier, on k, before rotary embedding" in done.stdout
    done = mup_tune("verify", export, "--model", "factories_of_a_user:backward")
    assert done.returncode == 1
    assert "gradients of lm_head_weight do not" in done.stdout
    done = mup_tune("verify", export, "--model", "factories_of_a_user:other_rope")
    assert done.returncode == 1
    assert "no multipliers missing or doubled explain it" in done.stdout


def test_json(export: Path) -> None:
    right = json.loads(mup_tune("verify", export, "--model", "factories_of_a_user:right", "--json").stdout)
    assert (right["verdict"], right["faults"], right["wrong_gradients"]) == ("pass", [], [])
    wrong = json.loads(mup_tune("verify", export, "--model", "factories_of_a_user:wrong", "--json").stdout)
    assert wrong["faults"] == [{"multiplier": "key", "kind": "missing", "field": "key_multiplier"}]
    frozen = json.loads(mup_tune("verify", export, "--model", "factories_of_a_user:backward", "--json").stdout)
    assert frozen["gradient_errors"]["lm_head_weight"] is None
    assert frozen["wrong_gradients"] == ["lm_head_weight"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("factories_of_a_user", "--model: 'factories_of_a_user' is not MODULE:FACTORY"),
        ("factories_of_nobody:right", "there is no module 'factories_of_nobody'"),
        ("factories_of_a_user:rigth", "did you mean 'right'?"),
    ],
)
def test_what_is_no_factory_is_one_line_with_exit_code_2(export: Path, model: str, message: str) -> None:
    done = mup_tune("verify", export, "--model", model)
    assert done.returncode == 2
    assert message in done.stderr


def test_what_the_users_own_code_raises_is_not_hidden(export: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        mup_tune("verify", export, "--model", "factories_of_a_user:broken")

"""The benchmark of search methods on simulated training: equal FLOPs, honest intervals, resuming."""

from __future__ import annotations

import importlib.util
import json
import sys
import zlib
from math import log2
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t

from mup_tune.data.prepare import prepare
from mup_tune.engine.work import Calibrate, Calibration, Outcome, Report, Work
from mup_tune.errors import UserError
from mup_tune.search import execute
from mup_tune.settings import ELR_0
from mup_tune.trial import PackResult, Trial, TrialResult

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "search_methods.py"
PLAN = """
data: {corpus: %s}
proxy: cpu-32
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 320}
stages:
  - {kind: elr_ewd}
"""


def loss(trial: Trial) -> float:
    settings = trial.settings
    noise = (zlib.crc32(trial.hash.encode()) / 2**32 - 0.5) * 0.004
    bowl = 0.05 * (log2(settings.elr / ELR_0) - 1) ** 2 + 0.05 * (log2(settings.multipliers["lm_head"]) - 1) ** 2
    return 2.0 + bowl + 0.1 * (trial.seed % 7) + noise


def simulated(work: Work, report: Report) -> Outcome:
    if isinstance(work, Calibrate):
        return Calibration({1: 100.0, 8: 800.0}, "cpu")
    rows = tuple(TrialResult(trial, "ok", loss(trial), 0.01) for trial in work.trials)
    columns = ("member", "step", "tokens", "loss", "grad_norm", "clipped", "eta")
    return PackResult(work, rows, {column: [0.0] * len(rows) for column in columns}, {"tokens_per_s": 1.0})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_methods", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_methods"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for index in range(60):
        (text / f"{index}.txt").write_text(f"{index} is followed by {index + 1}. " * 40)
    prepare([text], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    (tmp_path / "plan.yaml").write_text(PLAN % (tmp_path / "corpus"))
    return tmp_path / "plan.yaml"


def benchmark(script: ModuleType, plan: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    arguments = ["search_methods", "--plan", str(plan), "--out", str(plan.parent / "out"), "--executor", "inline"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--repeats", "2", "--confirm-seeds", "3", *more])
    script.main()
    return json.loads((plan.parent / "out" / "search_methods.json").read_text())


def test_from_plan_to_table_and_again(script, plan, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # where it is not installed, inline needs none
    monkeypatch.setattr(execute, "TrainingRunner", lambda *_: lambda lane: simulated)
    methods = ("--methods", "surface", "micro", "random")
    report = benchmark(script, plan, monkeypatch, *methods)
    for results in report["repeats"]:
        assert results["random"]["trials"] == results["surface"]["trials"]
        assert results["random"]["flops"] == pytest.approx(results["surface"]["flops"])
        assert all(list(each["losses"]) == ["1000", "1001", "1002"] for each in results.values())
    first, second = report["repeats"]
    assert first["surface"]["untuned"] != second["surface"]["untuned"]  # another data order: independent repeats
    assert first["surface"]["untuned"] == first["random"]["untuned"]

    gain = report["gains"]["surface over tuned start"]
    per_seed = [
        [each["tuned start"]["losses"][seed] - each["surface"]["losses"][seed] for seed in each["surface"]["losses"]]
        for each in report["repeats"]
    ]
    means = np.mean(per_seed, axis=1)
    half = t.ppf(0.975, 1) * means.std(ddof=1) / np.sqrt(2)
    assert gain["over_repeats"]["value"] == pytest.approx(means.mean())
    assert gain["over_repeats"]["high"] - gain["over_repeats"]["value"] == pytest.approx(half)
    half = t.ppf(0.975, 2) * np.std(per_seed[1], ddof=1) / np.sqrt(3)
    assert gain["per_repeat"][1]["high"] - means[1] == pytest.approx(half)
    assert means.mean() == pytest.approx(0.05, abs=0.01)  # what the start leaves along lm_head
    assert "surface over random" in capsys.readouterr().out

    monkeypatch.setattr(execute, "TrainingRunner", lambda *_: lambda lane: pytest.fail("trained again"))
    assert benchmark(script, plan, monkeypatch, *methods) == report


def test_too_little_to_spend_is_said(script):
    with pytest.raises(UserError, match="too few for a search"):
        script.search("random", 14)

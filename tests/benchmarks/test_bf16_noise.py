"""What the comparison of dtypes says of losses, and one run of it whose two dtypes are one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from mup_tune.trial import Budget


@pytest.fixture(scope="module")
def noise():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("bf16_noise")


def test_differences_are_paired_by_seed(noise):
    exact = {0: 2.0, 1: 3.0, 2: 4.0}
    found = noise.compared({0: 2.1, 1: 3.2, 2: 4.3}, exact)
    assert found["difference"]["value"] == pytest.approx(0.2)
    assert found["difference"]["high"] == pytest.approx(0.2 + 4.3027 * 0.1 / 3**0.5, abs=1e-4)  # t of 2 dof
    assert found["sd_difference"] == pytest.approx(0.1)
    assert found["sd_seeds"] == pytest.approx(1.0)
    found = noise.compared({0: 2.1, 1: None, 2: 4.3}, exact)
    assert found["diverged"] == [1, 0]
    assert "difference" not in found


def test_an_equal_shift_changes_no_step(noise):
    """What bfloat16 loses at both ELRs alike misleads nobody; what it loses at the second one alone does."""
    exact = [{0: 2.0, 1: 3.0}, {0: 1.5, 1: 2.6}]
    shifted = [{seed: loss + 0.5 for seed, loss in point.items()} for point in exact]
    (worth,) = noise.steps_worth(shifted, exact)
    assert worth.value == pytest.approx(0.0)
    (worth,) = noise.steps_worth([exact[0], shifted[1]], exact)
    assert worth.value == pytest.approx(-0.5)
    assert noise.steps_worth([exact[0], {0: None, 1: 2.0}], exact) == [None]


def test_one_run_of_it_all(noise, monkeypatch, tmp_path, capsys):
    """On a CPU there is float32 only, in place of both: nothing may differ then, over packs and ELRs."""
    made = noise.budget

    def float32(args, dtype) -> Budget:
        return made(args, "float32")

    monkeypatch.setattr(noise, "budget", float32)
    report = tmp_path / "noise.json"
    sizes = ["--shape", "cpu-32", "--rows", "1", "--seq-len", "32", "--tokens", "320", "--val-tokens", "64"]
    noise.main(["--device", "cpu", "--seeds", "3", "--members", "2", "--elr", "1", "4", "--json", str(report), *sizes])
    printed, written = capsys.readouterr().out, json.loads(report.read_text())
    assert [point["difference"]["value"] for point in written["points"]] == [0.0, 0.0]
    assert [step["value"] for step in written["steps"]] == [0.0]
    assert all(len(losses) == 3 for point in written["points"] for losses in point["losses"])
    assert written["points"][0]["sd_seeds"] > 0
    assert written["points"][0]["mean"] > written["points"][1]["mean"]
    assert "worth of ELR × 1 → × 4, bfloat16's minus float32's: +0.00000" in printed

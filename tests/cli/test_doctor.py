from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner, Result

from mup_tune.checks import backends as checks
from mup_tune.cli import app, doctor, output
from mup_tune.model import backends

PASS = checks.BackendTest("torch", "cpu", "float32", 1e-8, 2e-6, "layers.0.A_log", True, "", 0.2)
FAIL = checks.BackendTest("triton", "cuda:0", "bfloat16", 1e-4, float("inf"), "layers.1.D", False, "more than 0.1", 9.0)


def run(*arguments: str) -> Result:
    with mock.patch.object(output.console, "_width", 200):  # the terminal's may be set before a test can say so
        return CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)


def tested(monkeypatch: pytest.MonkeyPatch, *verdicts: checks.BackendTest) -> None:
    monkeypatch.setattr(checks, "self_test", lambda: list(verdicts))


def test_json_has_versions_devices_and_a_self_test_that_passes() -> None:
    done = run("--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert set(data) == {"packages", "devices", "self_test", "passed"}
    versions = {row["package"]: row["version"] for row in data["packages"]}
    assert versions["torch"] == metadata.version("torch")
    assert versions["optuna"] == metadata.version("optuna")
    assert all((row["version"] is None) == bool(row["install"]) for row in data["packages"])
    cpu = data["devices"][0]
    assert (cpu["device"], cpu["backend"], set(cpu["others"])) == ("cpu", "torch", {"triton", "mamba-ssm"})
    assert data["passed"]
    assert (data["self_test"][0]["backend"], data["self_test"][0]["passed"]) == ("torch", True)


def test_what_is_absent_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tested(monkeypatch, PASS)
    found = metadata.version

    def version(name: str) -> str:
        if name in ("mamba-ssm", "ray"):
            raise metadata.PackageNotFoundError(name)
        return found(name)

    spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(metadata, "version", version)
    absent = ("mamba_ssm", "ray")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in absent else spec(name))
    done = run()
    assert done.exit_code == 0
    assert f"mamba-ssm (the other GPU scan): {backends.INSTALL_MAMBA_SSM}" in done.stdout
    assert 'ray (--executor ray): pip install "ray[tune]"' in done.stdout
    assert "optuna (" not in done.stdout


@pytest.mark.parametrize(("extension", "note"), [(True, "full"), (False, "Python sources only")])
def test_mamba_ssm_is_there_in_full_or_as_sources(monkeypatch: pytest.MonkeyPatch, extension: bool, note: str) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "2.3")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: extension or None)
    row = next(row for row in doctor._packages() if row["package"] == "mamba-ssm")
    assert row["note"].startswith(note)


def test_a_backend_that_fails_exits_1_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tested(monkeypatch, PASS, FAIL)
    done = run()
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if "bfloat16" in line)
    assert line.split()[:3] == ["triton", "cuda:0", "bfloat16"]
    assert "inf" in line
    assert "fail  " in line
    assert "more than 0.1" in line
    as_json = run("--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["self_test"][1]["gradient_error"] is None
    assert "Infinity" not in as_json.stdout


def test_a_gpu_is_described_with_what_trains_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def properties(device: Any) -> SimpleNamespace:
        return SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30, major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    spec = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util,
        "find_spec",
        lambda name: "there" if name == "triton" else name != "einops" and spec(name),
    )
    tested(monkeypatch, PASS)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 580.95.05\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = json.loads(run("--json").stdout)["devices"][1]
    assert (gpu["device"], gpu["name"], gpu["memory_gib"]) == ("cuda:0", "NVIDIA H200", 141.0)
    assert (gpu["capability"], gpu["driver"], gpu["backend"]) == ("9.0", "580.95.05", "triton")
    assert gpu["others"]["torch"] is None
    said = run().stdout
    assert "cuda:0 (NVIDIA H200; 141 GiB, compute capability 9.0; driver 580.95.05, torch's CUDA" in said
    assert "trains with triton" in said
    assert "not torch: it can, but comes later in the order" in said


def test_help_says_what_the_backends_are_and_what_the_exit_code_means() -> None:
    said = " ".join(run("--help").stdout.split())
    assert all(name in said for name in backends.BACKENDS)
    assert "Exit 0" in said

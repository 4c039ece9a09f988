"""``doctor``: what is installed, which backend trains on which device, and whether each computes right."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from dataclasses import asdict
from math import inf
from typing import Any

import typer

from mup_tune.cli.options import JsonOption
from mup_tune.cli.output import console, err_console, print_json, print_rows, say
from mup_tune.cores import usable_cores
from mup_tune.model.backends import BACKENDS, INSTALL_GPU, INSTALL_MAMBA_SSM, choose, missing

# What it is for, and the command that installs it.
PACKAGES = {
    "torch": ("everything", "pip install torch"),
    "triton": ("GPU kernels", INSTALL_GPU),
    "mamba-ssm": ("the other GPU scan", INSTALL_MAMBA_SSM),
    "einops": ("mamba-ssm", INSTALL_GPU),
    "ray": ("--executor ray", 'pip install "ray[tune]"'),
    "optuna": ("the journal", "pip install optuna"),
    "transformers": ("checking what transfer writes", 'pip install "mup-tune[verify]"'),
    "tokenizers": ("data prepare --tokenizer", "pip install tokenizers"),
    "pyarrow": ("curves, parquet corpora", "pip install pyarrow"),
}
GIB = 2**30


def doctor(json: JsonOption = False) -> None:
    """What is installed, what trains on each device and why not the rest, and a self-test of all that can.

    A sweep takes the first of three backends that can run on its device. `triton`: mup-tune's own kernels, in
    float32 or bfloat16 (`--set budget.dtype=bfloat16`), for NVIDIA GPUs. `mamba-ssm`: PyTorch with
    mamba-ssm's scan; its Python sources are enough. `torch`: PyTorch alone, also on a CPU.

    The self-test trains nothing: it compares losses and all gradients of a population of two small models on
    packed documents with float64 PyTorch. Exit 0: every backend that can run passes. 1: one fails; do not
    trust its losses.
    """
    from mup_tune.checks.backends import devices, self_test

    packages, places = _packages(), [_device(name) for name in devices()]
    with err_console.status("self-test; kernels compile the first time, which takes minutes"):
        tests = [asdict(verdict) for verdict in self_test()]
    passed = all(test["passed"] for test in tests)
    if json:
        plain = [{key: None if value == inf else value for key, value in test.items()} for test in tests]
        print_json({"packages": packages, "devices": places, "self_test": plain, "passed": passed})
    else:
        _print(packages, places, tests)
    raise typer.Exit(0 if passed else 1)


def _packages() -> list[dict[str, Any]]:
    """Version of every package, or None and the command that installs it. Imports none of them."""
    rows: list[dict[str, Any]] = [
        {"package": "python", "for": "everything", "version": platform.python_version(), "note": "", "install": None}
    ]
    for name, (purpose, command) in PACKAGES.items():
        version = _version(name)
        note = _mamba_note() if name == "mamba-ssm" and version else ""
        install = None if version else command
        rows.append({"package": name, "for": purpose, "version": version, "note": note, "install": install})
    return rows


def _version(name: str) -> str | None:
    """A package that is there without its metadata counts, its version being unknown."""
    from importlib import metadata  # half as slow as all of `--help`

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown" if importlib.util.find_spec(name.replace("-", "_")) else None


def _mamba_note() -> str:
    return "full" if importlib.util.find_spec("selective_scan_cuda") else "Python sources only, which is enough"


def _device(name: str) -> dict[str, Any]:
    """A device's facts, the backend that trains on it, and why every other cannot or does not."""
    import torch

    facts: dict[str, Any] = {"device": name, "name": platform.processor() or platform.machine()}
    if name == "cpu":
        facts["cores"] = usable_cores()
    else:
        properties = torch.cuda.get_device_properties(name)
        facts |= {
            "name": properties.name,
            "memory_gib": properties.total_memory / GIB,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    facts["backend"] = choose(name)
    facts["others"] = {each: missing(each, name) for each in BACKENDS if each != facts["backend"]}
    return facts


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _print(packages: list[dict[str, Any]], places: list[dict[str, Any]], tests: list[dict[str, Any]]) -> None:
    print_rows([{key: row[key] for key in ("package", "version", "for", "note")} for row in packages], "Installed")
    for row in packages:
        if row["install"]:
            say(f"{row['package']} ({row['for']}): {row['install']}")
    for place in places:
        console.print()
        _print_device(place)
    console.print()
    shown = [
        {
            "backend": test["backend"],
            "device": test["device"],
            "dtype": test["dtype"],
            "loss error": test["loss_error"] and f"{test['loss_error']:.1e}",
            "gradient error": test["gradient_error"] and f"{test['gradient_error']:.1e}",
            "seconds": round(test["seconds"], 1),
            "verdict": "pass" if test["passed"] else "fail",
            "why": test["why"],
        }
        for test in tests
    ]
    print_rows(shown, "Self-test", "Relative to float64 PyTorch on the CPU; the worst member, the worst parameter.")


def _print_device(place: dict[str, Any]) -> None:
    """One line for what trains there, one for each that does not."""
    about = [place["name"]]
    if "cores" in place:
        about.append(f"cores that this process may use: {place['cores']}, a lane each")
    if "capability" in place:
        about.append(f"{place['memory_gib']:.0f} GiB, compute capability {place['capability']}")
        about.append(f"driver {place['driver'] or 'unknown'}, torch's CUDA {place['cuda']}")
    lines = [f"{place['device']} ({'; '.join(about)}): trains with {place['backend']}"]
    for name, reason in place["others"].items():
        lines.append(f"  not {name}: {reason or 'it can, but comes later in the order'}")
    say(*lines)


def register(app: typer.Typer) -> None:
    app.command()(doctor)

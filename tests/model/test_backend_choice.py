"""Which backend is taken on which machine, and what a user is told of the others."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
import torch

from mup_tune.errors import UserError
from mup_tune.model import backends, ssd_mamba
from mup_tune.model.falcon_h1 import SCANS

EVERYTHING = {"triton", "einops", "packaging", "mamba_ssm"}


def machine(
    monkeypatch: pytest.MonkeyPatch,
    packages: set[str],
    capability: tuple[int, int] | None = (9, 0),
    scan_error: str = "",
) -> None:
    """A machine with these packages and a GPU of this capability, or none."""

    def chunk_scan() -> None:
        if scan_error:
            raise UserError(scan_error)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(ssd_mamba, "chunk_scan", chunk_scan)


def test_with_everything_our_kernels_come_first_on_a_gpu_and_pytorch_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, EVERYTHING)
    assert [backends.missing(name, "cuda:1") for name in backends.BACKENDS] == [None, None, None]
    assert (backends.choose("cuda"), backends.choose("cpu")) == ("triton", "torch")
    assert all("needs an NVIDIA GPU" in str(backends.missing(name, "cpu")) for name in ("triton", "mamba-ssm"))


@pytest.mark.parametrize(
    ("name", "packages", "capability", "scan_error", "reason"),
    [
        ("triton", set(), (9, 0), "", 'triton is not installed: pip install "mup-tune[gpu]"'),
        ("triton", EVERYTHING, None, "", "torch sees no GPU"),
        ("triton", EVERYTHING, (7, 5), "", "compute capability is 7.5, its kernels need 8.0"),
        ("mamba-ssm", {"triton", "packaging"}, (9, 0), "", 'einops is not installed: pip install "mup-tune[gpu]"'),
        (
            "mamba-ssm",
            EVERYTHING - {"mamba_ssm"},
            (9, 0),
            "",
            "mamba-ssm is not installed: " + backends.INSTALL_MAMBA_SSM,
        ),
        ("mamba-ssm", EVERYTHING, (9, 0), "its scan cannot be imported: why", "cannot be imported: why"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    packages: set[str],
    capability: tuple[int, int] | None,
    scan_error: str,
    reason: str,
) -> None:
    machine(monkeypatch, packages, capability, scan_error)
    assert reason in str(backends.missing(name, "cuda"))
    assert backends.missing("torch", "cuda") is None
    assert backends.choose("cuda") == ("triton" if name == "mamba-ssm" else "torch")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown backend 'mamba'; did you mean 'mamba-ssm'"):
        backends.missing("mamba", "cpu")


def test_names_and_the_extra_are_those_that_exist() -> None:
    assert set(backends.BACKENDS) == {"triton", *SCANS}
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "mup-tune[gpu]" in backends.INSTALL_GPU
    assert all(any(need.startswith(package) for need in extras["gpu"]) for package in ("triton", "einops"))

"""What benchmarks of one GPU say of it and of a side, as plain values and as lines of text."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch
from gpu_floor import Machine
from gpu_rounds import Cell, Device, Side

PACKAGES = ("torch", "triton", "transformers", "mamba-ssm", "causal-conv1d")


def described(device: Device, machine: Machine) -> dict[str, Any]:
    """The device, what it was measured to do, and the versions of what ran on it."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "no metadata"

    return {
        "device": torch.cuda.get_device_name() if device.is_cuda else "CPU",
        "versions": {name: version(name) for name in PACKAGES},
        "matmul_flops": machine.flops,
        "copy_bytes_per_s": machine.bandwidth,
    }


def machine_words(about: dict[str, Any]) -> str:
    """:func:`described` in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['device']}; {versions}\n"
        f"bf16 matmul {about['matmul_flops'] / 1e12:.0f} TFLOP/s, copy {about['copy_bytes_per_s'] / 1e12:.2f} TB/s"
    )


def measured(each: Cell, side: Side, machine: Machine) -> dict[str, Any]:
    """A side that was timed. MFU is by the machine's bf16 products, the spread relative to the median."""
    speed = each.speed(side)
    return {
        "seconds": side.seconds,
        "step_s": side.step_s,
        "tokens_per_s": speed,
        "mfu": speed * each.shape.flops_per_token(each.seq_len) / machine.flops,
        "spread": (max(side.seconds) - min(side.seconds)) / side.step_s,
        "peak_bytes": side.peak_bytes,
        "reserved_bytes": side.reserved_bytes,
        "loss": side.loss,
    }


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one width as lines: columns to the right, the last one as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(text.rjust(width) for text, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]

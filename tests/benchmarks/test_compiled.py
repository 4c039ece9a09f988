"""Kernels compile for sm_90 without the fault of ptxas that the interpreter cannot see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "compiled.py"


# The scan's kernels are those that ptxas got wrong, with other pipelines than they have.
@pytest.mark.parametrize(
    ("shape", "rows", "seq_len"),
    [("gpu-8k-256", "1", "128"), pytest.param("cpu-32", "1", "100", marks=pytest.mark.slow)],
    ids=["even", "padded"],
)
def test_the_scan_reads_its_own_shared_memory(shape: str, rows: str, seq_len: str) -> None:
    # A process of its own: this one's kernels are the interpreter's.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--shape", shape, "--rows", rows, "--seq-len", seq_len, "--only", "outputs|groups|heads"]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["_outputs_kernel", "_groups_kernel", "_heads_kernel"]
    assert all(line.endswith("none") for line in lines)


def test_an_address_of_a_register_that_is_not_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    from machine_code import wrong_addresses

    zero = ["UMOV UR4, URZ", "UIADD3.X UR15, UR4, -0x7fffffe0, URZ, UP0, !UPT"]
    assert wrong_addresses(zero) == []
    assert wrong_addresses(["UIADD3.X UR15, URZ, -0x7fffffe0, URZ, UP0, !UPT"]) == []
    assert wrong_addresses([*zero[:1], "ULEA UR4, UR11, UR7, 0x18", zero[1]]) == zero[1:]

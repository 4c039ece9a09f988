"""Kernels compile for sm_90 without the fault of ptxas that the interpreter cannot see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "compiled.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: this one's kernels are the interpreter's."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARK), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


# The scan's kernels are those that ptxas got wrong, with other pipelines than they have.
@pytest.mark.parametrize(
    ("shape", "rows", "seq_len"), [("gpu-8k-256", "1", "128"), ("cpu-32", "1", "100")], ids=["even", "padded"]
)
def test_the_scan_reads_its_own_shared_memory(shape: str, rows: str, seq_len: str) -> None:
    scan = "outputs|groups|heads"
    done = run("--shape", shape, "--rows", rows, "--seq-len", seq_len, "--only", scan)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["_outputs_kernel", "_groups_kernel", "_heads_kernel"]
    assert all(line.endswith("none") for line in lines)


def test_an_address_of_a_register_that_is_not_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from compiled import wrong_addresses
right = ["UMOV UR4, URZ", "UIADD3 UR5, UP0, UR10, 0x40, URZ", "UIADD3.X UR15, UR4, -0x7fffffe0, URZ, UP0, !UPT"]
print(len(wrong_addresses(right)))
print(*wrong_addresses(["ULEA UR7, UR11, UR4, 0x18", *right[1:], right[2].replace("UR4", "UR7")]), sep="; ")
"""
    command = [sys.executable, "-c", code, str(BENCHMARK.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    right, wrong = done.stdout.splitlines()
    assert right == "0"
    assert re.fullmatch(r".*UR4, -0x7.*; .*UR7, -0x7.*", wrong)

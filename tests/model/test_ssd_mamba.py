"""mamba-ssm's scan with members folded into heads and groups equals the float64 torch scan."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from random_models import TINY
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model import ssd, ssd_mamba
from mup_tune.model.falcon_h1 import Population

NAMES = ("x", "dt", "A", "B", "C", "D")


def inputs(P: int, rows: int, T: int, H: int, K: int, G: int, N: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    dt, A = F.softplus(normal(P, rows, T, H) - 2), -(1.5 * normal(P, H)).exp()
    return [normal(P, rows, T, H, K), dt, A, normal(P, rows, T, G, N), normal(P, rows, T, G, N), normal(P, H)]


def packed(rows: int, T: int, starts: list[int]) -> Tensor:
    """Documents start at these tokens of every other row; the rows between are one document each."""
    cut = torch.bucketize(torch.arange(T), torch.tensor(starts), right=True).repeat(rows, 1)
    cut[1::2] = 0
    return cut


def assert_equal_scans(
    exact: list[Tensor], documents: Tensor | None, chunk: int, device: str, dtype: torch.dtype, bound: float
) -> None:
    """Norm-wise relative errors of output and of every member's gradients, against the float64 torch scan.

    It reads the same rounded numbers, so that only the arithmetic differs.
    """
    low = (dtype, torch.float32, torch.float32, dtype, dtype, torch.float32)
    ours = [t.to(device, d).requires_grad_() for t, d in zip(exact, low, strict=True)]
    theirs = [t.detach().cpu().double().requires_grad_() for t in ours]
    y = ssd_mamba.ssd(*ours, None if documents is None else documents.to(device), chunk)
    expected = ssd.ssd(*theirs, documents, ssd.CHUNK)
    assert y.dtype == torch.float32
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(upstream.to(device, torch.float32))
    expected.backward(upstream)
    pairs = [("y", y, expected), *((n, a.grad, b.grad) for n, a, b in zip(NAMES, ours, theirs, strict=True))]
    for name, mine, other in pairs:
        for member in range(len(mine)):
            error = (mine[member].detach().cpu().double() - other[member]).norm() / other[member].norm()
            assert error < bound, f"{name} of member {member}: {float(error):.2e}"


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """mamba-ssm on the CPU: its CUDA calls do nothing, and kernels take their first configuration untried."""
    pytest.importorskip("triton")
    pytest.importorskip("einops")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1")
    try:
        ssd_mamba.chunk_scan()
    except UserError as error:
        pytest.skip(str(error))
    from triton.runtime.autotuner import Autotuner

    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=8, major=9)
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("mamba_ssm.ops.triton"):
            for kernel in vars(module).values():
                if isinstance(kernel, Autotuner):
                    monkeypatch.setattr(kernel, "configs", kernel.configs[:1])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("sizes", "starts"),
    [
        ({"P": 1, "rows": 1, "T": 20, "H": 1, "K": 5, "G": 1, "N": 6}, None),
        ({"P": 2, "rows": 1, "T": 37, "H": 4, "K": 5, "G": 2, "N": 6}, [3, 16, 21]),
    ],
    ids=["one_document", "packed"],
)
def test_outputs_and_gradients_equal_the_float64_torch_scan(sizes: dict[str, int], starts: list[int] | None) -> None:
    documents = None if starts is None else packed(sizes["rows"], sizes["T"], starts)
    assert_equal_scans(inputs(**sizes), documents, 16, "cpu", torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("whole_rows", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"P": 3, "rows": 2, "T": 517, "H": 4, "K": 64, "G": 1, "N": 64},
        {"P": 2, "rows": 2, "T": 301, "H": 4, "K": 32, "G": 2, "N": 128},
        {"P": 1, "rows": 3, "T": 64, "H": 2, "K": 24, "G": 1, "N": 40},
    ],
)
def test_compiled_scans_equal_the_float64_torch_scan(
    sizes: dict[str, int], whole_rows: bool, dtype: torch.dtype, bound: float
) -> None:
    try:
        ssd_mamba.chunk_scan()
    except UserError as error:
        pytest.skip(str(error))
    documents = None if whole_rows else packed(sizes["rows"], sizes["T"], [3, 256, 300])
    assert_equal_scans(inputs(**sizes), documents, ssd_mamba.CHUNK, "cuda", dtype, bound)


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own: what is imported stays imported. ``path`` shadows what is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(Path(__file__).parents[2])])}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)


SOURCES = "mamba_ssm/ops/triton/ssd_combined.py"


def package(folder: Path, source: str) -> Path:
    """A ``mamba_ssm`` whose own import fails, as without its CUDA extension."""
    (folder / SOURCES).parent.mkdir(parents=True)
    for part in ("mamba_ssm/ops", "mamba_ssm/ops/triton"):
        (folder / part / "__init__.py").write_text("")
    (folder / "mamba_ssm" / "__init__.py").write_text("import selective_scan_cuda")
    (folder / SOURCES).write_text(source)
    return folder


def test_sources_alone_are_enough(tmp_path: Path) -> None:
    package(tmp_path, "def mamba_chunk_scan_combined(): return 'the scan'")
    script = """
import importlib.util, sys
from mup_tune.model.ssd_mamba import chunk_scan
assert chunk_scan()() == 'the scan'
assert importlib.util.find_spec('mamba_ssm').origin == sys.modules['mamba_ssm'].__file__
"""
    run(script, tmp_path)


def test_an_import_that_fails_says_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    package(tmp_path, "from triton.language import no_such_thing")
    script = """
import sys
from mup_tune.errors import UserError
from mup_tune.model.ssd_mamba import chunk_scan
for attempt in range(2):
    try:
        chunk_scan()
    except UserError as error:
        print(error)
assert 'mamba_ssm' not in sys.modules
"""
    said = run(script, tmp_path).stdout.splitlines()
    assert len(said) == 2
    assert all("mamba-ssm's scan cannot be imported: " in line and "Error: " in line for line in said)


def test_without_mamba_ssm_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_mamba.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mamba-ssm is not installed\. `mup-tune doctor`"):
        ssd_mamba.chunk_scan.__wrapped__()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        ssd_mamba.ssd(*inputs(1, 1, 4, 1, 2, 1, 2), None, 16)


def test_a_population_knows_its_scan() -> None:
    assert Population(TINY, 1).scan == "torch"
    assert Population(TINY, 1, scan="mamba-ssm").scan == "mamba-ssm"
    with pytest.raises(ValueError, match="unknown scan 'mamba'; did you mean 'mamba-ssm'"):
        Population(TINY, 1, scan="mamba")

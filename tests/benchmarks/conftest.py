"""Benchmarks of a GPU on the CPU: their modules, a small Shape, and steps that PyTorch takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mup_tune.shape import Shape
from mup_tune.train.fused_step import FusedStep
from mup_tune.train.torch_step import TorchStep
from mup_tune.trial import Budget

TINY = """
{d_model: 16, n_layers: 1, n_heads: 2, n_kv_heads: 1, head_dim: 8, d_ssm: 16, ssm_head_dim: 8, d_state: 4, d_ff: 16,
 vocab_size: 40}
"""
MODULES = ("floor", "profile", "replayed", "rounds", "rows", "sides", "small")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which lie beside each other and in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        names = {"gpu": "gpu", **{name: f"gpu_{name}" for name in MODULES}}
        yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Shape's file."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def in_pytorch(shape: Shape, members: int, rows: int, seq_len: int, **options: object) -> TorchStep:
    """The same step in PyTorch, called as ours is."""
    inspect.signature(FusedStep).bind(shape, members, rows, seq_len, **options)
    tokens = rows * seq_len
    budget = Budget(
        seq_len=seq_len, batch_tokens=tokens, total_tokens=tokens, warmup_tokens=0, decay_tokens=0, val_tokens=tokens
    )
    return TorchStep(shape, members, budget, "cpu", "torch")


@pytest.fixture
def on_the_cpu(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side in PyTorch, and what a baseline changes in ``transformers`` put back afterwards."""
    falcon = importlib.import_module(scripts.sides.FALCON)
    for name in scripts.sides.KERNELS:
        monkeypatch.setattr(falcon, name, getattr(falcon, name))
    monkeypatch.setattr(scripts.sides, "FusedStep", in_pytorch)

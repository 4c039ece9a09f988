from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: the halves of the tests share the cores
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels then run on the CPU; Triton reads it when they are defined
    import triton_interpreter  # noqa: F401

settings.register_profile("repo", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("repo")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True)
def subnormal_floats() -> Iterator[None]:
    """A lane built in a test flushes the process' subnormals, and hypothesis refuses to work without."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _gpu_memory_back() -> Iterator[None]:
    """What a test took of a GPU is free again: other processes test on the same one."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def hangups_heard() -> Iterator[None]:
    """SIGHUP does what it does without nohup, whose ignoring a test run inherits."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)

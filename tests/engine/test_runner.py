"""What a lane does with its data: packs of a mixture repeat bitwise, and data not the run's is refused."""

from __future__ import annotations

import gc
import mmap
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mup_tune.data.mixture import Data, open_mixture
from mup_tune.data.prepare import prepare
from mup_tune.engine.runner import TrainingRunner
from mup_tune.engine.work import Calibrate, Calibration, OutOfMemoryError, Progress
from mup_tune.errors import UserError
from mup_tune.settings import untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.train import step
from mup_tune.train.device import out_of_memory
from mup_tune.train.torch_step import TorchStep
from mup_tune.trial import Budget, Pack, PackResult, Trial

SHAPE = load_shape("cpu-32")
BUDGET = Budget(
    seq_len=16, batch_tokens=64, total_tokens=64 * 10, warmup_tokens=0, decay_tokens=128, val_tokens=16 * 10
)
TRIALS = tuple(Trial(shape=SHAPE, budget=BUDGET, settings=untuned(SHAPE), seed=seed) for seed in (0, 1))


@pytest.fixture(autouse=True)
def nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def corpus(folder: Path, name: str, word: str) -> Path:
    source = folder / f"source-{name}"
    source.mkdir()
    for index in range(30):
        (source / f"{index}.txt").write_text(f"{word} {index} " * (3 + index % 7))
    prepare([source], folder / name, tokenizer="bytes", val_fraction=0.3)
    return folder / name


def trained(make_runner: TrainingRunner) -> PackResult:
    result = make_runner("lane-0")(Pack.of("stage", TRIALS), lambda _: None)
    assert isinstance(result, PackResult)
    return result


def test_packs_of_a_mixture_repeat_bitwise_in_every_lane(tmp_path: Path) -> None:
    data = tuple(
        Data(corpus=str(corpus(tmp_path, name, word)), weight=weight)
        for name, word, weight in (("prose", "once", 0.7), ("code", "return", 0.3))
    )
    make_runner = TrainingRunner(data, open_mixture(data).hash)
    first, second = trained(make_runner), trained(pickle.loads(pickle.dumps(make_runner)))
    assert [row.loss for row in first.rows] == [row.loss for row in second.rows]
    assert first.curves == second.curves
    assert {"loss.prose", "loss.code"} <= first.rows[0].metrics.keys()
    heard: list[Progress] = []
    measured = make_runner("lane-1")(Calibrate(TRIALS[0], (1, 2)), heard.append)
    assert isinstance(measured, Calibration)
    assert heard == [Progress("lane-1", "", 0.0, 0.0, 1), Progress("lane-1", "", 0.5, 0.0, 2)]


def test_a_lane_refuses_data_that_is_not_the_runs(tmp_path: Path) -> None:
    data = (Data(corpus=str(corpus(tmp_path, "prose", "once"))),)
    expected = open_mixture(data).hash
    (tmp_path / "prose").rename(tmp_path / "older")
    (tmp_path / "again").mkdir()
    corpus(tmp_path / "again", "prose", "twice").rename(tmp_path / "prose")
    with pytest.raises(UserError, match=rf"prose \[\w+\] hashes to \w+, not to {expected}.*shared file system"):
        TrainingRunner(data, expected)("lane-0")


@pytest.mark.parametrize(
    "message",
    [
        "Triton Error [CUDA]: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
        "DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_a_device_whose_memory_runs_out_is_one_size_too_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """Calibration holds one population at a time and stops at the first too large; a pack is to be split."""
    data = (Data(corpus=str(corpus(tmp_path, "prose", "once"))),)
    built: list[weakref.ref[TorchStep]] = []

    class Small(TorchStep):
        def __init__(self, shape: Shape, members: int, *rest: Any) -> None:
            gc.collect()
            assert all(ref() is None for ref in built)
            super().__init__(shape, members, *rest)
            built.append(weakref.ref(self))

        def step(self, *batch: Any) -> None:
            if len(self.alive_P) > 2:
                raise RuntimeError(message)
            super().step(*batch)

    monkeypatch.setattr(step, "TorchStep", Small)
    run = TrainingRunner(data, open_mixture(data).hash)("lane-0")
    found = run(Calibrate(TRIALS[0], (1, 2, 4, 8)), lambda _: None)
    assert isinstance(found, Calibration)
    assert list(found.tokens_per_s) == [1, 2]
    assert len(built) == 3
    with pytest.raises(OutOfMemoryError, match=message.split()[0]):
        run(Pack.of("stage", TRIALS + TRIALS), lambda _: None)


def test_memory_that_runs_out_on_a_cpu_is_told_as_on_a_gpu() -> None:
    """By the errors of those who ask for it: torch, NumPy, Python, and the map of a file."""
    ways: list[Callable[[], object]] = [
        lambda: torch.empty(2**50),
        lambda: np.empty(2**58),
        lambda: bytearray(2**60),
        lambda: mmap.mmap(-1, 2**60),
    ]
    for ask in ways:
        with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
            ask()
        assert out_of_memory(caught.value), caught.value


def test_other_errors_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (Data(corpus=str(corpus(tmp_path, "prose", "once"))),)

    def broken(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(TorchStep, "step", broken)
    run = TrainingRunner(data, open_mixture(data).hash)("lane-0")
    for work in (Calibrate(TRIALS[0], (1, 2)), Pack.of("stage", TRIALS)):
        with pytest.raises(RuntimeError, match="illegal"):
            run(work, lambda _: None)

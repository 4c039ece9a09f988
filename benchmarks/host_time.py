"""What training costs beyond the replays of its CUDA graph: the time that a step waits for the host.

    python benchmarks/host_time.py
    python benchmarks/host_time.py --cases small --rounds 9

``training`` is ``PackTraining.train`` on a prepared corpus, from batches on disk to losses on the host;
``replays`` is the same number of launches of its graph and nothing else. The two run in turn, and figures are
medians. ``host`` is the processor time of the thread that trains, its waits included where they spin. Only
what older versions have too is called, so that the file can be copied into one of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from mup_tune.data.corpus import Corpus
from mup_tune.data.indexed import PairWriter, token_dtype
from mup_tune.data.mixture import Mixture
from mup_tune.data.prepare import prepare
from mup_tune.settings import untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.train.device import Device
from mup_tune.train.step import Steps
from mup_tune.train.trainer import PackTraining
from mup_tune.trial import Budget, Trial

DOCUMENTS = 2000


class Case(NamedTuple):
    """``steps``: of a round; about a second of replays or more on an H100."""

    shape: str
    rows: int
    seq_len: int
    members: int
    steps: int


CASES = {
    "small": Case("cpu-32", 2, 128, 64, 3000),
    "medium": Case("cpu-128", 4, 256, 64, 600),
    "large": Case("gpu-8k-256", 8, 256, 37, 160),
}


def corpus_of(folder: Path, vocab_size: int, seq_len: int) -> Corpus:
    """Random documents, four a row on average; ids follow Zipf's law, and the last one ends a document."""
    generator = np.random.default_rng(0)
    frequency = 1 / (np.arange(vocab_size - 1) + 2.7)
    with PairWriter(folder / "tokens", token_dtype(vocab_size)) as writer:
        for length in generator.integers(seq_len // 8, 3 * seq_len // 8, DOCUMENTS):
            ids = generator.choice(vocab_size - 1, length, p=frequency / frequency.sum())
            writer.add(np.append(ids, vocab_size - 1))
    return prepare(
        [folder / "tokens.idx"], folder / "corpus", None, 0.1, eod=str(vocab_size - 1), vocab_size=vocab_size
    )


def trials_of(case: Case, shape: Shape, dtype: str) -> tuple[Trial, ...]:
    """Small rates, so that random tokens let every member live."""
    batch = case.rows * case.seq_len
    total = case.steps * batch
    budget = Budget(
        seq_len=case.seq_len,
        batch_tokens=batch,
        total_tokens=total,
        warmup_tokens=0,
        decay_tokens=total // 5 // batch * batch,
        val_tokens=case.seq_len,
        dtype=dtype,
    )
    settings = untuned(shape).scaled({"elr": 0.1})
    return tuple(Trial(shape=shape, budget=budget, settings=settings, seed=seed) for seed in range(case.members))


def measured(case: Case, data: Mixture, trials: tuple[Trial, ...], device: Device, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds``: tokens/s of both sides, and host µs a step of training."""
    steps = Steps(device.name)
    train_s, replay_s, host_s = [], [], []
    for index in range(rounds + 1):  # the first is not counted: it compiles
        training = PackTraining(trials, data, device, steps)
        torch.cuda.synchronize()
        host, started = time.thread_time(), time.perf_counter()
        training.train(lambda done, speed: None)
        taken, busy = time.perf_counter() - started, time.thread_time() - host
        if not training.stepper.alive_P.all():
            raise RuntimeError("a member diverged: its steps do less than others'")
        replays = replayed(training.stepper._graph.replay, case.steps)  # type: ignore[attr-defined]
        if index:
            train_s.append(taken)
            host_s.append(busy)
            replay_s.append(replays)
    tokens = case.steps * case.rows * case.seq_len * case.members
    return {
        "case": f"{case.shape} × P={case.members}, {case.rows}×{case.seq_len}",
        "training_ktokens_s": tokens / median(train_s) / 1e3,
        "replays_ktokens_s": tokens / median(replay_s) / 1e3,
        "training_over_replays": median(replay / train for replay, train in zip(replay_s, train_s, strict=True)),
        "training_ms_a_step": 1e3 * median(train_s) / case.steps,
        "replay_ms_a_step": 1e3 * median(replay_s) / case.steps,
        "host_us_a_step": 1e6 * median(host_s) / case.steps,
    }


def replayed(replay: Callable[[], None], count: int) -> float:
    """Seconds of so many replays, one after another."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        replay()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a lane
    print(torch.cuda.get_device_name(), flush=True)
    device = Device("cuda", 1, {options.dtype: 1e15})
    for name in options.cases:
        case = CASES[name]
        shape = load_shape(case.shape)
        with tempfile.TemporaryDirectory() as folder:
            data = Mixture.of(corpus_of(Path(folder), shape.vocab_size, case.seq_len))
            found = measured(case, data, trials_of(case, shape, options.dtype), device, options.rounds)
        print(json.dumps({key: round(each, 4) if isinstance(each, float) else each for key, each in found.items()}))


if __name__ == "__main__":
    main()

"""A sweep's lanes on this machine's cores against ``transformers`` in its best layout there.

    python benchmarks/cpu.py --rounds 3

Ours: a process a core, of one thread, with the population that its calibration picks. ``transformers``: one
process of all threads, or a process a core; the faster one counts. Sides run in turn, all in fp32 on equal
batches. A row's threads are asserted, and an MFU above 1 fails the benchmark.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from gpu_sides import Batches, on_host, transformers_model

from mup_tune.cores import usable_cores
from mup_tune.engine.packing import population_size
from mup_tune.engine.ray import LANE_ENV
from mup_tune.engine.work import Calibration
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape
from mup_tune.train.device import measure_device
from mup_tune.train.torch_step import TorchStep
from mup_tune.trial import Budget

# d_model, layers, ids, tokens of a row, rows; the goal is members' tokens/s over those of transformers.
CASES = {"d64": (64, 2, 264, 128, 4, 2.0), "d128": (128, 4, 264, 256, 8, 1.2), "d256": (256, 4, 4096, 256, 4, 1.2)}
SIZES = (1, 2, 4, 8, 16)
CHUNKS = (16, 32, 64, 128, 256)  # of the SSD scan


def shape_of(d_model: int, n_layers: int, vocab_size: int) -> Shape:
    """Channels 2:1:4, as in the shipped CPU family."""
    return Shape(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=d_model // 16,
        n_kv_heads=max(1, d_model // 32),
        head_dim=8,
        d_ssm=d_model,
        ssm_head_dim=8 if d_model < 128 else 16,
        n_groups=1,
        d_state=16,
        d_ff=2 * d_model,
        vocab_size=vocab_size,
    )


def ours(shape: Shape, seq_len: int, rows: int) -> tuple[Callable[[], None], int]:
    """A step of the population that is fastest here, and its members."""
    batch = rows * seq_len
    budget = Budget(
        seq_len=seq_len, batch_tokens=batch, total_tokens=batch, warmup_tokens=0, decay_tokens=0, val_tokens=seq_len
    )
    torch.set_flush_denormal(True)
    batches = on_host([Batches(shape.vocab_size, rows, seq_len, seed).draw() for seed in range(4)])

    def stepper(members: int) -> Callable[[], None]:
        step = TorchStep(shape, members, budget, "cpu", "torch")
        step.load([role_table(shape, untuned(shape))] * members, list(range(members)))
        turn = itertools.cycle(batches)

        def fed() -> None:
            step.feed([next(turn)], [(0.1, 1.0)])
            step.step()

        return fed

    speeds = {members: members * batch / timed(stepper(members), 3) for members in SIZES}
    members = population_size(Calibration(speeds, "cpu"), 10**6, 1)
    return stepper(members), members


def theirs(shape: Shape, seq_len: int, rows: int) -> tuple[Callable[[], None], int]:
    """A step of ``transformers`` with PyTorch's fused AdamW and clipping, at its fastest chunk size."""
    model = transformers_model(shape, seq_len, "cpu").float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = [Batches(shape.vocab_size, rows, seq_len, seed).draw().tokens_BT for seed in range(4)]
    turn = iter(range(10**9))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        tokens_BT = batches[next(turn) % len(batches)]
        model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    mixers = [module for module in model.modules() if hasattr(module, "chunk_size")]

    def chunked(size: int) -> None:
        for mixer in mixers:
            mixer.chunk_size = size

    def seconds(size: int) -> float:
        chunked(size)
        return timed(step, 3)

    chunked(min(CHUNKS, key=seconds))  # the config's 256 is for GPUs, and costs it half its speed here or more
    return step, 1


def timed(step: Callable[[], None], steps: int) -> float:
    """Median seconds of a step, after one that is not counted."""
    taken = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def work(case: str, side: str, threads: int, seconds: float) -> None:
    """One process of a side: says it is ready, waits for a line, trains, says what it did."""
    torch.set_num_threads(threads)
    d_model, n_layers, vocab_size, seq_len, rows, _ = CASES[case]
    shape = shape_of(d_model, n_layers, vocab_size)
    step, members = (ours if side == "ours" else theirs)(shape, seq_len, rows)
    peak = measure_device("cpu").peak_flops["float32"]
    timed(step, 2)
    print("ready", flush=True)
    sys.stdin.readline()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        done += 1
    speed = done * members * rows * seq_len / (time.perf_counter() - started)
    mfu = speed * shape.flops_per_token(seq_len) / peak
    assert torch.get_num_threads() == threads
    assert mfu <= 1, f"MFU {mfu:.2f}: the peak or the count is wrong"
    print(json.dumps({"tokens_per_s": speed, "members": members, "mfu": mfu}), flush=True)


def together(case: str, side: str, processes: int, threads: int, seconds: float) -> dict[str, Any]:
    """Tokens/s of all processes of a side, which train at the same time."""
    command = [sys.executable, __file__, "--work", case, side, str(threads), str(seconds)]
    environment = {**os.environ, **(LANE_ENV if side == "ours" else {}), "OMP_NUM_THREADS": str(threads)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    workers = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    for worker in workers:
        assert worker.stdout
        while worker.stdout.readline().strip() != "ready":
            assert worker.poll() is None, f"{side} ended before it was ready"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    told = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    speed = sum(each["tokens_per_s"] for each in told)
    return {"tokens_per_s": speed, "members": told[0]["members"], "mfu": median(each["mfu"] for each in told)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--work", nargs=4, metavar=("CASE", "SIDE", "THREADS", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], args.work[1], int(args.work[2]), float(args.work[3]))
        return
    cores = usable_cores()
    sides = {"ours": ("ours", cores, 1), "one process": ("theirs", 1, cores), "a process a core": ("theirs", cores, 1)}
    for case in args.cases.split(","):
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, (side, processes, threads) in sides.items():
                found = together(case, side, processes, threads, args.seconds)
                speeds[name].append(found["tokens_per_s"])
                told = f"{processes} × {threads} threads, {found['members']} members, MFU {found['mfu']:.2f}"
                print(f"{case} {name}: {found['tokens_per_s']:,.0f} tokens/s ({told})", flush=True)
        middle = {name: median(found) for name, found in speeds.items()}
        best = max(middle["one process"], middle["a process a core"])
        print(f"{case}: {middle['ours'] / best:.2f} × transformers; the goal is {CASES[case][-1]:g} ×", flush=True)


if __name__ == "__main__":
    main()

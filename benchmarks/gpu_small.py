"""How much faster than ``transformers``, one trial at a time, does a population of SMALL proxies train?

    python benchmarks/gpu_small.py --json small.json                      # all sizes
    python benchmarks/gpu_small.py --sizes cpu-32 --members 1 37 128

Users tune such proxies one trial after another, and a GPU waits for the host nearly all the time then. So
there are two baselines. ``transformers`` is what a training script does: bf16 autocast, fused AdamW,
clipping, kernel by kernel. ``transformers, replayed`` is the same model and update in the fastest of many
ways without the host: CUDA graphs of the whole step, torch.compile, products in bf16 or TF32, mamba-ssm's
kernels or PyTorch's, several chunks of the scan (``gpu_replayed``). Notes say which won. "ours" is one CUDA
graph, with products in bf16 or in fp32, the latter without TF32.

Tokens/s are over all members. Sides of one size are timed in turn, and a row is the median of its rounds. MFU
is by the bf16 matrix product measured first, for fp32 too. Before the table, a process a size compiles
everything once (``--no-ahead`` skips that), so that compilers run side by side; its timings are thrown away.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_floor import Machine
from gpu_replayed import Fastest, Recipe, Replayed
from gpu_rounds import BASELINE, GRAPHED, Cell, Device, Side, run_cell
from gpu_rows import aligned, described, machine_words, measured
from gpu_sides import Baseline, Batches, Fused, PlainBaseline, kernels_importable

from mup_tune.shape import load_shape

# Rows and tokens of a row.
SIZES = {"cpu-32": (2, 128), "cpu-64": (4, 256), "cpu-128": (4, 256), "gpu-8k-256": (8, 256)}
REPLAYED, FP32 = "transformers, replayed", f"{GRAPHED}, fp32"
ROTATING = 4  # batches
COLUMNS = ("size", "tokens", "side", "P", "k tokens/s", "×1", "×2", "MFU", "ms/step", "spread", "GiB", "note")
AHEAD_SHARE = 0.35  # of the budget, at most
ROUND_S = 8.0  # one round of a size: what recipes leave to the later rounds


def cell(size: str, args: argparse.Namespace, device: Device, until: float) -> tuple[Cell, Fastest]:
    """The sides of a size, quick ones first, and what looks for the strongest baseline."""
    shape, (rows, seq_len) = load_shape(size), SIZES.get(size, (args.rows, args.seq_len))
    source = Batches(shape.vocab_size, rows, seq_len)
    batches = [source.draw().to(device.name) for _ in range(ROTATING)]

    def ours(name: str, members: int, dtype: torch.dtype) -> Side:
        return Side(
            name, members, lambda: Fused(shape, members, batches, device.name, graph=device.is_cuda, dtype=dtype)
        )

    def replayed(recipe: Recipe) -> Replayed:
        return Replayed(shape, batches, device.name, recipe)

    kernels = args.kernels and device.is_cuda and kernels_importable()
    fastest = Fastest(replayed, device, seq_len, kernels=kernels, until=until - ROUND_S * (args.rounds - 1))
    plain = Baseline if kernels else PlainBaseline
    sides: list[Side] = [Side(BASELINE, 1, lambda: plain(shape, batches, device.name))]
    for name, dtype in ((GRAPHED, torch.bfloat16), (FP32, torch.float32)):
        sides += [ours(name, members, dtype) for members in sorted(set(args.members))]
    sides.append(Side(REPLAYED, 1, fastest))  # type: ignore[arg-type]
    return Cell(size, shape, rows * seq_len, seq_len, sides), fastest


def run(size: str, args: argparse.Namespace, device: Device, until: float) -> tuple[Cell, Fastest]:
    each, fastest = cell(size, args, device, until)
    run_cell(each, device, args.rounds, until)
    if fastest.tried:
        each.sides[-1].peak_bytes, each.sides[-1].reserved_bytes = fastest.fastest.peaks
    fastest.drop()
    return each, fastest


def numbers(each: Cell, fastest: Fastest, machine: Machine) -> dict[str, Any]:
    """A size as plain values, and every side's speed over both baselines; None where those are not."""
    bases = {side.name: each.speed(side) for side in each.timed() if side.name in (BASELINE, REPLAYED)}
    rows = []
    for side in each.sides:
        row: dict[str, Any] = {"side": side.name, "members": side.members}
        row["note"] = "; ".join([*filter(None, [side.note]), *side.remarks])
        if side.seconds:
            speed = each.speed(side)
            row |= measured(each, side, machine)
            row |= {
                key: speed / bases[name] if name in bases else None
                for key, name in (("over_baseline", BASELINE), ("over_replayed", REPLAYED))
            }
        rows.append(row)
    return {
        "size": each.size,
        "rows": each.tokens // each.seq_len,
        "seq_len": each.seq_len,
        "sides": rows,
        "tried": [
            {
                "recipe": str(tried.recipe),
                "seconds": tried.seconds if math.isfinite(tried.seconds) else None,
                "error": tried.error,
            }
            for tried in fastest.tried
        ],
    }


def table(cells: list[dict[str, Any]]) -> str:
    rows = [list(COLUMNS)]
    for each in cells:
        for side in each["sides"]:
            values = [""] * 7
            if "seconds" in side:
                ratios = (side["over_baseline"], side["over_replayed"])
                values = [
                    f"{side['tokens_per_s'] / 1e3:,.0f}",
                    *(f"{ratio:.2f}" if ratio else "" for ratio in ratios),
                    f"{side['mfu']:.2%}",
                    f"{1e3 * side['step_s']:.3f}",
                    f"{side['spread']:.1%}",
                    f"{side['peak_bytes'] / 2**30:.2f}",
                ]
            batch = f"{each['rows']} × {each['seq_len']}"
            rows.append([each["size"], batch, side["side"], f"{side['members']}", *values, side["note"]])
    return "\n".join(aligned(rows))


def compile_ahead(args: argparse.Namespace) -> None:
    """Every size once in a process of its own, for the kernels that it leaves in the compilers' caches."""
    seconds = AHEAD_SHARE * args.seconds
    until = time.perf_counter() + seconds
    threads = max(1, (os.cpu_count() or 1) // len(args.sizes))
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    command = [sys.executable, __file__, "--only-compile", "--seconds", f"{seconds}", "--rounds", "1"]
    command += [
        "--kernels" if args.kernels else "--no-kernels",
        "--rows",
        f"{args.rows}",
        "--seq-len",
        f"{args.seq_len}",
        "--members",
        *map(str, args.members),
    ]
    started = {
        size: subprocess.Popen(
            [*command, "--sizes", size], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        for size in args.sizes
    }
    for size, process in started.items():
        try:
            status = f"exit code {process.wait(max(0.0, until - time.perf_counter()))}"
        except subprocess.TimeoutExpired:
            status = "not finished"
            process.terminate()
            process.wait()
        taken = seconds - (until - time.perf_counter())
        print(f"{size} compiled ahead: {status}, {taken:.0f} s", file=sys.stderr, flush=True)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="of these, or names of Shapes")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 37, 64, 128], metavar="P")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, default=350.0, help="budget; recipes and rounds are dropped to keep it"
    )
    parser.add_argument("--ahead", action=argparse.BooleanOptionalAction, default=True, help="compile side by side")
    parser.add_argument(
        "--kernels", action=argparse.BooleanOptionalAction, default=True, help="those of mamba-ssm for transformers"
    )
    parser.add_argument("--rows", type=int, default=4, help="of Shapes that the table does not know")
    parser.add_argument("--seq-len", type=int, default=256, help="of Shapes that the table does not know")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only-compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: to test the benchmark
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    until = time.perf_counter() + args.seconds
    device = Device(args.device)
    if args.only_compile:
        for size in args.sizes:
            run(size, args, device, until)
        return
    if args.ahead and device.is_cuda:
        compile_ahead(args)
    machine = device.machine()
    device.empty()
    about = described(device, machine) | {"rounds": args.rounds}
    print(f"{machine_words(about)}\n×1 over {BASELINE}, ×2 over {REPLAYED}", flush=True)
    found = []
    for index, size in enumerate(args.sizes):
        now = time.perf_counter()
        each, fastest = run(size, args, device, now + max(0.0, until - now) / (len(args.sizes) - index))
        found.append(numbers(each, fastest, machine))
        print(f"{size}: {time.perf_counter() - now:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(about | {"cells": found}, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()

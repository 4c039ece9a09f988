"""How fast do populations train on this GPU, and how far is that from what it can do? One command, one table.

    python benchmarks/gpu.py --json gpu.json                      # all proxies against transformers
    python benchmarks/gpu.py --sizes S --slice 60                 # and train S at the best P for a minute
    python benchmarks/gpu.py --profile S 16 16384                 # one step kernel by kernel

Tokens/s are over all members of a side. Sides of one size and batch are timed in turn, round after round; a
row is the median of its rounds. Times are wall time of many steps that were queued without waiting. MFU is
model FLOPs (``Shape.flops_per_token``: attention over whole rows) by the bf16 matrix product measured first.
A side's first round runs alone on the device; its peak memory is from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from gpu_floor import Machine, floor, operations
from gpu_profile import floor_table, profile_table, profiled
from gpu_rounds import BASELINE, EAGER, GRAPHED, Cell, Device, Side, run_cell, seconds_a_step
from gpu_rows import aligned, described, machine_words, measured
from gpu_sides import DOCUMENTS_A_ROW, ETA_FACTOR, Batches, Fused, baseline

from mup_tune.shape import load_shape

SIZES = {"S": "gpu-256", "M": "gpu-512", "L": "gpu-1024"}
ROTATING = 4  # batches
TRIALS, TRIAL_TOKENS = 400, 200_000_000
AHEAD = 4  # steps that a slice queues before it waits
COLUMNS = (
    "size", "tokens", "side", "P", "tokens/s", "÷base", "MFU", "ms/step",
    "floor", "gap", "kernels", "GiB", "spread", "note",
)  # fmt: skip


def cell(size: str, tokens: int, args: argparse.Namespace) -> Cell:
    shape = load_shape(SIZES.get(size, size))
    source = Batches(shape.vocab_size, tokens // args.seq_len, args.seq_len)
    batches = [source.draw().to(args.device) for _ in range(ROTATING)]

    def ours(name: str, members: int, *, graph: bool) -> Side:
        return Side(name, members, lambda: Fused(shape, members, batches, args.device, graph=graph))

    sides = [Side(BASELINE, 1, lambda: baseline(shape, batches, args.device))] if args.baseline else []
    sides.append(ours(EAGER, 1, graph=False))
    if args.device != "cpu":
        sides += [ours(GRAPHED, members, graph=True) for members in sorted({1, *args.members})]
    return Cell(size, shape, tokens, args.seq_len, sides)


def numbers(each: Cell, machine: Machine) -> dict[str, Any]:
    """A cell's results as plain values, and the ratios that the table is for; None where a side is not."""
    needed = operations(each.shape, each.tokens, each.seq_len)
    speeds = {(side.name, side.members): each.speed(side) for side in each.timed()}
    base = speeds.get((BASELINE, 1))
    rows = []
    for side in each.sides:
        least = floor(needed, machine, side.members)
        row = {
            "side": side.name,
            "members": side.members,
            "floor_s": least.total,
            "floor_parts_s": least.parts,
            "floor_kernels_s": least.kernels,
            "note": "; ".join([*filter(None, [side.note]), *side.remarks]),
        }
        if side.seconds:
            row |= measured(each, side, machine) | {
                "over_baseline": each.speed(side) / base if base else None,
                "gap": side.step_s / least.total,
            }
        rows.append(row)
    best, single = each.best(), speeds.get((GRAPHED, 1))
    found: dict[str, Any] = {"size": each.size, "shape": each.shape.name, "tokens": each.tokens, "sides": rows}
    if best is not None:
        speed = each.speed(best)
        found |= {
            "best_members": best.members,
            "best_tokens_per_s": speed,
            "best_over_single_graph": speed / single if single else None,
            "best_over_baseline": speed / base if base else None,
            "hours": TRIALS * TRIAL_TOKENS / speed / 3600,
        }
    if base:
        found["baseline_hours"] = TRIALS * TRIAL_TOKENS / base / 3600
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """All sides of all cells, and under them what each cell says."""
    rows = [list(COLUMNS)]
    for each in cells:
        for side in each["sides"]:
            values = [""] * 9
            if "seconds" in side:
                ratio = side["over_baseline"]
                values = [
                    f"{side['tokens_per_s']:,.0f}",
                    f"{ratio:.2f}" if ratio else "",
                    f"{side['mfu']:.1%}",
                    f"{1e3 * side['step_s']:.2f}",
                    f"{1e3 * side['floor_s']:.2f}",
                    f"{side['gap']:.2f}",
                    f"{1e3 * side['floor_kernels_s']:.2f}",
                    f"{side['peak_bytes'] / 2**30:.1f}",
                    f"{side['spread']:.1%}",
                ]
            rows.append([each["size"], f"{each['tokens']}", side["side"], f"{side['members']}", *values, side["note"]])
    return "\n".join([*aligned(rows), *(_said(each) for each in cells if "best_members" in each)])


def _said(each: dict[str, Any]) -> str:
    said = f"{each['size']} at {each['tokens']}: best P = {each['best_members']}"
    if each["best_over_single_graph"]:
        said += f", {each['best_over_single_graph']:.2f}× graphed P = 1"
    if each["best_over_baseline"]:
        said += f", {each['best_over_baseline']:.2f}× {BASELINE}"
    said += f"; {TRIALS} trials × {TRIAL_TOKENS / 1e6:.0f} M tokens take {each['hours']:.1f} h"
    return said + (f" against {each['baseline_hours']:.1f} h" if "baseline_hours" in each else "")


def sustained(each: Cell, members: int, seconds: float, device: Device) -> dict[str, Any]:
    """Train ``members`` for ``seconds``, every step on a batch of its own that comes from the CPU."""
    rows = each.tokens // each.seq_len
    source = Batches(each.shape.vocab_size, rows, each.seq_len, seed=1)
    graph = device.is_cuda
    training = Fused(each.shape, members, [source.draw()], device.name, graph=graph)
    training.train(source.draw(), 0.0)
    first, steps, queued = training.loss(), 0, deque[torch.cuda.Event]()
    device.wait()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        training.train(source.draw(), ETA_FACTOR)
        steps += 1
        if graph:
            queued.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            queued[-1].record()
            if len(queued) > AHEAD:
                queued.popleft().synchronize()
    device.wait()
    taken = time.perf_counter() - started
    return {
        "size": each.size,
        "tokens": each.tokens,
        "members": members,
        "steps": steps,
        "seconds": taken,
        "tokens_per_s": steps * members * each.tokens / taken,
        "first_loss": first,
        "last_loss": training.loss(),
    }


def profile(size: str, members: int, tokens: int, args: argparse.Namespace, device: Device, machine: Machine) -> None:
    shape = load_shape(SIZES.get(size, size))
    source = Batches(shape.vocab_size, tokens // args.seq_len, args.seq_len)
    batches = [source.draw().to(args.device) for _ in range(ROTATING)]
    step_s = seconds_a_step(Fused(shape, members, batches, args.device, graph=True).step, device)
    device.empty()
    eager = Fused(shape, members, batches, args.device, graph=False)
    for _ in range(3):
        eager.step()
    print(f"{size}, P = {members}, {tokens} tokens a member step; an eager step's kernels")
    print(profile_table(profiled(eager.step), step_s))
    print(floor_table(operations(shape, tokens, args.seq_len), machine, members))


def header(about: dict[str, Any]) -> str:
    return (
        f"{machine_words(about)}; rows of {about['seq_len']}; {ROTATING} batches in turn, tokens by "
        f"Zipf's law, {DOCUMENTS_A_ROW} documents a row on average (transformers: one, it does not reset)\n"
        "floor: ms, longest of arithmetic and traffic of each part (layers, head, optimizer); gap: ms/step ÷ floor; "
        "kernels: ms, the same kernel by kernel"
    )


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="S, M, L, or names of Shapes")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="P")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536], help="a member and step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="budget of the table; rounds are dropped to keep it"
    )
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--profile", nargs=3, metavar=("SIZE", "P", "TOKENS"), help="one step by kernels; no table")
    parser.add_argument("--slice", type=float, metavar="SECONDS", help="then train the first size at its best P")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: to test the benchmark
    args = parser.parse_args(arguments)
    wrong = [tokens for tokens in args.tokens if tokens % args.seq_len]
    if wrong:
        parser.error(f"--tokens {wrong[0]} is no whole number of rows of {args.seq_len}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    device = Device(args.device)
    machine = device.machine()
    device.empty()
    if args.profile:
        size, members, tokens = args.profile
        profile(size, int(members), int(tokens), args, device, machine)
        return
    about = described(device, machine) | {"seq_len": args.seq_len, "rounds": args.rounds}
    print(header(about), flush=True)
    cells, found = [(size, tokens) for size in args.sizes for tokens in args.tokens], []
    done: list[Cell] = []
    if args.baseline:  # mamba-ssm's kernels tune themselves at their first step, for a minute or two
        shape = load_shape(SIZES.get(args.sizes[0], args.sizes[0]))
        baseline(shape, [Batches(shape.vocab_size, 1, args.seq_len).draw().to(args.device)], args.device)
        device.empty()
    until = time.perf_counter() + args.seconds - (args.slice or 0.0)
    for index, (size, tokens) in enumerate(cells):
        now = time.perf_counter()
        each = cell(size, tokens, args)
        run_cell(each, device, args.rounds, now + max(0.0, until - now) / (len(cells) - index))
        done.append(each)
        found.append(numbers(each, machine))
        print(f"{size} at {tokens}: {time.perf_counter() - now:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(about | {"cells": found}, indent=1))
    print(table(found))
    if args.slice:
        about["slice"] = _slice(done, args, device)
    if args.json:
        args.json.write_text(json.dumps(about | {"cells": found}, indent=1))


def _slice(done: list[Cell], args: argparse.Namespace, device: Device) -> dict[str, Any]:
    """The check of the table: the first size at its fastest batch and P, against the table's number."""
    name = GRAPHED if device.is_cuda else EAGER
    sides = [(each, side) for each in done if each.size == args.sizes[0] for side in each.timed(name)]
    if not sides:
        raise SystemExit(f"no slice: nothing of {args.sizes[0]} ran")
    each, side = max(sides, key=lambda pair: pair[0].speed(pair[1]))
    found = sustained(each, side.members, args.slice, device)
    found["over_table"] = found["tokens_per_s"] / each.speed(side)
    print(
        f"{found['size']} at {found['tokens']}, P = {found['members']}, {found['seconds']:.0f} s without a break: "
        f"{found['tokens_per_s']:,.0f} tokens/s, {found['over_table']:.3f} of the table's; "
        f"loss {found['first_loss']:.3f} → {found['last_loss']:.3f} in {found['steps']} steps"
    )
    return found


if __name__ == "__main__":
    main()

"""Is training in bfloat16 within seed noise of float32, and does it prefer the same rate? Trials in both.

    python benchmarks/bf16_noise.py --shape cpu-32 --rows 2 --seq-len 128 --seeds 128 --members 64
    python benchmarks/bf16_noise.py --shape gpu-256 --corpus corpus --tokens 2000000 --seeds 4

The text is Python's standard library as bytes, or a prepared corpus of no more ids than the Shape has. Both
dtypes draw the same init for a seed and read the same batches, so that losses are paired by seed. A line an
ELR gives the mean difference with its 95 % CI, and beside it how far seeds lie apart. A line a pair of
neighbouring ELRs says by how much bfloat16 changes what that step is worth. A search depends on the latter
alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mup_tune.data.mixture import Mixture
from mup_tune.data.stdlib import DEFAULT_CORPUS, open_corpus
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.stats.losses import Losses, usable
from mup_tune.stats.noise import Interval, paired_gain
from mup_tune.train.device import Device, measure_device
from mup_tune.train.step import Steps
from mup_tune.train.trainer import train_pack
from mup_tune.trial import Budget, Pack, Trial

DTYPES = ("bfloat16", "float32")


def budget(args: argparse.Namespace, dtype: str) -> Budget:
    batch = args.rows * args.seq_len
    steps = args.tokens // batch
    return Budget(
        seq_len=args.seq_len,
        batch_tokens=batch,
        total_tokens=steps * batch,
        warmup_tokens=steps // 10 * batch,
        decay_tokens=steps * 3 // 10 * batch,
        val_tokens=max(1, args.val_tokens // args.seq_len) * args.seq_len,
        dtype=dtype,
    )


def trained(args: argparse.Namespace, dtype: str, data: Mixture, device: Device) -> list[Losses]:
    """Validation losses of every ELR by seed, ``--members`` seeds side by side."""
    shape, length, steps = load_shape(args.shape), budget(args, dtype), Steps(device.name)
    found: list[Losses] = []
    for elr in args.elr:
        settings, losses = untuned(shape).scaled({"elr": elr}), dict[int, float | None]()
        for first in range(0, args.seeds, args.members):
            seeds = range(first, min(first + args.members, args.seeds))
            trials = tuple(Trial(shape=shape, budget=length, settings=settings, seed=seed) for seed in seeds)
            result = train_pack(Pack.of("bf16", trials), data, device, lambda *_: None, steps)
            losses |= {row.trial.seed: row.loss if row.ok else None for row in result.rows}
            said = f"{result.record['backend']}, {result.record['tokens_per_s']:,.0f} tokens/s"
            print(f"{dtype}, ELR × {elr:g}, {len(seeds)} seeds: {said}", flush=True)
        found.append(losses)
    return found


def compared(work: Losses, exact: Losses) -> dict[str, Any]:
    """bfloat16 − float32 in nats/token; members that diverged are counted, and then nothing is compared."""
    lost = [sum(loss is None for loss in losses.values()) for losses in (work, exact)]
    found: dict[str, Any] = {"losses": [work, exact], "diverged": lost}
    difference, low, high = paired_gain(exact, work), usable(work), usable(exact)
    if difference is not None and low is not None and high is not None:
        found |= {
            "difference": asdict(difference),
            "sd_difference": stdev(low[seed] - high[seed] for seed in high),
            "mean": fmean(high.values()),
            "sd_seeds": stdev(high.values()),
        }
    return found


def steps_worth(work: Sequence[Losses], exact: Sequence[Losses]) -> list[Interval | None]:
    """What every ELR gains over the one before it in bfloat16, minus the same in float32; nats/token."""
    found = []
    for (work_0, work_1), (exact_0, exact_1) in zip(pairwise(work), pairwise(exact), strict=True):
        points = [usable(losses) for losses in (work_0, work_1, exact_0, exact_1)]
        w0, w1, e0, e1 = points
        if w0 is None or w1 is None or e0 is None or e1 is None:
            found.append(None)
            continue
        errors = [{seed: one[seed] - other[seed] for seed in one} for one, other in ((w0, e0), (w1, e1))]
        found.append(paired_gain(errors[1], errors[0]))
    return found


def interval(each: dict[str, Any]) -> str:
    return f"{each['value']:+.5f} (95 % CI {each['low']:+.5f} … {each['high']:+.5f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=DEFAULT_CORPUS, help="a folder; without, Python's standard library")
    parser.add_argument("--shape", default="gpu-256", help="a shipped Shape or a YAML file")
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of a member")
    parser.add_argument("--val-tokens", type=int, default=262_144)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--members", type=int, default=64, metavar="P", help="seeds that train side by side")
    parser.add_argument("--elr", type=float, nargs="+", default=[4.0], help="times untuned's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: to test the benchmark
    args = parser.parse_args(arguments)
    data, device = Mixture.of(open_corpus(args.corpus)), measure_device(args.device)
    work, exact = (trained(args, dtype, data, device) for dtype in DTYPES)
    points = [compared(*pair) for pair in zip(work, exact, strict=True)]
    worth = steps_worth(work, exact)
    print(f"{args.shape}, {args.tokens:,} tokens, {args.seeds} seeds; bfloat16 − float32, nats/token")
    for elr, point in zip(args.elr, points, strict=True):
        said = f"not compared, {point['diverged']} diverged"
        if "difference" in point:
            said = (
                f"{interval(point['difference'])}, SD {point['sd_difference']:.5f}; "
                f"float32 {point['mean']:.5f}, SD over seeds {point['sd_seeds']:.5f}"
            )
        print(f"ELR × {elr:g}: {said}")
    for (one, other), change in zip(pairwise(args.elr), worth, strict=True):
        said = "not compared" if change is None else interval(asdict(change))
        print(f"worth of ELR × {one:g} → × {other:g}, bfloat16's minus float32's: {said}")
    if args.json:
        steps = [None if each is None else asdict(each) for each in worth]
        about = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"options": about, "points": points, "steps": steps}, indent=1))


if __name__ == "__main__":
    main()

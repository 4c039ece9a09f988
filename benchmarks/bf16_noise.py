"""Is training in bfloat16 within seed noise of float32? The same trials in both, on real text.

    python benchmarks/bf16_noise.py --corpus corpus --shape gpu-256 --tokens 2000000 --seeds 4

Members differ in their seed alone. The difference of the two dtypes is paired by seed; beside it stands how
far seeds lie apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, stdev

from mup_tune.data.corpus import Corpus
from mup_tune.data.mixture import Mixture
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.train.device import measure_device
from mup_tune.train.step import Steps
from mup_tune.train.trainer import train_pack
from mup_tune.trial import Budget, Pack, Trial

ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--shape", default="gpu-256")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--elr", type=float, default=4.0, help="times untuned's")
    args = parser.parse_args()
    shape, data, device = load_shape(args.shape), Mixture.of(Corpus.open(args.corpus)), measure_device("cuda")
    batch = ROWS * args.seq_len
    steps = args.tokens // batch
    losses: dict[str, list[float]] = {}
    for dtype in ("bfloat16", "float32"):
        budget = Budget(
            seq_len=args.seq_len,
            batch_tokens=batch,
            total_tokens=steps * batch,
            warmup_tokens=steps // 10 * batch,
            decay_tokens=steps * 3 // 10 * batch,
            val_tokens=16 * batch,
            dtype=dtype,
        )
        settings = untuned(shape).scaled({"elr": args.elr})
        trials = tuple(Trial(shape=shape, budget=budget, settings=settings, seed=seed) for seed in range(args.seeds))
        result = train_pack(Pack.of("bf16", trials), data, device, lambda *_: None, Steps("cuda"))
        losses[dtype] = [row.loss for row in result.rows]
        speed, backend = result.record["tokens_per_s"], result.record["backend"]
        print(f"{dtype:9s} {backend} {speed:12,.0f} tokens/s", *(f"{loss:.4f}" for loss in losses[dtype]), flush=True)
    differences = [low - high for low, high in zip(losses["bfloat16"], losses["float32"], strict=True)]
    print(
        f"bfloat16 − float32, nats/token: mean {fmean(differences):+.5f}, SD {stdev(differences):.5f}; "
        f"SD over seeds in float32 {stdev(losses['float32']):.5f}"
    )


if __name__ == "__main__":
    main()

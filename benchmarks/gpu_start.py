"""Where the first seconds of a GPU lane go: imports, the context, compiling, recording, drawing, stepping.

    python benchmarks/gpu_start.py --shape cpu-32 --seq-len 128 --batch-tokens 128 --sizes 1 8 64

Run it twice. The first run compiles every kernel, the second finds them in Triton's cache
(``TRITON_CACHE_DIR``, else ``~/.triton/cache``). Times are wall seconds of one process, a lane's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

STARTED = time.perf_counter()
STEPS = 4


@contextmanager
def timed(what: str, found: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    found[what] = round(time.perf_counter() - started, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="cpu-32", help="a shipped Shape or a YAML file")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--one-by-one", action="store_true", help="compile each kernel at its first launch")
    options = parser.parse_args()

    found: dict[str, float] = {}
    with timed("import torch", found):
        import torch
    with timed("import mup_tune", found):
        from mup_tune.data.batches import Batch
        from mup_tune.roles import role_table
        from mup_tune.settings import untuned
        from mup_tune.shape import load_shape
        from mup_tune.train import fused_step
        from mup_tune.train.device import measure_device
    with timed("context", found):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    with timed("measure_device", found):
        measure_device("cuda")
    print(json.dumps(found), flush=True)

    if options.one_by_one:
        fused_step.compile_ahead = lambda launches: None
    shape = load_shape(options.shape)
    rows = options.batch_tokens // options.seq_len
    tokens_BT = torch.randint(0, shape.vocab_size, (rows, options.seq_len))
    batch = Batch(tokens_BT.numpy(), tokens_BT.numpy(), tokens_BT.int().zero_().numpy())
    tables = [role_table(shape, untuned(shape))]
    for members in options.sizes:
        row: dict[str, float] = {"members": members}
        with timed("record", row):
            dtype = getattr(torch, options.dtype)
            step = fused_step.FusedStep(shape, members, rows, options.seq_len, "cuda", dtype)
            torch.cuda.synchronize()
        with timed("load", row):
            step.load(tables * members, [0] * members)
            torch.cuda.synchronize()
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            step.feed([batch], [(1.0, 1.0)])
            step.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        row["step_ms"] = round(1e3 * sorted(times)[len(times) // 2], 3)
        with timed("nll", row), torch.no_grad():
            step.nll(tokens_BT.cuda(), tokens_BT.cuda())
            torch.cuda.synchronize()
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        print(json.dumps(row), flush=True)
        del step
    print(f"{time.perf_counter() - STARTED:.1f} s in all")


if __name__ == "__main__":
    main()

"""Does a population pay on this GPU? Tokens/s of whole training steps by its size: eager, CUDA-graphed, compiled.

    python benchmarks/gpu_probe.py --shape gpu-256 --members 1 4 16

fp32, random tokens, rows of one document, schedule factors fixed. The sides of a size are timed in turn; medians.
`--profile` adds where an eager step's GPU time goes.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.init import draw_
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.train.optimizer import MemberAdamW, rates

STEPS, WARM = 5, 3


class Training:
    """A population with its optimizer and one batch that stays on the device."""

    def __init__(self, shape: Shape, members: int, rows: int, seq_len: int) -> None:
        tables = [role_table(shape, untuned(shape))] * members
        self.population = Population(shape, members, device="cuda")
        self.population.set_roles(tables)
        for member in range(members):
            for name, tensor in hf.state_dict(self.population, member).items():
                draw_(tensor, tables[member].of(name), seed=member, parameter=name)
        parameters = dict(self.population.named_parameters())
        self.optimizer = MemberAdamW(parameters, rates(parameters, tables, hf.owning_role), (0.9, 0.95), 1.0)
        self.tokens = torch.randint(shape.vocab_size, (rows, seq_len), device="cuda")
        self.alive_P = torch.ones(members, dtype=torch.bool, device="cuda")
        self.nll: Callable[[Tensor, Tensor], Tensor] = self.population.nll
        self.per_step = members * self.tokens.numel()

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss_P = self.nll(self.tokens, self.tokens.roll(-1, 1)).sum(1) / self.tokens.numel()
        loss_P.sum().backward()
        norm_P = self.optimizer.gradient_norms()
        self.optimizer.step(0.1, 1.0, norm_P, self.alive_P)


def speed(step: Callable[[], None], per_step: int) -> float:
    """Tokens/s over all members, median of a few steps."""
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return per_step / median(times)


def graphed(training: Training) -> Callable[[], None]:
    """The whole step, optimizer included, as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            training.step()
    torch.cuda.current_stream().wait_stream(side)
    training.optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
    return graph.replay


def measured(name: str, training: Training, make: Callable[[Training], Callable[[], None]], flops: float) -> float:
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    try:
        step = make(training)
        for _ in range(WARM):
            step()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"  {name:10s} failed: {type(error).__name__}: {str(error).splitlines()[0][:140]}", flush=True)
        return 0.0
    ready = time.perf_counter() - started
    found = speed(step, training.per_step)
    memory = torch.cuda.max_memory_allocated() / 2**30
    ms, tflops = 1e3 * training.per_step / found, found * flops / 1e12
    print(
        f"  {name:10s} {found:12,.0f} tokens/s {ms:9.1f} ms/step {tflops:6.1f} TFLOP/s {memory:6.1f} GiB, "
        f"ready in {ready:.0f} s",
        flush=True,
    )
    return found


def profiled(training: Training) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        training.step()
        torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="gpu-256")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16_384, help="a member and step")
    parser.add_argument("--compile", type=int, nargs="*", default=[], metavar="P", help="sizes to compile as well")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    shape = load_shape(args.shape)
    flops = shape.flops_per_token(args.seq_len)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for dtype in (torch.bfloat16, torch.float32):
        x, y = a.to(dtype), b.to(dtype)
        rates_ = [speed(lambda x=x, y=y: x @ y, 2 * 8192**3) for _ in range(2)]  # type: ignore[misc]
        print(f"matmul peak {dtype}: {max(rates_) / 1e12:.0f} TFLOP/s")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {shape.name}, {args.tokens:,} tokens a member step"
    )
    for members in args.members:
        print(f"P = {members}")
        training = Training(shape, members, args.tokens // args.seq_len, args.seq_len)
        measured("eager", training, lambda each: each.step, flops)
        if args.profile:
            profiled(training)
        measured("graphed", training, graphed, flops)
        if members in args.compile:
            training.nll = torch.compile(training.population.nll, dynamic=False)
            measured("compiled", training, lambda each: each.step, flops)
            measured("both", training, graphed, flops)
        del training
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""The strongest thing that a user can do for one small model of ``transformers``: no host between kernels.

A step of a small model is hundreds of kernels of a few microseconds, and launching one takes longer. A
CUDA graph takes the host out, and torch.compile fuses kernels. Which of them wins, and with whose kernels,
depends on the size. So all are tried, and the fastest one counts.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_rounds import Device, failure, seconds_a_step
from gpu_sides import Batch, Changed, autograd_nodes, in_pytorch, kernels_apart, path_taken, transformers_model
from torch import Tensor, nn

from mup_tune.shape import Shape

CHUNKS = (16, 32, 64, 128, 256)  # tokens of the scan's chunks
COMPILED_CHUNKS = 2  # the fastest ones in a graph of the eager model
WARM_UP = 3  # steps before recording: kernels compile and tune themselves, the optimizer makes its state
# Rows are whole. A mapping keeps transformers from making masks, and attention then takes its causal kernel.
NO_MASKS = {"full_attention": None, "linear_attention": None}
EAGER, COMPILED, REDUCED = "eager, one CUDA graph", "compiled, one CUDA graph", "compiled, reduce-overhead"


@dataclass(frozen=True)
class Recipe:
    """How a step is made.

    Attributes:
        way: ``EAGER`` and ``COMPILED`` record the whole step, ``REDUCED`` leaves the graphs to torch.compile.
        kernels: mamba-ssm's; else the scan is transformers' PyTorch code.
        chunk: tokens of the scan's chunks.
        autocast: to bf16; else products take TF32, and no kernel is spent on casts.
    """

    way: str
    kernels: bool
    chunk: int
    autocast: bool = True

    def __str__(self) -> str:
        scan, products = "mamba-ssm" if self.kernels else "PyTorch", "bf16" if self.autocast else "TF32"
        return f"{self.way}, {products}, {scan} scan in chunks of {self.chunk}"


class Replayed:
    """One trial through ``transformers`` without the host in its way: parameters in fp32, AdamW, clipping.

    On a CPU, where only the benchmark itself is tested, nothing is recorded and the step runs as it is.
    """

    def __init__(self, shape: Shape, batches: Sequence[Batch], device: str, recipe: Recipe) -> None:
        self.recipe, self._path = recipe, ""
        self._device = device.partition(":")[0]
        self.model: nn.Module = transformers_model(shape, batches[0].tokens_BT.shape[1], device).train()
        self._code: Changed | nullcontext[None] = nullcontext()
        if not recipe.kernels:
            self._code = in_pytorch()
        elif recipe.way == COMPILED:
            self._code = kernels_apart()
        for module in self.model.modules():
            if hasattr(module, "chunk_size"):
                module.chunk_size = recipe.chunk
        self._parameters = list(self.model.parameters())
        self._batches: Iterator[Batch] = itertools.cycle(batches)
        self._tokens_BT = batches[0].tokens_BT.clone()
        is_cuda = device != "cpu"
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=torch.tensor(1e-3, device=device) if is_cuda else 1e-3,  # a graph reads a schedule's rates
            betas=(0.9, 0.95),
            weight_decay=0.1,
            capturable=is_cuda,
            # torch.compile fuses the plain step into its own graph, and cannot look into the fused one.
            **({"foreach": True} if recipe.way == REDUCED else {"fused": True}),
        )
        mode = "reduce-overhead" if recipe.way == REDUCED else None
        compiled: Callable[[Any], Any] = partial(torch.compile, dynamic=False, mode=mode)
        self._loss_of = self._forward if recipe.way == EAGER else compiled(self._forward)
        self._apply = compiled(self._update_weights) if recipe.way == REDUCED else self._update_weights
        self._graph: torch.cuda.CUDAGraph | None = None
        with self._code, tf32_products():
            if is_cuda and recipe.way != REDUCED:
                self._graph = self._recorded()
            else:
                for _ in range(WARM_UP):
                    self._loss = self._update()

    def step(self) -> None:
        self._tokens_BT.copy_(next(self._batches).tokens_BT)
        if self._graph is not None:
            self._graph.replay()  # type: ignore[no-untyped-call]
        else:
            with self._code, tf32_products():
                self._loss = self._update()

    def loss(self) -> float:
        return float(self._loss)

    @property
    def remarks(self) -> list[str]:
        return [str(self.recipe), *filter(None, [self._path])]

    def _forward(self, tokens_BT: Tensor) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self.recipe.autocast):
            found = self.model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False, attention_mask=NO_MASKS)
        loss: Tensor = found.loss
        return loss

    def _update(self) -> Tensor:
        if self.recipe.way == REDUCED:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)  # recorded so, a backward pass writes and does not add
        loss = self._loss_of(self._tokens_BT)
        if self.recipe.way == EAGER:
            self._path = self._path or path_taken(autograd_nodes(loss))
        loss.backward()
        self._apply()
        return loss.detach()

    def _update_weights(self) -> None:
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._update()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self._loss = self._update()
        return graph


@contextmanager
def tf32_products() -> Iterator[None]:
    """What autocast leaves in fp32 may use tensor cores; afterwards it is as before, for our fp32 sides."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Tried:
    """A recipe, and a step's seconds or why there are none. ``peaks``: its bytes allocated and reserved."""

    recipe: Recipe
    seconds: float = math.inf
    peaks: tuple[int, int] = (0, 0)
    error: str = ""

    def __str__(self) -> str:
        return f"{self.recipe}: {self.error or f'{1e3 * self.seconds:.3f} ms'}"


class Fastest:
    """Builds all recipes, keeps the fastest one and hands it out; :meth:`drop` lets go of it.

    Chunks are tried in graphs of the eager model, which are recorded in a second. Only the fastest chunks are
    compiled. After ``until`` (``perf_counter``) no further recipe is begun once one has been timed.

    Args:
        build: the side that a recipe describes.
        kernels: also with mamba-ssm's.
    """

    def __init__(
        self, build: Callable[[Recipe], Replayed], device: Device, seq_len: int, *, kernels: bool, until: float
    ) -> None:
        self._build, self._device, self._seq_len = build, device, seq_len
        self._kernels, self._until = kernels, until
        self._best: Replayed | None = None
        self.tried: list[Tried] = []

    def __call__(self) -> Replayed:
        # Beyond the usual 8 versions of one function torch.compile would leave models as they are.
        with torch._dynamo.config.patch(recompile_limit=64):
            for recipe in self._recipes() if self._best is None else ():
                if time.perf_counter() < self._until or self._best is None:
                    self._try(recipe)
        if self._best is None:
            raise RuntimeError("; ".join(dict.fromkeys(each.error for each in self.tried)))
        return self._best

    @property
    def fastest(self) -> Tried:
        return min(self.tried, key=lambda each: each.seconds)

    def drop(self) -> None:
        self._best = None
        torch._dynamo.reset()

    def _recipes(self) -> Iterator[Recipe]:
        whole = min(CHUNKS[-1], self._seq_len)
        chunks = [chunk for chunk in CHUNKS if chunk <= whole]
        if self._device.is_cuda:
            yield from (Recipe(EAGER, False, chunk) for chunk in chunks)
            chunks = [each.recipe.chunk for each in sorted(self.tried, key=lambda each: each.seconds)]
        yield Recipe(COMPILED, False, chunks[0])
        yield Recipe(COMPILED, False, chunks[0], autocast=False)
        if self._kernels:
            yield Recipe(EAGER, True, whole)
            yield Recipe(COMPILED, True, whole)
        yield from (Recipe(COMPILED, False, chunk) for chunk in chunks[1:COMPILED_CHUNKS])
        yield Recipe(REDUCED, False, chunks[0])

    def _try(self, recipe: Recipe) -> None:
        started, tried, least = (
            time.perf_counter(),
            Tried(recipe),
            min((e.seconds for e in self.tried), default=math.inf),
        )
        self.tried.append(tried)
        self._device.empty()
        held = self._device.held()
        try:
            side = self._build(recipe)
            tried.seconds = seconds_a_step(side.step, self._device)
            tried.peaks = tuple(peak - before for peak, before in zip(self._device.peaks(), held, strict=True))
            if tried.seconds < least:
                self._best = side
        except Exception as error:
            traceback.print_exc()
            tried.error = failure(error)
        print(f"  {tried} (after {time.perf_counter() - started:.0f} s)", file=sys.stderr, flush=True)

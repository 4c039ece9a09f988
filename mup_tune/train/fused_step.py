"""One training step of a population on the GPU, recorded once as a CUDA graph and replayed.

Multipliers, rotary frequencies, rates, schedule factors and batches are tensors that the graph reads, so that
one recording serves every trial of a Shape, population size and batch: nothing is compiled or recorded when
they change. The graph takes its batch from those of several steps that lie on the device, and counts steps
itself: all that a step costs the host is the launch of a graph.

Shape suffixes: P members, B rows, T tokens of a row, S steps, W numbers of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mup_tune.data.batches import Batch
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.fused import BACKEND, FusedPopulation
from mup_tune.model.kernels import batch
from mup_tune.model.kernels.ahead import compile_ahead
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.fed import fed_steps
from mup_tune.train.flat_adamw import FlatAdamW
from mup_tune.train.population import initialise

WARM_UP = 2  # steps before recording: kernels are compiled and libraries set up outside the graph


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class FusedStep:
    """A :class:`~mup_tune.train.step.TrainingStep` in kernels; :meth:`load` makes it another pack's.

    Args:
        rows, seq_len: B and T of every batch.
        dtype: of matrix products, bfloat16 or float32.
        graph: record the step as a CUDA graph; without, its kernels are launched one by one.
    """

    backend = BACKEND

    def __init__(
        self,
        shape: Shape,
        members: int,
        rows: int,
        seq_len: int,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        clip_norm: float = 1.0,
        graph: bool = True,
    ) -> None:
        self.population = Population(shape, members, device=device)
        with torch.no_grad():
            for parameter in self.population.parameters():
                parameter.zero_()
        self.fused = FusedPopulation(self.population, dtype)
        self.optimizer = FlatAdamW(self.fused.storage, betas, clip_norm)
        self.betas, self.steps = betas, 0

        def held(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        most = fed_steps(rows, seq_len)
        self._fed_SW = held(most, batch.width(rows * seq_len), dtype=torch.int32)
        self._cursor = held(2, dtype=torch.int32)
        self._left = 0  # steps of those that were fed
        self._tokens_BT, self._targets_BT = (held(rows, seq_len, dtype=torch.int64) for _ in range(2))
        self._documents_BT = held(rows, seq_len, dtype=torch.int32)
        self._factors = held(batch.FACTORS)
        self.trace_4SP, self.loss_P = held(4, most, members), held(members)
        self.alive_P = held(members, dtype=torch.bool)
        self._graph = _recorded(self._run) if graph else None

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        """Another pack: init, rates, multipliers and rotary frequencies are its own; all members alive."""
        initialise(self.population, tables, seeds)
        self.fused.refresh()
        self.optimizer.load(tables, hf.owning_role)
        self.alive_P.fill_(True)
        self.steps = self._left = 0

    def feed(self, batches: Sequence[Batch], factors: Sequence[tuple[float, float]]) -> None:
        """See :meth:`.TrainingStep.feed`. One copy, behind the steps that are queued already.

        Raises:
            ValueError: batches of other sizes or more of them than fit.
        """
        if len(batches) > len(self._fed_SW):
            raise ValueError(f"{len(batches)} steps are fed, at most {len(self._fed_SW)} fit")
        # New each time: PyTorch keeps pinned memory until its copy is done.
        fed_SW = torch.empty(len(batches), self._fed_SW.shape[1], dtype=torch.int32, pin_memory=self._fed_SW.is_cuda)
        size, ids_SW = self._tokens_BT.shape, fed_SW.numpy()
        numbers_SW, parts_S3BT = ids_SW.view(np.float32), ids_SW[:, : -batch.FACTORS].reshape(len(batches), 3, *size)
        for step, (each, pair) in enumerate(zip(batches, factors, strict=True)):
            if each.tokens_BT.shape != size:
                raise ValueError(f"a batch of {each.tokens_BT.shape} for a step of {tuple(size)}")
            for part, ids_BT in enumerate((each.tokens_BT, each.targets_BT, each.documents_BT)):
                parts_S3BT[step, part] = ids_BT
            corrections = (1 - beta ** (self.steps + step + 1) for beta in self.betas)
            numbers_SW[step, -batch.FACTORS :] = (*pair, *corrections)
        self._fed_SW[: len(batches)].copy_(fed_SW, non_blocking=True)
        self._cursor.zero_()
        self._left = len(batches)

    def step(self) -> None:
        if not self._left:
            raise IndexError("all batches that were fed are used up")
        self._left -= 1
        self.steps += 1
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, in nats: [P, B], at any length."""
        return self.fused.nll(tokens_BT, targets_BT, documents_BT)

    def _run(self) -> None:
        ids = self._tokens_BT, self._targets_BT, self._documents_BT
        tokens_N, targets_N, documents_N = (each.view(-1) for each in ids)
        batch.take_(self._fed_SW, self._cursor, tokens_N, targets_N, documents_N, self._factors)
        self.loss_P = self.fused.loss_and_gradients(*ids)  # where a graph is recorded, a tensor that it writes
        norm_P = self.optimizer.judge(self.loss_P, self.alive_P, self._cursor, self.trace_4SP)
        self.optimizer.step(self._factors, norm_P, self.alive_P)


def _recorded(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """``run`` as a graph. It is called while no member is alive, so that it changes nothing."""
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compile_ahead(run)
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        run()
    return graph

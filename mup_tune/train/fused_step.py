"""One training step of a population on the GPU, recorded once as a CUDA graph and replayed.

Multipliers, rotary frequencies, rates, schedule factors and batches are tensors that the graph reads, so that
one recording serves every trial of a Shape, population size and batch: nothing is compiled or recorded when
they change.

Shape suffixes: P members, B rows, T tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.fused import BACKEND, FusedPopulation
from mup_tune.model.kernels.ahead import compile_ahead
from mup_tune.roles import RoleTable
from mup_tune.shape import Shape
from mup_tune.train.flat_adamw import FlatAdamW
from mup_tune.train.population import initialise

WARM_UP = 2  # steps before recording: kernels are compiled and libraries set up outside the graph


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class FusedStep:
    """A population, its optimizer and its batch on one device; :meth:`load` makes it another pack's.

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

        self._tokens_BT, self._targets_BT = (held(rows, seq_len, dtype=torch.int64) for _ in range(2))
        self._documents_BT = held(rows, seq_len, dtype=torch.int32)
        self._factors = held(4)
        self._factors.fill_(1.0)
        self.loss_P, self.norm_P = held(members), held(members)
        self.alive_P, self.clipped_P = (held(members, dtype=torch.bool) for _ in range(2))
        self._graph = _recorded(self._run) if graph else None

    def load(self, tables: Sequence[RoleTable], seeds: Sequence[int]) -> None:
        """Another pack: init, rates, multipliers and rotary frequencies are its own; all members alive."""
        initialise(self.population, tables, seeds)
        self.fused.refresh()
        self.optimizer.load(tables, hf.owning_role)
        self.alive_P.fill_(True)
        self.steps = 0

    def step(
        self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None, eta_factor: float, lam_factor: float
    ) -> None:
        """One update, without waiting for the device; ``loss_P`` and its like are then the step's.

        Args:
            documents_BT: int32, or None where every row is one document.
            eta_factor, lam_factor: this step's multiples of every η and λ.
        """
        if tokens_BT.shape != self._tokens_BT.shape:
            raise ValueError(f"a batch of {tuple(tokens_BT.shape)} for a step of {tuple(self._tokens_BT.shape)}")
        self.steps += 1
        corrections = (1 - beta**self.steps for beta in self.betas)
        factors = torch.tensor([eta_factor, lam_factor, *corrections])
        if self._factors.is_cuda:
            factors = factors.pin_memory()
        self._factors.copy_(factors, non_blocking=True)
        self._tokens_BT.copy_(tokens_BT, non_blocking=True)
        self._targets_BT.copy_(targets_BT, non_blocking=True)
        if documents_BT is None:
            self._documents_BT.zero_()
        else:
            self._documents_BT.copy_(documents_BT, non_blocking=True)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, in nats: [P, B], at any length."""
        return self.fused.nll(tokens_BT, targets_BT, documents_BT)

    def _run(self) -> None:
        # Where a graph is recorded, these three are tensors that it writes.
        self.loss_P = self.fused.loss_and_gradients(self._tokens_BT, self._targets_BT, self._documents_BT)
        self.norm_P, self.clipped_P = self.optimizer.judge(self.loss_P, self.alive_P)
        self.optimizer.step(self._factors, self.norm_P, self.alive_P)


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

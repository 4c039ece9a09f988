"""A population's tensors laid out for the GPU step: flat masters, gradients and work copies at equal offsets.

Two banks. The *matrices* bank holds what matrix products read: masters in fp32, work copies = master ×
forward multiplier in the work dtype, and gradients of the work copies. Projections that read one norm are one
matrix (rows side by side), those that write one sum are one matrix too (columns side by side), so that each
is one product. The *vectors* bank holds the embedding and everything that is no matrix, in fp32 without a
work copy.

The population's own parameters become views of the masters: draws, exports and checks see what the step
trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mup_tune.model.falcon_h1 import Population

# Elements. Rows of a mixer's input matrix and of lm_head too: products want aligned leading dimensions.
ALIGNED = 16
IN_PROJECTIONS = {"attention": ("qkv",), "mamba2": ("ssm_in_proj",), "mlp": ("mlp_gate_proj", "mlp_up_proj")}
OUT_PROJECTIONS = {"attention": "attention_out_proj", "mamba2": "ssm_out_proj", "mlp": "mlp_down_proj"}


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in its bank: member p's row r at offset + p · member_stride + r · row_stride."""

    parameter: str
    offset: int
    member_stride: int
    rows: int
    cols: int
    row_stride: int

    def of(self, flat: Tensor, members: int) -> Tensor:
        """The view [P, rows, cols] of a flat tensor of the bank."""
        size, stride = (members, self.rows, self.cols), (self.member_stride, self.row_stride, 1)
        return flat.as_strided(size, stride, flat.storage_offset() + self.offset)


@dataclass(frozen=True)
class Leaf:
    """A matrix that products read, [P, rows, cols], and where its gradient goes."""

    value: Tensor
    grad: Tensor


class Sums:
    """Gradients of vectors between the kernels, where every program leaves a part, and storage.

    Vectors of one kind are a stack: their parts lie together, and one launch at the end of a step sums them.

    Args:
        grads: where each stack's gradients go, fp32 [n, P, width].
    """

    def __init__(self, grads: dict[str, Tensor]) -> None:
        self._grads = grads
        self._parts: dict[str, Tensor] = {}

    def parts(self, stack: str, index: int, programs: int) -> Tensor:
        """Memory for parts of one vector's gradient, [P, programs, width]; a stack has one ``programs``."""
        if stack not in self._parts:
            n, members, width = self._grads[stack].shape
            self._parts[stack] = self._grads[stack].new_empty(n, members, programs, width)
        return self._parts[stack][index]

    def clear(self) -> None:
        self._parts.clear()

    def write(self) -> None:
        """The gradients of all stacks, whose parts must all be there, to storage."""
        for stack, parts in self._parts.items():
            torch.sum(parts, 2, out=self._grads[stack])
        self.clear()


@dataclass(frozen=True)
class Vector:
    """A parameter of the vectors bank that kernels read, [P, …], and where its gradient goes."""

    value: Tensor
    grad: Tensor
    _sums: Sums
    _stack: str
    _index: int

    def parts(self, programs: int) -> Tensor:
        """Where so many programs leave their parts of this vector's gradient."""
        return self._sums.parts(self._stack, self._index, programs)


@dataclass(frozen=True)
class Bank:
    """Flat tensors of one kind. ``work`` is None where the masters themselves are read."""

    places: tuple[Place, ...]
    master: Tensor
    grad: Tensor
    work: Tensor | None


class Storage:
    """Moves a population's parameters into flat storage.

    Args:
        dtype: of the work copies and of the matrices' gradients.
    """

    def __init__(self, population: Population, dtype: torch.dtype) -> None:
        self.population, self.members = population, population.n_members
        self._matrices: dict[str, tuple[int, int, int]] = {}  # name → offset, rows, cols
        self._stacks: dict[str, tuple[int, int, int, int]] = {}  # name → offset, vectors, their distance and width
        self._in_stack: dict[str, tuple[str, int]] = {}  # vector → stack, its number there
        matrices = self._plan_matrices()
        vectors = self._plan_vectors({place.parameter for place in matrices})
        device = population.lm_head_weight.device

        def zeros(size: int, of: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=of, device=device)

        self.matrices = Bank(
            matrices, zeros(self._matrix_end), zeros(self._matrix_end, dtype), zeros(self._matrix_end, dtype)
        )
        self.vectors = Bank(vectors, zeros(self._vector_end), zeros(self._vector_end), None)
        self.sums = Sums({stack: self._stack_grads(*plan) for stack, plan in self._stacks.items()})
        self._adopt()

    @property
    def banks(self) -> tuple[Bank, Bank]:
        return self.matrices, self.vectors

    def matrix(self, name: str) -> Leaf:
        """A work matrix [P, rows, cols]: ``lm_head``, or ``layers.3.<norm>.in`` and ``.out``."""
        offset, rows, cols = self._matrices[name]
        assert self.matrices.work is not None
        place = Place(name, offset, rows * cols, rows, cols, cols)
        return Leaf(*(place.of(flat, self.members) for flat in (self.matrices.work, self.matrices.grad)))

    def vector(self, name: str) -> Vector:
        """A parameter of the vectors bank in its own shape."""
        place, shape = self._place[name], self._shapes[name]
        value, grad = (place.of(flat, self.members).view(shape) for flat in (self.vectors.master, self.vectors.grad))
        return Vector(value, grad, self.sums, *self._in_stack[name])

    def gradients(self) -> dict[str, Tensor]:
        """fp32 gradients of the masters, by our parameter names; copies."""
        scales = self.scales()
        found = {}
        for bank in self.banks:
            for place in bank.places:
                gradient = place.of(bank.grad, self.members).to(torch.float32, copy=True)
                scale = scales.get(place.parameter)
                gradient = gradient if scale is None or bank.work is None else gradient * scale
                found[place.parameter] = gradient.reshape(self._shapes[place.parameter])
        return found

    def scales(self) -> dict[str, Tensor]:
        """Forward multipliers by parameter, fp32 [P, rows, 1] or [P, 1, 1]; the look-up has its own."""
        by_name = self.population.weight_scales()
        found = {}
        for place in self.matrices.places:
            scale = by_name.get(place.parameter.rpartition(".")[2])
            if scale is not None:
                found[place.parameter] = scale
        return found

    @torch.no_grad()
    def refresh(self) -> None:
        """Work copies anew from masters and multipliers: after parameters or roles were set from outside."""
        scales, work = self.scales(), self.matrices.work
        assert work is not None
        for place in self.matrices.places:
            master, scale = place.of(self.matrices.master, self.members), scales.get(place.parameter)
            place.of(work, self.members).copy_(master if scale is None else master * scale)

    def _plan_matrices(self) -> tuple[Place, ...]:
        places: list[Place] = []
        end = 0

        def add(matrix: str, parameters: list[str], *, along_rows: bool, padded: bool = False) -> None:
            nonlocal end
            sizes = [self._size(name) for name in parameters]
            rows = sum(size[0] for size in sizes) if along_rows else sizes[0][0]
            rows += -rows % ALIGNED if padded else 0
            cols = sizes[0][1] if along_rows else sum(size[1] for size in sizes)
            at = end
            for name, (own_rows, own_cols) in zip(parameters, sizes, strict=True):
                places.append(Place(name, at, rows * cols, own_rows, own_cols, cols))
                at += own_rows * cols if along_rows else own_cols
            self._matrices[matrix] = (end, rows, cols)
            end += self.members * rows * cols
            end += -end % ALIGNED

        for layer, norm, branches in self.readings():
            prefix = f"layers.{layer}."
            inputs = [prefix + name for branch in branches for name in IN_PROJECTIONS[branch]]
            add(f"{prefix}{norm}.in", inputs, along_rows=True, padded=branches != ("mlp",))
            outputs = [prefix + OUT_PROJECTIONS[branch] for branch in branches]
            add(f"{prefix}{norm}.out", outputs, along_rows=False)
        add("lm_head", ["lm_head_weight"], along_rows=True, padded=True)
        self._matrix_end = end
        return tuple(places)

    def _plan_vectors(self, in_matrices: set[str]) -> tuple[Place, ...]:
        stacks: dict[str, list[str]] = {}
        for name, _ in self.population.named_parameters():
            if name not in in_matrices:
                stacks.setdefault(_stack(name), []).append(name)
        places, end = [], 0
        for stack, names in stacks.items():
            start = end
            for index, name in enumerate(names):
                shape = self.population.get_parameter(name).shape[1:]
                rows, cols = shape if name == "embedding_weight" else (1, prod(shape))
                places.append(Place(name, end, rows * cols, rows, cols, cols))
                self._in_stack[name] = stack, index
                end += self.members * rows * cols
                end += -end % ALIGNED  # so that every parameter starts at an aligned address
            self._stacks[stack] = start, len(names), (end - start) // len(names), prod(shape)
        self._vector_end = end
        return tuple(places)

    def _stack_grads(self, offset: int, n: int, stride: int, width: int) -> Tensor:
        return self.vectors.grad.as_strided((n, self.members, width), (stride, width, 1), offset)

    def readings(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """(layer, norm, branches that read it), in the order of the forward pass."""
        for layer, block in enumerate(self.population.layers):
            for reads in block.reads:  # type: ignore[union-attr]
                for norm, branches in reads.items():
                    yield layer, norm, present(branches, self.population)

    def _size(self, name: str) -> tuple[int, int]:
        parameter = self.population.get_parameter(name)
        return parameter.shape[1], parameter.shape[2]

    @torch.no_grad()
    def _adopt(self) -> None:
        self._shapes = {name: parameter.shape for name, parameter in self.population.named_parameters()}
        self._place = {place.parameter: place for bank in self.banks for place in bank.places}
        if set(self._place) != set(self._shapes):
            raise AssertionError(f"parameters without a place: {sorted(set(self._place) ^ set(self._shapes))}")
        for bank in self.banks:
            for place in bank.places:
                parameter = self.population.get_parameter(place.parameter)
                view = place.of(bank.master, self.members)
                view = view if view.shape == parameter.shape else view.view(parameter.shape)
                view.copy_(parameter)
                parameter.data = view


def _stack(name: str) -> str:
    """The vectors of one shape whose gradients are summed over equally many programs."""
    last = name.rpartition(".")[2]
    return "norm" if last.endswith("norm") and last != "gated_norm" else last


def present(branches: tuple[str, ...], population: Population) -> tuple[str, ...]:
    """The branches that a population's Shape has."""
    return tuple(name for name in branches if name != "mamba2" or population.shape.d_ssm)

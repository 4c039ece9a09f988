"""A self-test of what trains: every backend on every device, against float64 PyTorch on the CPU.

Two members with different multipliers read packed documents with ignored targets; the mean losses and all
gradients of each member are compared by relative norm.

Shape suffixes: P members, B rows, T tokens of a row.
"""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from math import inf

import torch
from torch import Tensor

from mup_tune.model import backends
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape
from mup_tune.train.population import new_population
from mup_tune.trial import IGNORED_TARGET

# Odd sizes on purpose: no tile of a kernel is filled exactly.
SHAPE = Shape(
    name="self-test",
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ssm=64,
    ssm_head_dim=16,
    d_state=16,
    n_groups=2,
    d_ff=136,
    vocab_size=259,
)
ROWS, TOKENS = 2, 301  # more than one chunk of every scan
DOCUMENT_STARTS = (1, 20, 64, 256, 290)  # of the first row; the second is one document
DTYPES = {"triton": (torch.float32, torch.bfloat16), "mamba-ssm": (torch.float32,), "torch": (torch.float32,)}


@dataclass(frozen=True)
class Tolerance:
    """Largest relative error of a member's loss, and of a member's gradient of any one parameter."""

    loss: float
    gradient: float


# PyTorch itself is off by 2e-5 in float32 and, with every tensor rounded, by 5e-2 in bfloat16: in A_log and
# dt_bias, whose gradients are sums over all tokens that partly cancel. Products in TF32 would be off by 1e-3.
TOLERANCES = {torch.float32: Tolerance(1e-5, 2e-4), torch.bfloat16: Tolerance(1e-3, 0.1)}


@dataclass(frozen=True)
class BackendTest:
    """One backend on one device in one dtype, tested.

    ``worst`` is the parameter with the largest gradient error. Errors are None where the backend raised;
    ``why`` then says what.
    """

    backend: str
    device: str
    dtype: str
    loss_error: float | None
    gradient_error: float | None
    worst: str
    passed: bool
    why: str
    seconds: float


Gradients = dict[str, Tensor]


def devices() -> list[str]:
    """The CPU and every GPU that torch sees."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def self_test() -> list[BackendTest]:
    """Every backend that can run, on every device, in every dtype that it trains in."""
    return [
        tested(name, device, dtype)
        for device in devices()
        for name in backends.BACKENDS
        if backends.missing(name, device) is None
        for dtype in DTYPES[name]
    ]


def tested(backend: str, device: str, dtype: torch.dtype) -> BackendTest:
    """Losses and gradients of one backend, compared; whatever it raises is a failed test."""
    started = time.perf_counter()
    loss_error = gradient_error = None
    worst, passed, why, tolerance = "", False, "", TOLERANCES[dtype]
    try:
        expected_P, exact = expected()
        with nullcontext() if device == "cpu" else torch.cuda.device(device):  # where Triton launches
            loss_P, gradients = losses_and_gradients(backend, device, dtype)
        loss_error = _error(loss_P, expected_P)
        errors = {name: _error(gradients[name], exact[name]) for name in exact}
        worst = max(errors, key=lambda name: errors[name])
        gradient_error = errors[worst]
        passed = loss_error <= tolerance.loss and gradient_error <= tolerance.gradient
        if not passed:
            why = f"more than {tolerance.loss:g} (loss) or {tolerance.gradient:g} (gradient, here of {worst})"
    except Exception as error:  # compilers and drivers fail in any way
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = time.perf_counter() - started
    name = str(dtype).removeprefix("torch.")
    return BackendTest(backend, device, name, loss_error, gradient_error, worst, passed, why, seconds)


def losses_and_gradients(backend: str, device: str, dtype: torch.dtype) -> tuple[Tensor, Gradients]:
    """Mean loss of every member and all gradients of the master parameters, by our parameter names."""
    tokens_BT, targets_BT, documents_BT = (each.to(device) for each in batch())
    population = _population()
    if backend == "triton":
        from mup_tune.model.fused import FusedPopulation

        fused = FusedPopulation(population.to(device), dtype)
        loss_P = fused.loss_and_gradients(tokens_BT, targets_BT, documents_BT)
        return loss_P, fused.gradients()
    placed = Population(SHAPE, population.n_members, device, dtype, scan=backend)
    placed.load_state_dict(population.state_dict())
    return _by_autograd(placed, tokens_BT, targets_BT, documents_BT)


def _by_autograd(
    population: Population, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Gradients]:
    loss_P = population.nll(tokens_BT, targets_BT, documents_BT).sum(1) / (targets_BT != IGNORED_TARGET).sum()
    loss_P.sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: each.grad for name, each in population.named_parameters() if each.grad is not None}
    return loss_P.detach(), gradients


@cache
def expected() -> tuple[Tensor, Gradients]:
    """The same from float64 PyTorch on the CPU."""
    return _by_autograd(copy.deepcopy(_population()).double(), *batch())


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets of which one in seven is ignored, and document numbers [B, T].

    Most targets are the last id, so that gradients add up: those of random targets nearly cancel, and their
    rounding errors do not.
    """
    generator = torch.Generator().manual_seed(0)
    tokens_BT, targets_BT = torch.randint(0, SHAPE.vocab_size, (2, ROWS, TOKENS), generator=generator)
    targets_BT[:, torch.arange(TOKENS) % 5 > 0] = SHAPE.vocab_size - 1
    targets_BT.view(-1)[::7] = IGNORED_TARGET
    documents_BT = torch.zeros(ROWS, TOKENS, dtype=torch.int32)
    for start in DOCUMENT_STARTS:
        documents_BT[0, start:] += 1
    return tokens_BT, targets_BT, documents_BT


def _population() -> Population:
    """The training init, with multipliers and RoPE bases that differ between members."""
    factors = {"key": 4.0, "ssm_dt": 2.0, "ssm_out": 0.5, "mlp_gate": 2.0, "lm_head": 2.0, "rope_base": 1e-7}
    tables = [role_table(SHAPE, each) for each in (untuned(SHAPE), untuned(SHAPE).scaled(factors))]
    return new_population(SHAPE, tables, [0, 1], "cpu")


def _error(found_P: Tensor, exact_P: Tensor) -> float:
    """Norm of the difference over the norm, of the worst member; infinite where something is not finite."""
    found_P1, exact_P1 = found_P.detach().cpu().double().view(len(exact_P), -1), exact_P.view(len(exact_P), -1)
    errors_P = (found_P1 - exact_P1).norm(dim=1) / exact_P1.norm(dim=1)
    return float(errors_P.nan_to_num(nan=inf).max())

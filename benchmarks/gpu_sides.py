"""The sides of the GPU benchmark: our fused step, and the trial that a user of ``transformers`` would train.

Shape suffixes: B rows, T tokens of a row.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mup_tune.data.batches import Batch as HostBatch
from mup_tune.errors import UserError
from mup_tune.model import hf, ssd_mamba
from mup_tune.model.layers import IGNORED_TARGET
from mup_tune.roles import role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape
from mup_tune.train.fed import fed_steps
from mup_tune.train.fused_step import FusedStep

DOCUMENTS_A_ROW = 4
ETA_FACTOR = 0.1  # of the peak η: long enough runs on random tokens stay finite
FALCON = "transformers.models.falcon_h1.modeling_falcon_h1"
# What transformers takes from mamba-ssm and causal-conv1d if they are there.
SCAN = ("mamba2_chunk_scan",)  # all that can be there without causal-conv1d
KERNELS = ("mamba2_split_conv1d_scan_combined", *SCAN, "causal_conv1d_fn")


class Batch(NamedTuple):
    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor

    def to(self, device: str) -> Batch:
        """On the device; a copy to a GPU is queued and not waited for."""
        if device == "cpu":
            return self
        return Batch(*(each.pin_memory().to(device, non_blocking=True) for each in self))


class Batches:
    """Random batches on the CPU. Token frequencies follow Zipf's law, as those of text do: some rows of the
    embedding then collect many gradients. Documents start at random, ``DOCUMENTS_A_ROW`` a row on average."""

    def __init__(self, vocab_size: int, rows: int, seq_len: int, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        frequency = 1 / (np.arange(vocab_size) + 2.7)
        self._cumulative = np.cumsum(frequency / frequency.sum())
        self._cumulative[-1] = 1.0
        self._size = (rows, seq_len)

    def draw(self) -> Batch:
        tokens_BT = torch.from_numpy(np.searchsorted(self._cumulative, self._generator.random(self._size), "right"))
        targets_BT = tokens_BT.roll(-1, 1)
        targets_BT[:, -1] = IGNORED_TARGET
        starts_BT = self._generator.random(self._size) < (DOCUMENTS_A_ROW - 1) / (self._size[1] - 1)
        starts_BT[:, 0] = False
        return Batch(tokens_BT, targets_BT, torch.from_numpy(starts_BT.cumsum(1).astype(np.int32)))


def on_host(batches: Sequence[Batch]) -> list[HostBatch]:
    """The same batches as our training steps are fed them."""
    return [HostBatch(*(each.cpu().numpy() for each in batch)) for batch in batches]


class Fused:
    """``members`` trials side by side in our fused step, with products in ``dtype``."""

    def __init__(
        self,
        shape: Shape,
        members: int,
        batches: Sequence[Batch],
        device: str,
        *,
        graph: bool,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        rows, seq_len = batches[0].tokens_BT.shape
        self.training = FusedStep(shape, members, rows, seq_len, device=device, dtype=dtype, graph=graph)
        self.training.load([role_table(shape, untuned(shape))] * members, list(range(members)))
        self._batches = list(itertools.islice(itertools.cycle(on_host(batches)), fed_steps(rows, seq_len)))
        self._left = 0

    def step(self) -> None:
        if not self._left:
            self._left = len(self._batches)
            self.training.feed(self._batches, [(ETA_FACTOR, 1.0)] * self._left)
        self._left -= 1
        self.training.step()

    def train(self, batch: Batch, eta_factor: float) -> None:
        """Train on another batch; the next :meth:`step` begins with the first of its own."""
        self._left = 0
        self.training.feed(on_host([batch]), [(eta_factor, 1.0)])
        self.training.step()

    def loss(self) -> float:
        """Mean over the members, nan where one of them diverged; waits for the device."""
        alive = bool(self.training.alive_P.all())
        return float(self.training.loss_P.mean()) if alive else float("nan")

    @property
    def remarks(self) -> list[str]:
        return []


class Baseline:
    """One trial through ``transformers``: bf16 autocast over fp32 parameters, fused AdamW, gradient clipping.

    Rows are one document each: plain ``transformers`` does not reset at document starts. Without a cache of
    past states, since that would keep it off its fused path.

    Args:
        pieces: a step's rows go through in this many pieces, for shapes whose activations would not fit.
    """

    def __init__(self, shape: Shape, batches: Sequence[Batch], device: str, pieces: int = 1) -> None:
        self.model: nn.Module = transformers_model(shape, batches[0].tokens_BT.shape[1], device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self._batches: Iterator[Batch] = itertools.cycle(batches)
        self._device, self._pieces = device.partition(":")[0], pieces
        self._loss = torch.zeros((), device=device)
        self._path = ""

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for tokens_BT in next(self._batches).tokens_BT.chunk(self._pieces):
            with torch.autocast(self._device, torch.bfloat16):
                loss = self.model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss / self._pieces
            self._path = self._path or path_taken(autograd_nodes(loss))
            loss.backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._loss = torch.stack(losses).sum()

    def loss(self) -> float:
        return float(self._loss)

    @property
    def remarks(self) -> list[str]:
        """The kernels that its forward pass took, and in how many pieces a step goes through."""
        return [self._path, *([f"steps in {self._pieces} pieces"] if self._pieces > 1 else [])]


class PlainBaseline(Baseline):
    """The baseline where only ``transformers`` is installed: scan and convolution in PyTorch."""

    def __init__(self, shape: Shape, batches: Sequence[Batch], device: str) -> None:
        super().__init__(shape, batches, device)
        self._code = in_pytorch()

    def step(self) -> None:
        with self._code:
            super().step()


def baseline(shape: Shape, batches: Sequence[Batch], device: str) -> Baseline:
    """The baseline with whole steps at once, or in as few pieces as fit."""
    pieces = 1
    while True:
        try:
            built = Baseline(shape, batches, device, pieces)
            built.step()
            return built
        except torch.OutOfMemoryError:
            if pieces >= len(batches[0].tokens_BT):
                raise
        pieces *= 2
        built = None
        gc.collect()
        torch.cuda.empty_cache()


def transformers_model(shape: Shape, seq_len: int, device: str) -> nn.Module:
    """``FalconH1ForCausalLM`` of this Shape at its own init, with the fastest kernels that this machine has.

    ``transformers`` takes them from installed packages if those can be imported, and from its hub otherwise.
    The hub is switched off.
    """
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    kernels_importable()  # without them transformers takes its PyTorch path
    falcon = importlib.import_module(FALCON)
    functions = KERNELS
    if device != "cpu":
        # The fused function needs causal-conv1d; without, convolution and scan can still go one by one.
        functions = () if _importable("causal_conv1d") else KERNELS[:1]
    for name in functions:
        setattr(falcon, name, inspect.unwrap(getattr(falcon, name)))  # transformers' own PyTorch version
    config = falcon.FalconH1Config(**hf.hf_config_kwargs(role_table(shape, untuned(shape)), seq_len))
    model: nn.Module = falcon.FalconH1ForCausalLM(config).to(device)
    for module in model.modules():
        if hasattr(module, "mup_vector"):
            # In fp32 it would take autocast's bf16 back to fp32, which mamba-ssm's backward kernels refuse.
            module.mup_vector = module.mup_vector.to(torch.bfloat16)
    return model


class Changed:
    """While it is entered, Falcon-H1 of ``transformers`` calls other functions. Every step can afford it."""

    def __init__(self, change: Callable[..., Any], names: Sequence[str]) -> None:
        self._module = vars(importlib.import_module(FALCON))
        self._changed = {name: change(self._module[name]) for name in names}
        self._before: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._before = {name: self._module[name] for name in self._changed}
        self._module.update(self._changed)

    def __exit__(self, *_: object) -> None:
        self._module.update(self._before)


def in_pytorch() -> Changed:
    """``transformers``' own PyTorch code, whatever is installed."""
    return Changed(inspect.unwrap, KERNELS)


def kernels_apart() -> Changed:
    """Installed kernels as they are, and torch.compile only for what is between them."""
    return Changed(torch.compiler.disable, KERNELS if _importable("causal_conv1d") else SCAN)


def kernels_importable() -> bool:
    """Whether ``transformers`` will find mamba-ssm's Triton kernels, if it is imported after this.

    mamba-ssm without its CUDA extension is made importable: Falcon-H1 needs its Triton kernels only.
    """
    os.environ.setdefault("TRITON_F32_DEFAULT", "tf32")  # Triton's own default; our use of mamba-ssm wants another
    try:
        ssd_mamba.chunk_scan()
    except UserError:
        return False
    return True


def _importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def autograd_nodes(loss: Tensor) -> set[str]:
    """Names of all backward functions behind ``loss``: what its forward pass really called."""
    found: set[str] = set()
    seen: set[Any] = set()
    open_ = [loss.grad_fn]
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(node.name())
        open_ += [each for each, _ in node.next_functions]
    return found


def path_taken(nodes: set[str]) -> str:
    """Which kernels a Falcon-H1 forward pass took, in words, from its backward functions."""

    def took(name: str) -> bool:
        return any(name in node for node in nodes)

    if took("MambaSplitConv1dScanCombined"):
        scan, conv = "mamba-ssm's fused function", "causal-conv1d inside it"
    else:
        scan = "mamba-ssm's Triton scan" if took("MambaChunkScanCombined") else "PyTorch scan"
        conv = "causal-conv1d" if took("CausalConv1d") else "PyTorch convolution"
    attention = "eager attention"
    for name, words in (("Flash", "flash"), ("Cudnn", "cuDNN"), ("Efficient", "memory-efficient")):
        if took(f"ScaledDotProduct{name}"):
            attention = f"{words} attention"
    return ", ".join((scan, conv, attention))

"""The population's step in Triton kernels and matrix products: the model of ``falcon_h1``, made for the GPU.

Everything that is no matrix product is one of ``kernels/``, each with its backward; autograd only orders
them. Gradients of parameters go straight into flat storage. What matrix products read and write is in the
work dtype; the residual stream, norms' statistics, decays, softmax and losses are fp32.

Legend: :mod:`mup_tune.model.kernels`; besides, W columns of an input projection, E of an output projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mup_tune.model.attention import rope_table
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.kernels.attention import attention_, attention_backward
from mup_tune.model.kernels.conv import conv_silu, conv_silu_backward
from mup_tune.model.kernels.embedding import embed, embed_backward
from mup_tune.model.kernels.loss import nll, nll_and_grad_
from mup_tune.model.kernels.norm import add_norm, add_norm_backward, group_norm, group_norm_backward
from mup_tune.model.kernels.spans import spans
from mup_tune.model.kernels.ssd import ssd, ssd_backward
from mup_tune.model.kernels.swiglu import swiglu, swiglu_backward
from mup_tune.model.storage import Leaf, Storage, Vector
from mup_tune.shape import Shape
from mup_tune.trial import IGNORED_TARGET

BACKEND = "triton"
# Logits held at once: whole members, so that lm_head's gradient is one product and never accumulated.
LOGITS_BYTES = 4 * 2**30


class _Linear(torch.autograd.Function):
    """[P, N, in] × [P, out, in]ᵀ; the weight's gradient is written to its leaf."""

    @staticmethod
    def forward(ctx: Any, x_PNI: Tensor, weight: Leaf) -> Tensor:
        ctx.save_for_backward(x_PNI)
        ctx.weight = weight
        return torch.bmm(x_PNI, weight.value.transpose(1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_PNO: Tensor) -> tuple[Tensor, None]:
        (x_PNI,) = ctx.saved_tensors
        torch.bmm(grad_PNO.transpose(1, 2), x_PNI, out=ctx.weight.grad)
        return torch.bmm(grad_PNO, ctx.weight.value), None


class _AddNorm(torch.autograd.Function):
    """(residual + branch, its RMSNorm in the work dtype); without a branch the residual stays as it is."""

    @staticmethod
    def forward(
        ctx: Any, residual_PND: Tensor, branch_PND: Tensor | None, weight: Vector, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        summed_PND, normed_PND, rstd_PN = add_norm(residual_PND, branch_PND, weight.value, dtype)
        ctx.save_for_backward(summed_PND, rstd_PN)
        ctx.weight, ctx.branch_dtype = weight, None if branch_PND is None else branch_PND.dtype
        ctx.set_materialize_grads(False)
        return summed_PND, normed_PND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_summed_PND: Tensor | None, d_normed_PND: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        summed_PND, rstd_PN = ctx.saved_tensors
        weight = ctx.weight
        d_in_PND, d_branch_PND = add_norm_backward(
            d_summed_PND, d_normed_PND, summed_PND, rstd_PN, weight.value, ctx.branch_dtype, weight.parts
        )
        return d_in_PND, d_branch_PND, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_PNW: Tensor) -> Tensor:
        ctx.save_for_backward(h_PNW)
        return swiglu(h_PNW)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_PNF: Tensor) -> Tensor:
        return swiglu_backward(d_PNF, ctx.saved_tensors[0])


@dataclass(frozen=True)
class Sequence:
    """What every mixer of one pass reads besides its projection."""

    shape: Shape
    cos_PTR: Tensor
    sin_PTR: Tensor
    documents_BT: Tensor
    spans_2BT: Tensor


class _Mixer(torch.autograd.Function):
    """Attention and Mamba-2 between their input and output projections: [P, N, W] → [P, N, E].

    ``branches`` say which of them, and in which order their columns lie on both sides.
    """

    @staticmethod
    def forward(
        ctx: Any, in_PNW: Tensor, sequence: Sequence, branches: tuple[str, ...], vectors: dict[str, Vector]
    ) -> Tensor:
        parts = _Columns(sequence, branches, in_PNW)
        shape = sequence.shape
        out_PNE = in_PNW.new_empty(*in_PNW.shape[:2], parts.width_out)
        saved: list[Tensor] = []
        value = {name: vector.value for name, vector in vectors.items()}
        if "attention" in branches:
            qkv, out = parts.of(in_PNW, "qkv"), parts.out(out_PNE, "attention")
            # In place: nothing else reads queries and keys that are not rotated.
            lse = attention_(
                qkv, shape.n_heads, shape.n_kv_heads, sequence.cos_PTR, sequence.sin_PTR, sequence.spans_2BT, out
            )
            saved.append(lse)
        if "mamba2" in branches:
            conv_in, dt, z = (parts.of(in_PNW, name) for name in ("xBC", "dt", "z"))
            xBC = conv_silu(conv_in, *_taps(value), sequence.documents_BT)
            out = parts.out(out_PNE, "mamba2")
            gated = torch.empty_like(out, memory_format=torch.contiguous_format) if shape.gated_norm else out
            kept = ssd(xBC, dt, z, *_ssm(value), *_sizes(shape), sequence.spans_2BT, gated)
            saved += [xBC, *kept]
            # Without the norm, gated is a view of the output: saved besides, it would keep this node alive.
            if shape.gated_norm:
                rstd = group_norm(_rows(gated), value["gated_norm"], shape.n_groups, _rows(out))
                saved += [gated, rstd]
        ctx.save_for_backward(in_PNW, out_PNE, *saved)
        ctx.sequence, ctx.branches, ctx.vectors = sequence, branches, vectors
        return out_PNE

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out_PNE: Tensor) -> tuple[Tensor, None, None, None]:
        in_PNW, out_PNE, *saved = ctx.saved_tensors
        sequence, vectors = ctx.sequence, ctx.vectors
        shape = sequence.shape
        parts = _Columns(sequence, ctx.branches, in_PNW)
        d_in_PNW = torch.empty_like(in_PNW)
        if "attention" in ctx.branches:
            heads = (shape.n_heads, shape.n_kv_heads, sequence.cos_PTR, sequence.sin_PTR, sequence.spans_2BT)
            d_out, out = (parts.out(each, "attention") for each in (d_out_PNE, out_PNE))
            qkv, d_qkv = (parts.of(each, "qkv") for each in (in_PNW, d_in_PNW))
            attention_backward(d_out, out, saved.pop(0), qkv, *heads, d_qkv)
        if "mamba2" in ctx.branches:
            value = {name: vector.value for name, vector in vectors.items()}
            xBC = saved.pop(0)
            d_out = parts.out(d_out_PNE, "mamba2")
            if shape.gated_norm:
                rstd, gated = saved.pop(), saved.pop()
                weight = vectors["gated_norm"]
                d_rows = group_norm_backward(
                    _rows(d_out), rstd, _rows(gated), weight.value, shape.n_groups, weight.parts
                )
                d_out = d_rows.view(gated.shape)
            conv_in, dt, z = (parts.of(in_PNW, name) for name in ("xBC", "dt", "z"))
            d_conv, d_dt, d_z = (parts.of(d_in_PNW, name) for name in ("xBC", "dt", "z"))
            dt_PBHT, log_PBHT, key_PBHT, states_PBHcSK = saved
            scan = (xBC, dt, z, *_ssm(value), *_sizes(shape), sequence.spans_2BT)
            ssm_parts = (vectors[name].parts for name in ("dt_bias", "A_log", "D"))
            d_xBC = ssd_backward(d_out, dt_PBHT, log_PBHT, key_PBHT, states_PBHcSK, *scan, d_dt, d_z, *ssm_parts)
            taps = (conv_in, *_taps(value), sequence.documents_BT)
            taps_parts = (vectors[name].parts for name in ("conv1d_weight", "conv1d_bias"))
            conv_silu_backward(d_xBC, *taps, d_conv, parts.padding(d_in_PNW), *taps_parts)
        else:
            parts.padding(d_in_PNW).zero_()
        return d_in_PNW, None, None, None


def _taps(value: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return value["conv1d_weight"].squeeze(2), value["conv1d_bias"]


def _ssm(value: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return value["dt_bias"], value["A_log"], value["D"]


def _sizes(shape: Shape) -> tuple[int, int, int]:
    return shape.n_ssm_heads, shape.n_groups, shape.d_state


def _rows(x_PBTC: Tensor) -> Tensor:
    return x_PBTC.flatten(1, 2)


class _Columns:
    """Where a mixer's parts lie in the columns of its input and output projections."""

    def __init__(self, sequence: Sequence, branches: tuple[str, ...], in_PNW: Tensor) -> None:
        shape = sequence.shape
        self._size = (in_PNW.shape[0], *sequence.documents_BT.shape)
        widths_in = {
            "attention": {"qkv": shape.d_attn + 2 * shape.d_kv},
            "mamba2": {"z": shape.d_ssm, "xBC": shape.d_conv, "dt": shape.n_ssm_heads},
        }
        widths_out = {"attention": shape.d_attn, "mamba2": shape.d_ssm}
        self._in = _places({name: width for branch in branches for name, width in widths_in[branch].items()})
        self._out = _places({branch: widths_out[branch] for branch in branches})
        self._width_in, self.width_out = (max(place.stop for place in each.values()) for each in (self._in, self._out))

    def of(self, in_PNW: Tensor, part: str) -> Tensor:
        return in_PNW.view(*self._size, -1)[..., self._in[part]]

    def padding(self, in_PNW: Tensor) -> Tensor:
        """The columns behind all parts."""
        return in_PNW.view(*self._size, -1)[..., self._width_in :]

    def out(self, out_PNE: Tensor, branch: str) -> Tensor:
        return out_PNE.view(*self._size, -1)[..., self._out[branch]]


def _places(widths: dict[str, int]) -> dict[str, slice]:
    places, start = {}, 0
    for name, width in widths.items():
        places[name] = slice(start, start + width)
        start += width
    return places


class FusedPopulation:
    """A population that trains through kernels; its parameters become views of flat storage.

    After parameters or roles were set from outside, call :meth:`refresh`.

    Args:
        dtype: of matrix products, bfloat16 or float32; parameters stay fp32.
    """

    def __init__(self, population: Population, dtype: torch.dtype = torch.bfloat16) -> None:
        self.population, self.shape, self.dtype = population, population.shape, dtype
        self.storage = Storage(population, dtype)
        self.gradients = self.storage.gradients
        self._embedding = self.storage.vector("embedding_weight")
        self._final_norm = self.storage.vector("final_norm")
        self._lm_head = self.storage.matrix("lm_head")
        self._rope: dict[int, tuple[Tensor, Tensor]] = {}  # by row length
        self._vectors: list[dict[str, Vector]] = [{} for _ in range(self.shape.n_layers)]
        for place in self.storage.vectors.places:
            _, dot, rest = place.parameter.partition("layers.")
            if dot:
                layer, name = rest.split(".")
                self._vectors[int(layer)][name] = self.storage.vector(place.parameter)
        self._readings = {(layer, name): branches for layer, name, branches in self.storage.readings()}
        self._projections = {
            (layer, name, side): self.storage.matrix(f"layers.{layer}.{name}.{side}")
            for layer, name in self._readings
            for side in ("in", "out")
        }
        self.refresh()

    def refresh(self) -> None:
        """Work copies and rotary tables anew, at the addresses that a CUDA graph has read."""
        self.storage.refresh()
        for T, tables in self._rope.items():
            for held, new in zip(tables, self._rope_tables(T), strict=True):
                held.copy_(new)

    def loss_and_gradients(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor) -> Tensor:
        """Mean loss of every member over the targets, nats, fp32 [P]; leaves all gradients in storage.

        Args:
            tokens_BT: int64 ids, the same for all members.
            targets_BT: int64 ids to predict; -100 is not predicted.
            documents_BT: int32 document numbers, non-decreasing from 0 in a row.
        """
        sums = self.storage.sums
        sums.clear()  # of what a pass that failed left
        embedded_PND = self._embed(tokens_BT).requires_grad_()
        with torch.enable_grad():
            hidden_PND = self._hidden(embedded_PND, documents_BT)
        scale = (targets_BT != IGNORED_TARGET).sum().reciprocal()
        loss_P, d_hidden_PND = self._head(hidden_PND.detach(), targets_BT.reshape(-1), scale)
        hidden_PND.backward(d_hidden_PND)  # type: ignore[no-untyped-call]
        self._embedding.grad.zero_()
        assert embedded_PND.grad is not None
        embed_backward(embedded_PND.grad, self._embedding_scale, tokens_BT.reshape(-1), self._embedding.grad)
        sums.write()
        return loss_P

    @torch.no_grad()
    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, nats, fp32 [P, B]; no gradients."""
        if documents_BT is None:
            documents_BT = torch.zeros_like(tokens_BT, dtype=torch.int32)
        hidden_PND = self._hidden(self._embed(tokens_BT), documents_BT)
        targets_N = targets_BT.reshape(-1)
        found = [
            nll(self._logits(hidden_PND, part)[..., : self.shape.vocab_size], targets_N)
            for part in self._parts(len(targets_N))
        ]
        return torch.cat(found).view(-1, *tokens_BT.shape).sum(-1)

    @property
    def _embedding_scale(self) -> Tensor:
        return self.population.multipliers.get_buffer("embedding")

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return embed(self._embedding.value, self._embedding_scale, tokens_BT.reshape(-1))

    def _hidden(self, residual_PND: Tensor, documents_BT: Tensor) -> Tensor:
        """What lm_head reads."""
        T = documents_BT.shape[1]
        if T not in self._rope:
            self._rope[T] = self._rope_tables(T)
        sequence = Sequence(self.shape, *self._rope[T], documents_BT, spans(documents_BT))
        pending_PND: Tensor | None = None
        for layer, vectors in enumerate(self._vectors):
            for reads in self.population.layers[layer].reads:  # type: ignore[union-attr]
                added_PND: Tensor | None = None
                for name in reads:
                    residual_PND, normed_PND = _AddNorm.apply(  # type: ignore[no-untyped-call]
                        residual_PND, pending_PND, vectors[name], self.dtype
                    )
                    pending_PND = None
                    out_PND = self._branches(layer, name, normed_PND, sequence)
                    added_PND = out_PND if added_PND is None else added_PND + out_PND
                pending_PND = added_PND
        return _AddNorm.apply(residual_PND, pending_PND, self._final_norm, self.dtype)[1]  # type: ignore[no-any-return,no-untyped-call]

    @torch.no_grad()
    def _rope_tables(self, T: int) -> tuple[Tensor, Tensor]:
        cos, sin = rope_table(self.population.rope_inverse_frequencies, T, torch.float32)
        return cos.view(len(cos), T, -1), sin.view(len(sin), T, -1)

    def _branches(self, layer: int, norm_name: str, normed_PND: Tensor, sequence: Sequence) -> Tensor:
        """The sum of what the branches that read one norm add to the residual stream."""
        branches = self._readings[layer, norm_name]
        into, out = (self._projections[layer, norm_name, side] for side in ("in", "out"))
        in_PNW = _Linear.apply(normed_PND, into)  # type: ignore[no-untyped-call]
        if branches == ("mlp",):
            between_PNE = _SwiGLU.apply(in_PNW)  # type: ignore[no-untyped-call]
        else:
            between_PNE = _Mixer.apply(in_PNW, sequence, branches, self._vectors[layer])  # type: ignore[no-untyped-call]
        return _Linear.apply(between_PNE, out)  # type: ignore[no-any-return,no-untyped-call]

    def _head(self, hidden_PND: Tensor, targets_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """``scale`` × every member's summed loss [P], its gradient by ``hidden``; lm_head's to storage."""
        d_hidden_PND = torch.empty_like(hidden_PND)
        loss_P = scale.new_empty(len(hidden_PND))
        for part in self._parts(len(targets_N)):
            logits_pNV = self._logits(hidden_PND, part)
            nll_pN = nll_and_grad_(logits_pNV[..., : self.shape.vocab_size], targets_N, scale)
            torch.sum(nll_pN, 1, out=loss_P[part])
            torch.bmm(logits_pNV, self._lm_head.value[part], out=d_hidden_PND[part])
            torch.bmm(logits_pNV.transpose(1, 2), hidden_PND[part], out=self._lm_head.grad[part])
        return loss_P.mul_(scale), d_hidden_PND

    def _logits(self, hidden_PND: Tensor, part: slice) -> Tensor:
        """[p, N, V] with V as stored: the columns beyond the vocabulary are 0."""
        return torch.bmm(hidden_PND[part], self._lm_head.value[part].transpose(1, 2))

    def _parts(self, tokens: int) -> list[slice]:
        member = tokens * self._lm_head.value.shape[1] * self._lm_head.value.element_size()
        at_once = max(1, LOGITS_BYTES // member)
        members = self.population.n_members
        return [slice(start, min(start + at_once, members)) for start in range(0, members, at_once)]

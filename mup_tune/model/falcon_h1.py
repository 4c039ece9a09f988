"""A population of Falcon-H1 models: P members of one Shape, every parameter with a leading member axis.

Falcon-H1's own block order is SA_M (arXiv 2507.22448, §2): attention and Mamba-2 in parallel on one norm,
then the MLP on another; ``READS`` has the others. What may differ between members of one Shape is tensors
(multipliers, rotary frequencies), never Python constants.

Shape suffixes: P members, B rows, T tokens, D d_model, C convolution channels, H SSM heads, K channels of an
SSM head, G groups, N d_state, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mup_tune.errors import unknown
from mup_tune.model import attention, ssd, ssd_mamba
from mup_tune.model.layers import at_least_fp32, causal_conv, linear, linear_nll, rms_norm
from mup_tune.multipliers import acting_on, forward_at
from mup_tune.roles import RoleTable
from mup_tune.shape import BlockOrder, Shape

# A block's additions to the residual stream, one after another; in each: norm → the branches that read it.
# Which norm a branch of SAM and S_A_M reads is inferred: its own, as in SA_M.
READS: dict[BlockOrder, tuple[dict[str, tuple[str, ...]], ...]] = {
    "SA_M": ({"input_norm": ("attention", "mamba2")}, {"pre_ff_norm": ("mlp",)}),
    "SAM": ({"input_norm": ("attention", "mamba2"), "pre_ff_norm": ("mlp",)},),
    "S_A_M": ({"input_norm": ("mamba2",)}, {"pre_attention_norm": ("attention",)}, {"pre_ff_norm": ("mlp",)}),
}

SCANS = {"torch": ssd, "mamba-ssm": ssd_mamba}  # what may run the state-space scan

Tap = Callable[[str, Tensor], None]


def no_tap(site: str, value: Tensor) -> None:
    """Keep no value, as in training."""


@dataclass(frozen=True)
class ForwardPass:
    """What all layers share in one forward pass: documents, rotary tables, and multipliers as weight scales.

    ``tap`` gets every site's value, layer after layer; the checks read them.
    """

    documents: Tensor | None  # [B, T]
    mask: Tensor | None  # [B, 1, T, T]
    rope: tuple[Tensor, Tensor]
    scales: dict[str, Tensor]  # of Population.weight_scales
    tap: Tap


class Block(nn.Module):
    """One layer's parameters, allocated and not initialised; the SSM's are absent where d_ssm = 0."""

    def __init__(
        self,
        shape: Shape,
        n_members: int,
        scan: str,
        ssd_chunk: int | None,
        device: str | torch.device,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.shape, self.scan = shape, SCANS[scan].ssd
        self.ssd_chunk = ssd_chunk or SCANS[scan].CHUNK
        self.reads = READS["SA_M" if shape.block_order == "S_A_M" and not shape.d_ssm else shape.block_order]
        d = shape.d_model

        def new(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n_members, *size, device=device, dtype=dtype))

        self.input_norm = new(d)
        if shape.d_ssm:
            self.ssm_in_proj = new(shape.d_in_proj, d)
            self.conv1d_weight = new(shape.d_conv, 1, shape.conv_kernel)
            self.conv1d_bias = new(shape.d_conv)
            self.dt_bias = new(shape.n_ssm_heads)
            self.A_log = new(shape.n_ssm_heads)
            self.D = new(shape.n_ssm_heads)
            if shape.gated_norm:
                self.gated_norm = new(shape.d_ssm)
            self.ssm_out_proj = new(d, shape.d_ssm)
        if shape.has_attention_norm:
            self.pre_attention_norm = new(d)
        self.qkv = new(shape.d_attn + 2 * shape.d_kv, d)
        self.attention_out_proj = new(d, shape.d_attn)
        self.pre_ff_norm = new(d)
        self.mlp_gate_proj = new(shape.d_ff, d)
        self.mlp_up_proj = new(shape.d_ff, d)
        self.mlp_down_proj = new(d, shape.d_ff)

    def forward(self, residual_PBTD: Tensor, shared: ForwardPass) -> Tensor:
        for reads in self.reads:
            added_PBTD: list[Tensor] = []
            for norm, branches in reads.items():
                u_PBTD = rms_norm(residual_PBTD, getattr(self, norm))
                present = [name for name in branches if name != "mamba2" or self.shape.d_ssm]
                added_PBTD += [getattr(self, name)(u_PBTD, shared) for name in present]
            residual_PBTD = residual_PBTD + functools.reduce(torch.add, added_PBTD)
        shared.tap("residual", residual_PBTD)
        return residual_PBTD

    def attention(self, u_PBTD: Tensor, shared: ForwardPass) -> Tensor:
        """The attention branch's contribution to the residual stream."""
        qkv = linear(u_PBTD, self.qkv, shared.scales["qkv"])
        y = attention.attention(qkv, self.shape.n_heads, self.shape.n_kv_heads, shared.rope, shared.mask)
        out_PBTD = linear(y, self.attention_out_proj, shared.scales["attention_out_proj"])
        shared.tap("qkv", qkv)
        shared.tap("attention_heads", y)
        shared.tap("attention_branch", out_PBTD)
        return out_PBTD

    def mlp(self, v_PBTD: Tensor, shared: ForwardPass) -> Tensor:
        """``m_down · W_down(W_up(v) · silu(m_gate · W_gate(v)))``; arXiv 2507.22448, §2."""
        gate_PBTF = linear(v_PBTD, self.mlp_gate_proj, shared.scales["mlp_gate_proj"])
        up_PBTF = linear(v_PBTD, self.mlp_up_proj, shared.scales.get("mlp_up_proj"))
        out_PBTD = linear(up_PBTF * F.silu(gate_PBTF), self.mlp_down_proj, shared.scales["mlp_down_proj"])
        shared.tap("gate", gate_PBTF)
        shared.tap("up", up_PBTF)
        shared.tap("mlp_branch", out_PBTD)
        return out_PBTD

    def mamba2(self, u_PBTD: Tensor, shared: ForwardPass) -> Tensor:
        """The Mamba-2 branch's contribution to the residual stream (arXiv 2405.21060, §7)."""
        shape = self.shape
        projected = linear(u_PBTD, self.ssm_in_proj, shared.scales["ssm_in_proj"])
        shared.tap("ssm_projected", projected[..., : shape.d_ssm + shape.d_conv])
        z, xBC, dt_PBTH = torch.split(projected, [shape.d_ssm, shape.d_conv, shape.n_ssm_heads], -1)
        dt_PBTH = F.softplus(at_least_fp32(dt_PBTH) + at_least_fp32(self.dt_bias)[:, None, None])
        xBC = F.silu(causal_conv(xBC, self.conv1d_weight, self.conv1d_bias, shared.documents))
        d_groups = shape.n_groups * shape.d_state
        x, B, C = torch.split(xBC, [shape.d_ssm, d_groups, d_groups], -1)
        x_PBTHK = torch.unflatten(x, -1, (shape.n_ssm_heads, -1))
        y_PBTHK = self.scan(
            x_PBTHK,
            dt_PBTH,
            -at_least_fp32(self.A_log).exp(),
            torch.unflatten(B, -1, (shape.n_groups, -1)),
            torch.unflatten(C, -1, (shape.n_groups, -1)),
            self.D,
            shared.documents,
            self.ssd_chunk,
        )
        y = (y_PBTHK.flatten(-2) * F.silu(at_least_fp32(z))).to(u_PBTD.dtype)
        if shape.gated_norm:
            y = rms_norm(y, self.gated_norm, shape.n_groups)
        out_PBTD = linear(y, self.ssm_out_proj, shared.scales["ssm_out_proj"])
        shared.tap("ssm_x", x_PBTHK)
        shared.tap("dt", dt_PBTH)
        shared.tap("ssm_heads", y_PBTHK)
        shared.tap("ssm_branch", out_PBTD)
        return out_PBTD


class Population(nn.Module):
    """``n_members`` Falcon-H1 models of one Shape, as one model. One member is an ordinary model.

    Parameters are allocated and hold no values yet; multipliers are 1 and rotary frequencies 0 until
    :meth:`set_roles`. Matrices are [P, out, in]; q, k and v are one matrix, z, x, B, C and dt another.

    Args:
        ssd_chunk: tokens that the SSD scan handles as one matrix; None: what suits the scan.
        scan: ``torch``, or ``mamba-ssm`` for its kernels on a GPU.
    """

    def __init__(
        self,
        shape: Shape,
        n_members: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        ssd_chunk: int | None = None,
        scan: str = "torch",
    ):
        super().__init__()
        if scan not in SCANS:
            raise ValueError(unknown("scan", scan, SCANS))
        self.shape, self.n_members, self.scan = shape, n_members, scan

        def new(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n_members, *size, device=device, dtype=dtype))

        self.embedding_weight = new(shape.vocab_size, shape.d_model)
        blocks = (Block(shape, n_members, scan, ssd_chunk, device, dtype) for _ in range(shape.n_layers))
        self.layers = nn.ModuleList(blocks)
        self.final_norm = new(shape.d_model)
        self.lm_head_weight = new(shape.vocab_size, shape.d_model)
        self.multipliers = nn.Module()
        for name in forward_at(shape):
            self.multipliers.register_buffer(name, torch.ones(n_members, device=device))
        self.rope_inverse_frequencies: Tensor
        self.register_buffer("rope_inverse_frequencies", torch.zeros(n_members, shape.head_dim // 2, device=device))

    @torch.no_grad()
    def set_roles(self, tables: Sequence[RoleTable]) -> None:
        """Fill multipliers and rotary frequencies from one role table a member."""
        if len(tables) != self.n_members:
            raise ValueError(f"{len(tables)} role tables for {self.n_members} members")
        for member, table in enumerate(tables):
            if table.shape != self.shape:
                raise ValueError(f"the role table of member {member} is for another Shape ({table.shape.name!r})")
            for name, buffer in self.multipliers.named_buffers():
                buffer[member] = table.forward[name]
            frequencies = attention.rope_inverse_frequencies(table.settings.rope_base, self.shape.head_dim)
            self.rope_inverse_frequencies[member] = frequencies

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Summed negative log likelihood of every member on every row, in nats: [P, B], fp32.

        Args:
            tokens_BT: token ids, the same for all members.
            targets_BT: the ids to predict; -100 is not predicted.
            documents_BT: number of the document that each token belongs to, non-decreasing from 0 in a row.
                None: a row is one document.
        """
        hidden_PBTD = self.hidden(tokens_BT, documents_BT)
        return linear_nll(hidden_PBTD, self.lm_head_weight, targets_BT)

    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """All logits at once, [P, B, T, V]: for checks at small sizes; :meth:`nll` never holds them."""
        return linear(self.hidden(tokens_BT, documents_BT), self.lm_head_weight)

    def hidden(self, tokens_BT: Tensor, documents_BT: Tensor | None = None, tap: Tap = no_tap) -> Tensor:
        """What lm_head reads, [P, B, T, D]: the final norm's output times the lm_head multiplier."""
        shared = self.forward_pass(tokens_BT.shape[1], documents_BT, tap)
        P, V, D = self.embedding_weight.shape
        # One look-up in all members' tables: its backward is one pass, where indexing dimension 1 takes one a
        # token.
        rows_PBT = tokens_BT + V * torch.arange(P, device=tokens_BT.device)[:, None, None]
        embedded_PBTD = F.embedding(rows_PBT, self.embedding_weight.view(P * V, D))
        residual_PBTD = embedded_PBTD * shared.scales["embedding_weight"][..., None]
        tap("embedding", residual_PBTD)
        for block in self.layers:
            residual_PBTD = block(residual_PBTD, shared)
        return rms_norm(residual_PBTD, self.final_norm * shared.scales["lm_head_weight"][:, 0])

    def weight_scales(self) -> dict[str, Tensor]:
        """Forward multipliers as factors on matrices, by the name of the parameter in a block or at the top.

        [P, rows, 1] for the input projections, [P, 1, 1] for the others; what is missing has none. lm_head's
        acts on the final norm's output instead, which is the same product.
        """
        m = {name: value.view(-1, 1, 1) for name, value in self.multipliers.named_buffers()}
        one = torch.ones_like(m["embedding"])

        def product(parameter: str, slice_: str) -> Tensor:
            return functools.reduce(torch.mul, [m[each.name] for each in acting_on(parameter, slice_)] or [one])

        scales = {}
        for parameter in dict.fromkeys(each.parameter for each in forward_at(self.shape).values()):
            slices = self.shape.slices.get(parameter, {"": 1})
            columns = [product(parameter, slice_).expand(-1, rows, -1) for slice_, rows in slices.items()]
            scales[parameter] = torch.cat(columns, 1)
        return scales

    def forward_pass(self, n_tokens: int, documents_BT: Tensor | None = None, tap: Tap = no_tap) -> ForwardPass:
        """What the layers share in a pass over rows of ``n_tokens``."""
        dtype = self.embedding_weight.dtype
        return ForwardPass(
            documents_BT,
            None if documents_BT is None else attention.document_mask(documents_BT),
            attention.rope_table(self.rope_inverse_frequencies, n_tokens, dtype),
            {name: scale.to(dtype) for name, scale in self.weight_scales().items()},
            tap,
        )

"""How fast could a training step be? FLOPs and bytes that it cannot do without, and the time they take.

Bytes are those of the fused design (``mup_tune.model.fused``) if no cache helps: every kernel reads its
inputs once and writes its outputs once. Residual stream, embedding, masters and moments are fp32;
activations, logits, work copies of matrices and their gradients are bf16. Left out, so that a floor stays a
floor: statistics of norms and softmax, states that a scan keeps, padding, and everything of one value a head
or channel.

Symbols: N tokens of a member step, T of a row, D d_model, W columns of a mixer's input projection, E of its
output projection, F d_ff, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mup_tune.shape import Shape

WORK, FP32 = 2, 4  # bytes
PARTS = ("layers", "head", "optimizer")


@dataclass(frozen=True)
class Machine:
    """What one device was measured to do: matrix products in FLOP/s, a copy in bytes/s read and written."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Operation:
    """One kernel, or the same one in every layer, in one step of one member."""

    part: str
    name: str
    flops: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Floor:
    """Least seconds of one step.

    Attributes:
        parts: of each part, the longer of its arithmetic and its traffic.
        total: the parts one after another.
        kernels: every operation takes the longer of its own two: what perfect kernels, one after another,
        could reach.
    """

    parts: dict[str, float]
    total: float
    kernels: float


def operations(shape: Shape, tokens: int, seq_len: int) -> list[Operation]:
    """All operations of one member's step; their FLOPs add up to ``shape.flops_per_token(seq_len) · tokens``.

    Args:
        tokens: N, of all rows of the step.
        seq_len: T. Attention is counted over whole rows, as in ``flops_per_token``, also where documents end
        earlier.

    Raises:
        ValueError: a block order other than SA_M.
    """
    if shape.block_order != "SA_M":
        raise ValueError(f"floors are for block order SA_M, not {shape.block_order}")
    N, D, L = tokens, shape.d_model, shape.n_layers
    qkv = shape.d_attn + 2 * shape.d_kv
    W, E = qkv + shape.d_in_proj, shape.d_attn + shape.d_ssm
    attention = 2.0 * shape.d_attn * seq_len * N * L
    scan = 4.0 * shape.d_state * shape.d_ssm * N * L
    scanned = shape.d_conv + shape.n_ssm_heads + shape.d_ssm  # x, B, C; dt; z

    def layers(name: str, values: float, flops: float = 0.0) -> Operation:
        return Operation("layers", name, flops, WORK * values * N * L)

    found = [
        *_norms(N, D, L),
        *_linear("layers", "mixer in", N, D, W, L),
        *_linear("layers", "mixer out", N, E, D, L),
        *_linear("layers", "mlp in", N, D, 2 * shape.d_ff, L),
        *_linear("layers", "mlp out", N, shape.d_ff, D, L),
        layers("attention", qkv + shape.d_attn, attention),
        layers("attention backward", 2 * shape.d_attn + 2 * qkv, 2 * attention),
        layers("conv", 2 * shape.d_conv),
        layers("conv backward", 3 * shape.d_conv),
        layers("ssd", scanned + shape.d_ssm, scan),
        layers("ssd backward", 2 * scanned + shape.d_ssm, 2 * scan),
        layers("swiglu", 3 * shape.d_ff),
        layers("swiglu backward", 5 * shape.d_ff),
        Operation("layers", "embedding", 0.0, FP32 * D * (min(N, shape.vocab_size) + N)),
        Operation("layers", "embedding backward", 0.0, FP32 * D * (N + shape.vocab_size)),
        *_linear("head", "lm_head", N, D, shape.vocab_size, 1),
        Operation("head", "loss", 0.0, 2.0 * WORK * N * shape.vocab_size),
        _optimizer(shape),
    ]
    if shape.gated_norm:
        found += [layers("gated norm", 2 * shape.d_ssm), layers("gated norm backward", 3 * shape.d_ssm)]
    return [each for each in found if each.bytes]


def floor(operations: Sequence[Operation], machine: Machine, members: int = 1) -> Floor:
    """Least time of one step of ``members``, which share nothing but the tokens."""
    parts = {}
    for part in PARTS:
        of_part = [each for each in operations if each.part == part]
        flops, moved = sum(each.flops for each in of_part), sum(each.bytes for each in of_part)
        parts[part] = members * Operation(part, part, flops, moved).seconds(machine)
    kernels = members * sum(each.seconds(machine) for each in operations)
    return Floor(parts, sum(parts.values()), kernels)


def _linear(part: str, name: str, tokens: int, inputs: int, outputs: int, layers: int) -> list[Operation]:
    """The three products of a projection; each reads two of input, output and weight and writes the third."""
    flops = 2.0 * tokens * inputs * outputs * layers
    moved = WORK * (float(tokens) * (inputs + outputs) + inputs * outputs) * layers
    products = (name, f"{name}, gradient of input", f"{name}, gradient of weight")
    return [Operation(part, product, flops, moved) for product in products]


def _norms(tokens: int, d_model: int, layers: int) -> list[Operation]:
    """Residual + branch, then the norm: two a layer and the final one, which no residual leaves."""
    forward = FP32 + WORK + FP32 + WORK  # residual, branch → sum, normed
    backward = FP32 + WORK + FP32 + FP32 + WORK  # gradients of both, sum → gradients of residual and branch
    values = float(tokens * d_model)
    # The first norm has no branch, and its sum is the residual itself.
    first_forward, first_backward = FP32 + WORK, backward - WORK
    inner = 2 * layers - 1
    return [
        Operation("layers", "add + norm", 0.0, values * (inner * forward + first_forward)),
        Operation("layers", "add + norm backward", 0.0, values * (inner * backward + first_backward)),
        Operation("head", "final norm", 0.0, values * forward),
        Operation("head", "final norm backward", 0.0, values * (backward - FP32)),
    ]


def _optimizer(shape: Shape) -> Operation:
    """Norm and AdamW.

    Gradients are read twice, masters and two moments are read and written, work copies are written.
    """
    matrices = shape.matmul_parameters()
    others = shape.parameters() - matrices
    state = 3 * 2 * FP32
    return Operation(
        "optimizer", "norm + AdamW", 0.0, float(matrices * (state + 2 * WORK + WORK) + others * (state + 2 * FP32))
    )

"""The registry of Falcon-H1's 35 µP multipliers: 12 forward, 16 learning-rate, 7 weight-decay.

The split 12 + 16 + 7 is arXiv 2601.04890 §2. The published base values are those of the released configs
(arXiv 2507.22448); the width rules are fitted to them and reproduce every released value. Which parameters
the 23 LR and WD multipliers belong to is inferred from the counts and the report's names: their values are
not public.

This file is data. What the multipliers do to a parameter is :mod:`mup_tune.roles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.shape import NonNegative, Positive, Shape

Kind = Literal["forward", "lr", "wd"]
DepthRule = Literal["none", "completep"]
REPORT, LEARNABLE, FITTED = "arXiv 2507.22448", "arXiv 2601.04890 §2", "fit to the released configs"


class Base(FrozenModel):
    """The base Shape of some Settings: the sizes at which every width and depth factor is 1."""

    d_model: Positive
    d_attn: Positive
    head_dim: Positive
    d_ssm: NonNegative
    d_state: Positive
    d_ff: Positive
    n_layers: Positive

    @classmethod
    def of(cls, shape: Shape) -> Base:
        return cls(**{field: getattr(shape, field) for field in cls.model_fields})


FALCON_H1_BASE = Base(d_model=1280, d_attn=768, head_dim=128, d_ssm=2048, d_state=256, d_ff=3840, n_layers=66)


@dataclass(frozen=True)
class Rule:
    """A width or depth rule: ``factor(shape, base)`` carries a base value to a Shape; ``formula`` is printed."""

    formula: str
    factor: Callable[[Shape, Base], float]
    source: str = FITTED


def constant(shape: Shape, base: Base) -> float:
    """1 at every Shape."""
    return 1.0


def per_d_model(shape: Shape, base: Base) -> float:
    """d₀/d: one contraction over the residual width."""
    return base.d_model / shape.d_model


def per_key(shape: Shape, base: Base) -> float:
    """(d₀/d)² · √(head_dim₀/head_dim): q and k each contract d; the softmax already divides by √head_dim."""
    return (base.d_model / shape.d_model) ** 2 * sqrt(base.head_dim / shape.head_dim)


def per_attention_out(shape: Shape, base: Base) -> float:
    """(d₀ · d_attn₀)/(d · d_attn): v contracts d, the output projection d_attn."""
    return base.d_model * base.d_attn / (shape.d_model * shape.d_attn)


def per_d_ssm(shape: Shape, base: Base) -> float:
    """d_ssm₀/d_ssm: the output projection contracts d_ssm; the input's 1/d sits in ``ssm_in``."""
    return base.d_ssm / shape.d_ssm


def per_d_state(shape: Shape, base: Base) -> float:
    """d_state₀/d_state: C·B contracts d_state."""
    return base.d_state / shape.d_state


def per_mlp_down(shape: Shape, base: Base) -> float:
    """(d₀ · d_ff₀)/(d · d_ff): down contracts d_ff and also carries up's 1/d."""
    return base.d_model * base.d_ff / (shape.d_model * shape.d_ff)


def per_n_layers(shape: Shape, base: Base) -> float:
    """L₀/L: the contributions of L layers to the residual stream keep their sum (CompleteP, α = 1)."""
    return base.n_layers / shape.n_layers


CONSTANT = Rule("1", constant)
D_MODEL = Rule("d₀/d", per_d_model)
KEY = Rule("(d₀/d)² · √(head_dim₀/head_dim)", per_key)
ATTENTION_OUT = Rule("(d₀·d_attn₀)/(d·d_attn)", per_attention_out)
D_SSM = Rule("d_ssm₀/d_ssm", per_d_ssm)
D_STATE = Rule("d_state₀/d_state", per_d_state)
MLP_DOWN = Rule("(d₀·d_ff₀)/(d·d_ff)", per_mlp_down)
NO_WIDTH_FACTOR = Rule("1", constant, REPORT)

# The factor on BRANCHES, and on AdamW's eps inside the blocks; at α = 1 it leaves η, λ and init alone.
COMPLETEP = Rule("L₀/L", per_n_layers, "arXiv 2505.01618, Table 1 at α = 1")
BRANCHES = ("attention_out", "ssm_out", "mlp_down")  # the forward multipliers that close a residual branch


@dataclass(frozen=True)
class Multiplier:
    """One tuned multiplier: its value at the base Shape in the released models, and its width rule."""

    name: str
    kind: Kind
    published: float
    rule: Rule
    source: str
    about: str

    @property
    def needs_ssm(self) -> bool:
        """Whether it acts on the Mamba-2 branch alone, so that it does nothing where d_ssm = 0."""
        return self.name.startswith(("ssm_", "conv1d", "A_log", "D.", "dt_bias"))


def _forward(name: str, log2: float, rule: Rule, about: str) -> Multiplier:
    return Multiplier(name, "forward", 2.0**log2, rule, f"{REPORT}; rule: {rule.source}", about)


def _lr(name: str, kind: Kind, about: str) -> Multiplier:
    return Multiplier(name, kind, 1.0, NO_WIDTH_FACTOR, f"{LEARNABLE} (count); membership inferred", about)


MATRICES = ("qkv", "attention_out_proj", "ssm_in_proj", "ssm_out_proj", "mlp_gate_proj", "mlp_up_proj", "mlp_down_proj")
EMBEDDINGS = ("embedding_weight", "lm_head_weight")
VECTORS = ("input_norm", "pre_ff_norm", "final_norm", "conv1d", "A_log", "D", "dt_bias")

_ALL = (
    _forward("embedding", 2.5, CONSTANT, "on the token embedding"),
    _forward("lm_head", -5, D_MODEL, "on the logits"),
    _forward("key", -2.5, KEY, "on k, before rotary embedding"),
    _forward("attention_out", -1, ATTENTION_OUT, "on the attention branch's output"),
    _forward("ssm_z", -1.5, CONSTANT, "on the SSM's gate z, before SiLU"),
    _forward("ssm_x", -2, CONSTANT, "on the SSM's input x, before the convolution"),
    _forward("ssm_B", -2.5, D_STATE, "on the SSM's B, before the convolution"),
    _forward("ssm_C", -1, CONSTANT, "on the SSM's C, before the convolution"),
    _forward("ssm_dt", -1.5, CONSTANT, "on dt, before dt_bias and softplus: the report's dt attenuation"),
    _forward("ssm_out", -2.5, D_SSM, "on the SSM branch's output"),
    _forward("mlp_gate", -0.5, D_MODEL, "on the MLP's gate, before SiLU"),
    _forward("mlp_down", -2, MLP_DOWN, "on the MLP's output"),
    *(_lr(f"{name}.elr", "lr", f"ELR multiplier of {name}: η·m/m_ewd, λ·m·m_ewd") for name in MATRICES),
    *(_lr(f"{name}.elr", "lr", f"ELR multiplier of {name}: η·m, λ·m") for name in EMBEDDINGS),
    *(_lr(f"{name}.lr", "lr", f"LR multiplier of {name}: η·m, never decayed") for name in VECTORS),
    *(_lr(f"{name}.ewd", "wd", f"EWD multiplier of {name}: η·m_elr/m, λ·m_elr·m") for name in MATRICES),
)
MULTIPLIERS: dict[str, Multiplier] = {multiplier.name: multiplier for multiplier in _ALL}
MULTIPLIER_NAMES: tuple[str, ...] = tuple(MULTIPLIERS)


def scaling_rule(name: str, depth_rule: DepthRule) -> Rule:
    """What carries a multiplier's base value to a Shape: its width rule, on a branch times the depth rule's."""
    width = MULTIPLIERS[name].rule
    if depth_rule == "none" or name not in BRANCHES:
        return width
    return Rule(
        f"{width.formula} · {COMPLETEP.formula}",
        lambda shape, base: width.factor(shape, base) * COMPLETEP.factor(shape, base),
        f"{width.source}; {COMPLETEP.source}",
    )


GROUPS: dict[str, tuple[str, ...]] = {
    "forward": tuple(m.name for m in MULTIPLIERS.values() if m.kind == "forward"),
    "matrix_lr": tuple(f"{name}.elr" for name in (*MATRICES, *EMBEDDINGS)),
    "matrix_wd": tuple(f"{name}.ewd" for name in MATRICES),
    "vector_lr": tuple(f"{name}.lr" for name in VECTORS),
    "all": MULTIPLIER_NAMES,
    "most_sensitive": ("embedding", "lm_head", "embedding_weight.elr", "lm_head_weight.elr", "mlp_down"),
}

"""The registry of Falcon-H1's 35 µP multipliers: 12 forward, 16 learning-rate, 7 weight-decay.

The split 12 + 16 + 7 is arXiv 2601.04890 §2. The published base values are those of the released configs
(arXiv 2507.22448); the width rules are fitted to them and reproduce every released value. Which parameters
the 23 LR and WD multipliers belong to is inferred from the counts and the report's names: their values are
not public.

This file is data, and all that there is to say about a multiplier: the role table, the population and the
exported config read from here what it acts on. How a parameter is scaled is :mod:`mup_tune.roles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from mup_tune.choices import DepthRule
from mup_tune.files import FrozenModel
from mup_tune.shape import NonNegative, Positive, Shape

Kind = Literal["forward", "fixed", "lr", "wd"]  # fixed: a forward factor of the config without a tuned value
Branch = Literal["embedding", "block", "attention", "ssm", "mlp", "head"]  # block: read by every mixer
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
    """A width or depth rule. ``factor(shape, base)`` carries a base value over; ``formula`` is printed."""

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

# The factor on what closes a residual branch, and on AdamW's eps inside the blocks. At α = 1 it leaves η, λ
# and init alone.
COMPLETEP = Rule("L₀/L", per_n_layers, "arXiv 2505.01618, Table 1 at α = 1")

# The parameter groups by our names, and the branch that each belongs to. A matrix has an ELR and an EWD
# multiplier, an embedding an ELR multiplier, a vector an LR multiplier.
MATRICES: dict[str, Branch] = {
    "qkv": "attention",
    "attention_out_proj": "attention",
    "ssm_in_proj": "ssm",
    "ssm_out_proj": "ssm",
    "mlp_gate_proj": "mlp",
    "mlp_up_proj": "mlp",
    "mlp_down_proj": "mlp",
}
EMBEDDINGS: dict[str, Branch] = {"embedding_weight": "embedding", "lm_head_weight": "head"}
VECTORS: dict[str, Branch] = {
    "input_norm": "block",
    "pre_ff_norm": "mlp",
    "final_norm": "head",
    "conv1d": "ssm",
    "A_log": "ssm",
    "D": "ssm",
    "dt_bias": "ssm",
}


@dataclass(frozen=True)
class Multiplier:
    """One multiplier: its released value at the base Shape, its width rule, and what it acts on.

    A forward multiplier scales the output of the matrix ``parameter``, or of the rows of it that
    :attr:`mup_tune.shape.Shape.slices` names ``slice``. It stands in ``config_field`` of ``FalconH1Config``,
    at ``config_index`` where that is a list. One that ``closes_branch`` takes the depth rule's factor too. An
    LR or WD multiplier belongs to the parameter group ``parameter``.
    """

    name: str
    kind: Kind
    published: float
    rule: Rule
    source: str
    about: str
    parameter: str
    slice: str = ""
    config_field: str = ""
    config_index: int | None = None
    closes_branch: bool = False

    @property
    def branch(self) -> Branch:
        """The branch whose parameters it acts on."""
        return (MATRICES | EMBEDDINGS | VECTORS)[self.parameter]

    @property
    def config_path(self) -> str:
        """Where ``config.json`` holds a forward multiplier: ``mlp_multipliers[0]``."""
        return self.config_field if self.config_index is None else f"{self.config_field}[{self.config_index}]"

    @property
    def needs_ssm(self) -> bool:
        """Whether it acts on the Mamba-2 branch alone, so that it does nothing where d_ssm = 0."""
        return self.branch == "ssm"


def _forward(
    name: str,
    log2: float,
    rule: Rule,
    about: str,
    parameter: str,
    slice_: str = "",
    *,
    place: tuple[str, int | None] | None = None,
    kind: Kind = "forward",
    closes_branch: bool = False,
) -> Multiplier:
    field, index = place or (f"{name}_multiplier", None)
    source = f"{REPORT}; rule: {rule.source}"
    return Multiplier(name, kind, 2.0**log2, rule, source, about, parameter, slice_, field, index, closes_branch)


def _ssm(index: int, slice_: str, log2: float, rule: Rule, about: str) -> Multiplier:
    place = ("ssm_multipliers", index)
    return _forward(f"ssm_{slice_}", log2, rule, about, "ssm_in_proj", slice_, place=place)


def _rate(kind: Kind, suffix: str, group: str, about: str) -> Multiplier:
    source = f"{LEARNABLE} (count); membership inferred"
    return Multiplier(f"{group}.{suffix}", kind, 1.0, NO_WIDTH_FACTOR, source, about, group)


# In the order of Settings' files and of FalconH1Config's fields.
_ALL = (
    _forward("embedding", 2.5, CONSTANT, "on the token embedding", "embedding_weight"),
    _forward("lm_head", -5, D_MODEL, "on the logits", "lm_head_weight"),
    _forward("key", -2.5, KEY, "on k, before rotary embedding", "qkv", "k"),
    _forward("attention_in", 0, CONSTANT, "on q, k and v", "qkv", kind="fixed"),
    _forward(
        "attention_out", -1, ATTENTION_OUT, "on the attention branch's output", "attention_out_proj", closes_branch=True
    ),
    _forward("ssm_in", 0, D_MODEL, "on z, x, B, C and dt", "ssm_in_proj", kind="fixed"),
    _ssm(0, "z", -1.5, CONSTANT, "on the SSM's gate z, before SiLU"),
    _ssm(1, "x", -2, CONSTANT, "on the SSM's input x, before the convolution"),
    _ssm(2, "B", -2.5, D_STATE, "on the SSM's B, before the convolution"),
    _ssm(3, "C", -1, CONSTANT, "on the SSM's C, before the convolution"),
    _ssm(4, "dt", -1.5, CONSTANT, "on dt, before dt_bias and softplus: the report's dt attenuation"),
    _forward("ssm_out", -2.5, D_SSM, "on the SSM branch's output", "ssm_out_proj", closes_branch=True),
    _forward(
        "mlp_gate", -0.5, D_MODEL, "on the MLP's gate, before SiLU", "mlp_gate_proj", place=("mlp_multipliers", 0)
    ),
    _forward(
        "mlp_down",
        -2,
        MLP_DOWN,
        "on the MLP's output",
        "mlp_down_proj",
        place=("mlp_multipliers", 1),
        closes_branch=True,
    ),
    *(_rate("lr", "elr", group, f"ELR multiplier of {group}: η·m/m_ewd, λ·m·m_ewd") for group in MATRICES),
    *(_rate("lr", "elr", group, f"ELR multiplier of {group}: η·m, λ·m") for group in EMBEDDINGS),
    *(_rate("lr", "lr", group, f"LR multiplier of {group}: η·m, never decayed") for group in VECTORS),
    *(_rate("wd", "ewd", group, f"EWD multiplier of {group}: η·m_elr/m, λ·m_elr·m") for group in MATRICES),
)
MULTIPLIERS: dict[str, Multiplier] = {each.name: each for each in _ALL if each.kind != "fixed"}
MULTIPLIER_NAMES: tuple[str, ...] = tuple(MULTIPLIERS)
# What scales a forward pass: the 12 forward multipliers and the two fixed factors.
FORWARD: dict[str, Multiplier] = {each.name: each for each in _ALL if each.kind in ("forward", "fixed")}
# The LR and the WD multiplier of a parameter group, by the group.
LR_OF = {each.parameter: each.name for each in _ALL if each.kind == "lr"}
WD_OF = {each.parameter: each.name for each in _ALL if each.kind == "wd"}


def forward_at(shape: Shape) -> dict[str, Multiplier]:
    """What scales a forward pass of a model of this Shape; nothing of the SSM's where d_ssm = 0."""
    return {name: each for name, each in FORWARD.items() if shape.d_ssm or not each.needs_ssm}


def acting_on(parameter: str, slice_: str = "") -> list[Multiplier]:
    """What scales the output of a slice: the factors of its whole matrix, then those of the slice alone."""
    acting = (each for each in FORWARD.values() if each.parameter == parameter and each.slice in ("", slice_))
    return sorted(acting, key=lambda each: each.slice)


def scaling_rule(name: str, depth_rule: DepthRule) -> Rule:
    """What carries a base value to a Shape: its width rule, times the depth rule's if it closes a branch."""
    multiplier = FORWARD[name] if name in FORWARD else MULTIPLIERS[name]
    width = multiplier.rule
    if depth_rule == "none" or not multiplier.closes_branch:
        return width
    return Rule(
        f"{width.formula} · {COMPLETEP.formula}",
        lambda shape, base: width.factor(shape, base) * COMPLETEP.factor(shape, base),
        f"{width.source}; {COMPLETEP.source}",
    )


GROUPS: dict[str, tuple[str, ...]] = {
    "forward": tuple(each.name for each in MULTIPLIERS.values() if each.kind == "forward"),
    "matrix_lr": tuple(LR_OF[group] for group in (*MATRICES, *EMBEDDINGS)),
    "matrix_wd": tuple(WD_OF.values()),
    "vector_lr": tuple(LR_OF[group] for group in VECTORS),
    "all": MULTIPLIER_NAMES,
    "most_sensitive": ("embedding", "lm_head", "embedding_weight.elr", "lm_head_weight.elr", "mlp_down"),
}

"""The role table: the only owner of every scaling.

``role_table(shape, settings)`` resolves, once, what each parameter slice of a Falcon-H1 model gets: init,
forward multiplier, LR, WD and eps. The model, the optimizer, the exports and the printed tables all read it;
nothing hangs scaling state on parameters or modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Literal

from mup_tune.errors import UserError
from mup_tune.multipliers import (
    COMPLETEP,
    FITTED,
    LEARNABLE,
    MULTIPLIERS,
    REPORT,
    Rule,
    constant,
    per_d_model,
    scaling_rule,
)
from mup_tune.settings import Init, Settings
from mup_tune.shape import Shape

EPS = 1e-16  # on every row and at every width (arXiv 2507.22448)
Distribution = Literal["normal", "zeros", "ones", "conv_uniform", "log_uniform_A", "softplus_inverse_dt"]
# The two multiplier fields of the config that carry no tuned value.
FIXED = {"attention_in": Rule("1", constant), "ssm_in": Rule("d₀/d", per_d_model)}


@dataclass(frozen=True)
class Role:
    """One slice of one ``transformers`` parameter; ``{layer}`` stands for every layer.

    ``shape`` is the slice's own shape, ``multiplier`` the product of the forward multipliers on its output,
    ``init_std`` is None where the init is not zero-mean (the ``init`` distribution then says it all).
    """

    parameter: str
    slice: str
    shape: tuple[int, ...]
    init: Distribution
    init_std: float | None
    multiplier: float
    lr: float
    weight_decay: float
    eps: float
    rule: str
    source: str


@dataclass(frozen=True)
class RoleTable:
    """``rows`` in model order; ``forward`` holds the 14 multiplier fields of ``FalconH1Config`` by our names."""

    shape: Shape
    settings: Settings
    rows: tuple[Role, ...]
    forward: dict[str, float]

    @cached_property
    def by_parameter(self) -> dict[str, tuple[Role, ...]]:
        """Slices of every parameter template, in order along its first dimension."""
        found: dict[str, tuple[Role, ...]] = {}
        for row in self.rows:
            found[row.parameter] = (*found.get(row.parameter, ()), row)
        return found

    def of(self, parameter: str) -> tuple[Role, ...]:
        """The slices of a concrete parameter such as ``model.layers.3.mamba.in_proj.weight``.

        Raises:
            UserError: no row owns this parameter.
        """
        template = re.sub(r"\.layers\.\d+\.", ".layers.{layer}.", parameter)
        if template not in self.by_parameter:
            raise UserError(f"no role for the parameter {parameter!r}", fix="Is this a Falcon-H1 model of this Shape?")
        return self.by_parameter[template]

    def parameters(self) -> list[str]:
        """Every concrete parameter name of a model of this Shape."""
        names: list[str] = []
        per_layer = [name for name in self.by_parameter if "{layer}" in name]
        for name in self.by_parameter:
            if name not in per_layer:
                names.append(name)
            elif name == per_layer[0]:
                names += [each.format(layer=layer) for layer in range(self.shape.n_layers) for each in per_layer]
        return names


def forward_multipliers(shape: Shape, settings: Settings) -> dict[str, float]:
    """The 12 tuned multipliers at ``shape`` and the two fixed ones, ``ssm_in`` = d₀/d and ``attention_in`` = 1."""
    base = settings.base
    if shape.d_ssm and not base.d_ssm:
        raise UserError(
            f"these Settings were tuned without an SSM branch (base d_ssm = 0) and the Shape has d_ssm = {shape.d_ssm}",
            field="base.d_ssm",
            fix="Tune on a proxy with an SSM branch",
        )
    values = {name: rule.factor(shape, base) for name, rule in FIXED.items()}
    for multiplier in MULTIPLIERS.values():
        if multiplier.kind == "forward" and (shape.d_ssm or not multiplier.needs_ssm):
            rule = scaling_rule(multiplier.name, settings.depth_rule)
            values[multiplier.name] = settings.multipliers[multiplier.name] * rule.factor(shape, base)
    return values


def group_lr_wd(settings: Settings, group: str) -> tuple[float, float]:
    """(η, λ) of a parameter group: matrices η·mE/mW and λ·mE·mW, embeddings with mW = 1, vectors with λ = 0."""
    if f"{group}.lr" in settings.multipliers:
        return settings.eta * settings.multipliers[f"{group}.lr"], 0.0
    m_elr = settings.multipliers[f"{group}.elr"]
    m_ewd = settings.multipliers.get(f"{group}.ewd", 1.0)
    return settings.eta * m_elr / m_ewd, settings.lam * m_elr * m_ewd


def hidden_std(init: Init, fan_in: int, base_fan_in: int) -> float:
    """σ₀ · √(fan_in/fan_in₀) under ``fan_in``, σ₀ under ``constant``; see :class:`mup_tune.settings.Init`."""
    sigma = base_fan_in**-0.5 if init.hidden == "rsqrt_fan_in" else float(init.hidden)
    return sigma * sqrt(fan_in / base_fan_in) if init.rule == "fan_in" else sigma


def role_table(shape: Shape, settings: Settings) -> RoleTable:
    """Resolve ``settings`` at ``shape``: one row per parameter slice, in the order of the forward pass."""
    m, base, init = forward_multipliers(shape, settings), settings.base, settings.init
    d, layer = shape.d_model, "model.layers.{layer}."
    rows: list[Role] = []

    def add(
        parameter: str,
        slice_: str,
        size: tuple[int, ...],
        group: str,
        distribution: Distribution,
        std: float | None,
        multiplier: float,
        rule: str,
        source: str,
    ) -> None:
        lr, weight_decay = group_lr_wd(settings, group)
        eps = EPS
        if settings.depth_rule == "completep" and parameter.startswith(layer):
            # Gradients inside a branch carry its factor, and eps is compared with them.
            eps *= COMPLETEP.factor(shape, base)
            rule, source = f"{rule}; eps ∝ {COMPLETEP.formula}", f"{source}; {COMPLETEP.source}"
        rows.append(Role(parameter, slice_, size, distribution, std, multiplier, lr, weight_decay, eps, rule, source))

    def matrix(
        parameter: str, size: tuple[int, int], group: str, base_fan_in: int, used: str, slice_: str = ""
    ) -> None:
        names = used.split(" · ") if used else []
        product, formulas = 1.0, []
        for name in names:
            product *= m[name]
            formula = FIXED[name].formula if name in FIXED else scaling_rule(name, settings.depth_rule).formula
            formulas.append(f"{name} ∝ {formula}" if formula != "1" else f"{name} constant")
        std = hidden_std(init, size[1], base_fan_in)
        growth = "σ₀·√(fan_in/fan_in₀)" if init.rule == "fan_in" else "σ₀ constant"
        rule = f"init {growth}" + (f"; {', '.join(formulas)}" if formulas else "; no multiplier") + "; η, λ constant"
        source = f"{REPORT}; {FITTED}; init arXiv 2203.03466 Table 8"
        add(parameter, slice_, size, group, "normal", std, product, rule, source)

    def vector(parameter: str, size: tuple[int, ...], group: str, distribution: Distribution, rule: str) -> None:
        std = {"ones": 0.0, "conv_uniform": (3 * shape.conv_kernel) ** -0.5}.get(distribution)
        extra = parameter.endswith(("mamba.norm.weight", "pre_attention_layernorm.weight"))
        inferred = "; membership of this norm inferred" if extra else ""
        rule += "; η constant, not decayed"
        add(parameter, "", size, group, distribution, std, 1.0, rule, LEARNABLE + inferred)

    add(
        "model.embed_tokens.weight",
        "",
        (shape.vocab_size, d),
        "embedding_weight",
        "normal",
        init.embedding,
        m["embedding"],
        "init constant; embedding constant; η, λ constant",
        f"{REPORT}; decay inferred",
    )
    vector(layer + "input_layernorm.weight", (d,), "input_norm", "ones", "init 1")
    if shape.d_ssm:
        mamba, groups = layer + "mamba.", shape.n_groups * shape.d_state
        sizes = {"z": shape.d_ssm, "x": shape.d_ssm, "B": groups, "C": groups, "dt": shape.n_ssm_heads}
        for slice_, size in sizes.items():
            matrix(mamba + "in_proj.weight", (size, d), "ssm_in_proj", base.d_model, f"ssm_in · ssm_{slice_}", slice_)
        kernel = shape.conv_kernel
        vector(mamba + "conv1d.weight", (shape.d_conv, 1, kernel), "conv1d", "conv_uniform", "init U(±kernel^-½)")
        vector(mamba + "conv1d.bias", (shape.d_conv,), "conv1d", "conv_uniform", "init U(±kernel^-½)")
        heads = (shape.n_ssm_heads,)
        vector(mamba + "dt_bias", heads, "dt_bias", "softplus_inverse_dt", "init softplus⁻¹(log-uniform 1e-3 … 0.1)")
        vector(mamba + "A_log", heads, "A_log", "log_uniform_A", "init log U(1, 16)")
        vector(mamba + "D", heads, "D", "ones", "init 1")
        if shape.gated_norm:
            vector(mamba + "norm.weight", (shape.d_ssm,), "input_norm", "ones", "init 1")
        matrix(mamba + "out_proj.weight", (d, shape.d_ssm), "ssm_out_proj", base.d_ssm, "ssm_out")
    if shape.has_attention_norm:
        vector(layer + "pre_attention_layernorm.weight", (d,), "input_norm", "ones", "init 1")
    attention = layer + "self_attn."
    matrix(attention + "q_proj.weight", (shape.d_attn, d), "qkv", base.d_model, "attention_in")
    matrix(attention + "k_proj.weight", (shape.d_kv, d), "qkv", base.d_model, "attention_in · key")
    matrix(attention + "v_proj.weight", (shape.d_kv, d), "qkv", base.d_model, "attention_in")
    matrix(attention + "o_proj.weight", (d, shape.d_attn), "attention_out_proj", base.d_attn, "attention_out")
    vector(layer + "pre_ff_layernorm.weight", (d,), "pre_ff_norm", "ones", "init 1")
    mlp = layer + "feed_forward."
    matrix(mlp + "gate_proj.weight", (shape.d_ff, d), "mlp_gate_proj", base.d_model, "mlp_gate")
    matrix(mlp + "up_proj.weight", (shape.d_ff, d), "mlp_up_proj", base.d_model, "")
    matrix(mlp + "down_proj.weight", (d, shape.d_ff), "mlp_down_proj", base.d_ff, "mlp_down")
    vector("model.final_layernorm.weight", (d,), "final_norm", "ones", "init 1")
    head = {"zero": 0.0, "rsqrt_fan_in": base.d_model**-0.5}.get(str(init.lm_head))
    add(
        "lm_head.weight",
        "",
        (shape.vocab_size, d),
        "lm_head_weight",
        "zeros" if head == 0.0 else "normal",
        float(init.lm_head) if head is None else head,
        m["lm_head"],
        "init constant; lm_head ∝ d₀/d; η, λ constant",
        f"{REPORT}; decay inferred",
    )
    table = RoleTable(shape, settings, tuple(rows), m)
    for parameter, slices in table.by_parameter.items():
        if len({(row.lr, row.weight_decay, row.eps) for row in slices}) != 1:
            raise AssertionError(f"{parameter}: LR, WD and eps must not vary inside one parameter")
    return table

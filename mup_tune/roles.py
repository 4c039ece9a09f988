"""The role table: the only owner of every scaling.

``role_table(shape, settings)`` resolves, once, what each parameter slice of a Falcon-H1 model gets: init,
forward multiplier, LR, WD and eps. The model, the optimizer, the exports and the printed tables all read it;
nothing hangs scaling state on parameters or modules.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Literal

from mup_tune.errors import UserError
from mup_tune.multipliers import (
    COMPLETEP,
    FITTED,
    LEARNABLE,
    LR_OF,
    REPORT,
    VECTORS,
    WD_OF,
    acting_on,
    forward_at,
    scaling_rule,
)
from mup_tune.settings import Init, Settings
from mup_tune.shape import Shape

EPS = 1e-16  # on every row and at every width (arXiv 2507.22448)
Distribution = Literal["normal", "zeros", "ones", "conv_uniform", "log_uniform_A", "softplus_inverse_dt"]

_LAYER = "model.layers.{layer}."
# What ``transformers`` calls our parameters; {layer} stands for every layer. Its names of one of ours are its
# row ranges, in order.
HF_NAMES: dict[str, tuple[str, ...]] = {
    "embedding_weight": ("model.embed_tokens.weight",),
    "input_norm": (_LAYER + "input_layernorm.weight",),
    "ssm_in_proj": (_LAYER + "mamba.in_proj.weight",),
    "conv1d_weight": (_LAYER + "mamba.conv1d.weight",),
    "conv1d_bias": (_LAYER + "mamba.conv1d.bias",),
    "dt_bias": (_LAYER + "mamba.dt_bias",),
    "A_log": (_LAYER + "mamba.A_log",),
    "D": (_LAYER + "mamba.D",),
    "gated_norm": (_LAYER + "mamba.norm.weight",),
    "ssm_out_proj": (_LAYER + "mamba.out_proj.weight",),
    "pre_attention_norm": (_LAYER + "pre_attention_layernorm.weight",),  # of S_A_M, which transformers lacks
    "qkv": tuple(f"{_LAYER}self_attn.{slice_}_proj.weight" for slice_ in "qkv"),
    "attention_out_proj": (_LAYER + "self_attn.o_proj.weight",),
    "pre_ff_norm": (_LAYER + "pre_ff_layernorm.weight",),
    "mlp_gate_proj": (_LAYER + "feed_forward.gate_proj.weight",),
    "mlp_up_proj": (_LAYER + "feed_forward.up_proj.weight",),
    "mlp_down_proj": (_LAYER + "feed_forward.down_proj.weight",),
    "final_norm": ("model.final_layernorm.weight",),
    "lm_head_weight": ("lm_head.weight",),
}
INFERRED = dict.fromkeys(("gated_norm", "pre_attention_norm"), "input_norm")  # norms whose group is inferred
# The parameter group, where it is not the parameter's own name.
PARAMETER_GROUP = {**dict.fromkeys(("conv1d_weight", "conv1d_bias"), "conv1d"), **INFERRED}


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
    """``rows`` in model order; ``forward`` holds the config's multipliers by our names."""

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
        slices = self.by_parameter.get(_template(parameter))
        if slices is None:
            raise UserError(f"no role for the parameter {parameter!r}", fix="Is this a Falcon-H1 model of this Shape?")
        return slices

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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every concrete parameter, in the order of :meth:`parameters`."""
        whole = {
            name: (sum(row.shape[0] for row in slices), *slices[0].shape[1:])
            for name, slices in self.by_parameter.items()
        }
        return {name: whole[_template(name)] for name in self.parameters()}


@functools.lru_cache(maxsize=4096)
def _template(parameter: str) -> str:
    return re.sub(r"\.layers\.\d+\.", ".layers.{layer}.", parameter)


def forward_multipliers(shape: Shape, settings: Settings) -> dict[str, float]:
    """What scales a forward pass at ``shape``: tuned multipliers, and fixed ones, which are 1 at the base.

    Raises:
        UserError: the Shape has an SSM branch, and the base has none.
    """
    base = settings.base
    if shape.d_ssm and not base.d_ssm:
        raise UserError(
            f"these Settings were tuned without an SSM branch (base d_ssm = 0) and the Shape has d_ssm = {shape.d_ssm}",
            field="base.d_ssm",
            fix="Tune on a proxy with an SSM branch",
        )
    rules = {name: scaling_rule(name, settings.depth_rule) for name in forward_at(shape)}
    return {name: settings.multipliers.get(name, 1.0) * rule.factor(shape, base) for name, rule in rules.items()}


def group_lr_wd(settings: Settings, group: str) -> tuple[float, float]:
    """(η, λ) of a parameter group: η·mE/mW and λ·mE·mW. An embedding has mW = 1, a vector η·m and λ = 0."""
    m_lr = settings.multipliers[LR_OF[group]]
    if group in VECTORS:
        return settings.eta * m_lr, 0.0
    m_ewd = settings.multipliers[WD_OF[group]] if group in WD_OF else 1.0
    return settings.eta * m_lr / m_ewd, settings.lam * m_lr * m_ewd


def hidden_std(init: Init, fan_in: int, base_fan_in: int) -> float:
    """σ₀ · √(fan_in/fan_in₀) under ``fan_in``, σ₀ under ``constant``; see :class:`mup_tune.settings.Init`."""
    sigma = base_fan_in**-0.5 if init.hidden == "rsqrt_fan_in" else float(init.hidden)
    return sigma * sqrt(fan_in / base_fan_in) if init.rule == "fan_in" else sigma


def role_table(shape: Shape, settings: Settings) -> RoleTable:
    """Resolve ``settings`` at ``shape``: one row per parameter slice, in the order of the forward pass."""
    forward, base, init, d = forward_multipliers(shape, settings), settings.base, settings.init, shape.d_model
    rows: list[Role] = []

    def add(
        ours: str,
        parameter: str,
        slice_: str,
        size: tuple[int, ...],
        distribution: Distribution,
        std: float | None,
        multiplier: float,
        rule: str,
        source: str,
    ) -> None:
        lr, weight_decay = group_lr_wd(settings, PARAMETER_GROUP.get(ours, ours))
        eps = EPS
        if settings.depth_rule == "completep" and parameter.startswith(_LAYER):
            # Gradients inside a branch carry its factor, and eps is compared with them.
            eps *= COMPLETEP.factor(shape, base)
            rule, source = f"{rule}; eps ∝ {COMPLETEP.formula}", f"{source}; {COMPLETEP.source}"
        rows.append(Role(parameter, slice_, size, distribution, std, multiplier, lr, weight_decay, eps, rule, source))

    def weight(ours: str, size: tuple[int, int], std: float, growth: str, source: str) -> None:
        slices, names = shape.slices.get(ours, {"": size[0]}), HF_NAMES[ours]
        for index, (slice_, n_rows) in enumerate(slices.items()):
            acting = acting_on(ours, slice_)
            rules = {each.name: scaling_rule(each.name, settings.depth_rule).formula for each in acting}
            said = [f"{name} constant" if formula == "1" else f"{name} ∝ {formula}" for name, formula in rules.items()]
            # A slice with a name of its own in transformers is a parameter there.
            parameter, label = (names[0], slice_) if len(names) == 1 else (names[index], "")
            add(
                ours,
                parameter,
                label,
                (n_rows, size[1]),
                "normal" if std else "zeros",
                std,
                prod((forward[name] for name in rules), start=1.0),
                f"init {growth}; {', '.join(said) or 'no multiplier'}; η, λ constant",
                source,
            )

    def hidden(ours: str, size: tuple[int, int], base_fan_in: int) -> None:
        growth = "σ₀·√(fan_in/fan_in₀)" if init.rule == "fan_in" else "σ₀ constant"
        source = f"{REPORT}; {FITTED}; init arXiv 2203.03466 Table 8"
        weight(ours, size, hidden_std(init, size[1], base_fan_in), growth, source)

    def vocabulary(ours: str, std: float) -> None:
        weight(ours, (shape.vocab_size, d), std, "constant", f"{REPORT}; decay inferred")

    def vector(ours: str, size: tuple[int, ...], distribution: Distribution, said: str) -> None:
        std = {"ones": 0.0, "conv_uniform": (3 * shape.conv_kernel) ** -0.5}.get(distribution)
        source = LEARNABLE + ("; membership of this norm inferred" if ours in INFERRED else "")
        add(ours, HF_NAMES[ours][0], "", size, distribution, std, 1.0, f"init {said}; η constant, not decayed", source)

    def norm(ours: str, width: int = d) -> None:
        vector(ours, (width,), "ones", "1")

    vocabulary("embedding_weight", init.embedding)
    norm("input_norm")
    if shape.d_ssm:
        heads = (shape.n_ssm_heads,)
        hidden("ssm_in_proj", (shape.d_in_proj, d), base.d_model)
        vector("conv1d_weight", (shape.d_conv, 1, shape.conv_kernel), "conv_uniform", "U(±kernel^-½)")
        vector("conv1d_bias", (shape.d_conv,), "conv_uniform", "U(±kernel^-½)")
        vector("dt_bias", heads, "softplus_inverse_dt", "softplus⁻¹(log-uniform 1e-3 … 0.1)")
        vector("A_log", heads, "log_uniform_A", "log U(1, 16)")
        vector("D", heads, "ones", "1")
        if shape.gated_norm:
            norm("gated_norm", shape.d_ssm)
        hidden("ssm_out_proj", (d, shape.d_ssm), base.d_ssm)
    if shape.has_attention_norm:
        norm("pre_attention_norm")
    hidden("qkv", (shape.d_attn + 2 * shape.d_kv, d), base.d_model)
    hidden("attention_out_proj", (d, shape.d_attn), base.d_attn)
    norm("pre_ff_norm")
    hidden("mlp_gate_proj", (shape.d_ff, d), base.d_model)
    hidden("mlp_up_proj", (shape.d_ff, d), base.d_model)
    hidden("mlp_down_proj", (d, shape.d_ff), base.d_ff)
    norm("final_norm")
    lm_head = {"zero": 0.0, "rsqrt_fan_in": base.d_model**-0.5}.get(str(init.lm_head))
    vocabulary("lm_head_weight", float(init.lm_head) if lm_head is None else lm_head)
    table = RoleTable(shape, settings, tuple(rows), forward)
    for parameter, slices in table.by_parameter.items():
        if len({(row.lr, row.weight_decay, row.eps) for row in slices}) != 1:
            raise AssertionError(f"{parameter}: LR, WD and eps must not vary inside one parameter")
    return table

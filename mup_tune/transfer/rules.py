"""The rules that carry Settings to a target, each named with its factor and its source.

Settings are changed here and nowhere else: depth rule, batch, horizon, tied groups. Widths and init are the
role table's, and are only told.
"""

from __future__ import annotations

from math import sqrt

from mup_tune.choices import DepthRule, Horizon
from mup_tune.errors import UserError
from mup_tune.multipliers import COMPLETEP, FORWARD, LR_OF, REPORT, WD_OF, forward_at
from mup_tune.roles import hidden_std
from mup_tune.schedule import batch_lr_factor
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer.provenance import Rule
from mup_tune.transfer.resolve import Tuned

TIMESCALE = "AdamW averages over 1/(η·λ) steps; arXiv 2405.13698"
GATE_UP = ("mlp_gate_proj", "mlp_up_proj")
# Which size a hidden matrix contracts, and whose they are: what init ∝ √fan_in is told of.
FAN_IN = {
    "d_model": "qkv, ssm_in_proj, mlp_gate_proj and mlp_up_proj",
    "d_attn": "attention_out_proj",
    "d_ssm": "ssm_out_proj",
    "d_ff": "mlp_down_proj",
}


def width_rules(settings: Settings, target: Shape) -> list[Rule]:
    """The width factor of every forward multiplier that has one, and the init's."""
    rules = [
        Rule(
            name=f"width.{name}",
            what=f"{each.config_path} ∝ {each.rule.formula}",
            factor=factor,
            source=each.rule.source,
        )
        for name, each in forward_at(target).items()
        if each.rule.formula != "1"
        for factor in [each.rule.factor(target, settings.base)]
    ]
    if settings.init.rule == "constant":
        what = "init std of hidden matrices is the same at every width"
        return [*rules, Rule(name="init.constant", what=what, factor=1.0, source="the released configs' std")]
    for size, whose in FAN_IN.items():
        now, base = getattr(target, size), getattr(settings.base, size)
        factor = hidden_std(settings.init, now, base) / hidden_std(settings.init, base, base)
        what = f"init std of {whose} ∝ √({size}/{size}₀)"
        rules.append(Rule(name=f"init.{size}", what=what, factor=factor, source="arXiv 2203.03466 Table 8"))
    return rules


def with_depth_rule(tuned: Tuned, asked: DepthRule | None) -> Settings:
    """The Settings under the depth rule ``asked``, unchanged at the depth that they were tuned at.

    Switched on, the rule's L₀ is the proxy's depth. Switched off, the factor that acted at the proxy moves
    into the multipliers.
    """
    settings, base = tuned.settings, tuned.settings.base
    if asked is None or asked == settings.depth_rule:
        return settings
    trained = tuned.proxy.n_layers if tuned.proxy else base.n_layers
    if asked == "completep":
        at_proxy = base.model_copy(update={"n_layers": trained})
        return settings.model_copy(update={"depth_rule": asked, "base": at_proxy})
    closing = [name for name, each in FORWARD.items() if each.closes_branch]
    kept = settings.scaled(dict.fromkeys(closing, base.n_layers / trained))
    return kept.model_copy(update={"depth_rule": asked})


def depth_rules(settings: Settings, target: Shape) -> list[Rule]:
    if settings.depth_rule == "none":
        return [Rule(name="depth.none", what="nothing is scaled with depth", factor=1.0, source=REPORT)]
    *closing, last = (name for name, each in FORWARD.items() if each.closes_branch)
    what = (
        f"{', '.join(closing)} and {last} multipliers, and eps inside the blocks, ∝ L₀/L, "
        f"{settings.base.n_layers} → {target.n_layers} layers"
    )
    factor = COMPLETEP.factor(target, settings.base)
    return [Rule(name="depth.completep", what=what, factor=factor, source=COMPLETEP.source)]


def batch_rule(tuned: Tuned, batch_tokens: int) -> Rule:
    """η·√(b/b_ref); λ stays.

    Raises:
        UserError: settings without a run, so that b_ref is not known, or no whole batch.
    """
    if batch_tokens < 1:
        raise UserError(f"{batch_tokens} is not allowed: a batch has at least one token", field="--batch-tokens")
    if tuned.budget is None:
        raise UserError(
            f"{tuned.origin} come without a run, so the batch their learning rate belongs to is not known",
            field="--batch-tokens",
            fix="Leave it out and set `lr` for your batch yourself",
        )
    before = tuned.budget.batch_tokens
    what = f"η ∝ √batch, {before:,} → {batch_tokens:,} tokens a step; λ stays"
    return Rule(name="batch.sqrt", what=what, factor=batch_lr_factor(batch_tokens, before), source=REPORT)


def horizon_rule(tuned: Tuned, horizon: Horizon, batch_tokens: int | None, tokens: int | None, eta: float) -> Rule:
    """The factor on λ over the target's training of ``tokens``; ``eta`` is the one that η was scaled by.

    ``falcon``: 1. ``timescale``: η·λ·T stays, T in optimizer steps, so λ ∝ 1/(η·T).

    Raises:
        UserError: ``timescale`` without the target's tokens or without a run; tokens for less than one step.
    """
    batch = batch_tokens or (tuned.budget.batch_tokens if tuned.budget else None)
    if tokens is not None and tokens < (batch or 1):
        raise UserError(f"{tokens} is not allowed: it is less than one step of {batch or 1:,} tokens", field="--tokens")
    if horizon == "falcon":
        what = "η and λ are the same at every length; the power schedule, where it is on, lowers both over time"
        return Rule(name="horizon.falcon", what=what, factor=1.0, source=REPORT)
    if tuned.budget is None or batch is None:
        raise UserError(
            f"{tuned.origin} come without a run, so the length they were tuned at is not known",
            field="--horizon",
            fix="Use --horizon falcon",
        )
    if tokens is None:
        raise UserError("timescale needs the target's length", field="--horizon", fix="Give --tokens")
    before, after = tuned.budget.steps, tokens // batch
    what = f"λ ∝ 1/(η·T), so that η·λ·T stays: T = {before:,} → {after:,} steps, η × {eta:.6g}"
    return Rule(name="horizon.timescale", what=what, factor=before / (eta * after), source=TIMESCALE)


def tie_rule(settings: Settings) -> Rule | None:
    """What tying gate and up does to gate's learning rate; None where they agree already."""
    tied = tie_gate_up(settings)
    gate, up = (settings.value(LR_OF[name]) / settings.value(WD_OF[name]) for name in GATE_UP)
    if tied == settings:
        return None
    what = (
        "lr and weight_decay of mlp_gate_proj and mlp_up_proj are both set to their geometric mean; the factor is on "
        "gate's lr, its inverse on up's"
    )
    return Rule(name="tie.gate_up", what=what, factor=sqrt(up / gate), source="asked for with --tie-gate-up")


def tie_gate_up(settings: Settings) -> Settings:
    """Gate and up at the geometric means of their ELR and of their EWD multipliers, and so of η and λ."""
    changed: dict[str, float] = {}
    for of in (LR_OF, WD_OF):
        gate, up = (settings.value(of[name]) for name in GATE_UP)
        if gate != up:
            changed |= dict.fromkeys((of[name] for name in GATE_UP), sqrt(gate * up))
    return settings.with_values(changed) if changed else settings


def scaled(settings: Settings, eta: float, lam: float) -> Settings:
    """η × ``eta`` and λ × ``lam``, by ELR = √(η·λ) and EWD = √(λ/η)."""
    return settings if eta == lam == 1 else settings.scaled({"elr": sqrt(eta * lam), "ewd": sqrt(lam / eta)})

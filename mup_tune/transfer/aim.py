"""Settings at a target: the rules applied, what is extrapolated, and every number that a format writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mup_tune.choices import DepthRule, Horizon
from mup_tune.model.hf import hf_config
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer import rules as applied
from mup_tune.transfer.groups import OptimizerFile, optimizer_file
from mup_tune.transfer.provenance import Provenance, Rule
from mup_tune.transfer.resolve import Tuned
from mup_tune.transfer.schedules import Steps
from mup_tune.version import VERSION

WIDTHS = ("d_model", "d_attn", "head_dim", "d_ssm", "d_state", "d_ff")


@dataclass(frozen=True)
class Aimed:
    """All that a format may write. ``settings`` are those after the rules, which the table resolves.

    ``steps`` is the target's schedule, None where its batch or its length is not known: the proxy's own would
    be a schedule over the wrong training.
    """

    tuned: Tuned
    settings: Settings
    target: Shape
    table: RoleTable
    optimizer: OptimizerFile
    steps: Steps | None
    config: dict[str, Any]
    rules: tuple[Rule, ...]
    warnings: tuple[str, ...]
    provenance: Provenance


def aim(
    tuned: Tuned,
    target: Shape,
    *,
    batch_tokens: int | None = None,
    tokens: int | None = None,
    depth_rule: DepthRule | None = None,
    horizon: Horizon = "falcon",
    tie_gate_up: bool = False,
) -> Aimed:
    """Resolve ``tuned`` at ``target``.

    Args:
        batch_tokens: the target's tokens a step: η ∝ √batch from the run's. None leaves η.
        tokens: the target's total tokens.
        depth_rule: None keeps that of the Settings.

    Raises:
        UserError: a rule that lacks what it needs, or a Shape that ``transformers`` cannot build.
    """
    settings = applied.with_depth_rule(tuned, depth_rule)
    found: list[Rule] = [*applied.width_rules(settings, target), *applied.depth_rules(settings, target)]
    eta = 1.0
    if batch_tokens is not None:
        batch = applied.batch_rule(tuned, batch_tokens)
        eta, found = batch.factor, [*found, batch]
    length = applied.horizon_rule(tuned, horizon, batch_tokens, tokens, eta)
    settings, found = applied.scaled(settings, eta, length.factor), [*found, length]
    if tie_gate_up and (tied := applied.tie_rule(settings)):
        settings, found = applied.tie_gate_up(settings), [*found, tied]
    table = role_table(target, settings)
    optimizer = optimizer_file(table, tuned.budget)
    schedule = optimizer.schedule.aimed(batch_tokens, tokens)
    provenance = Provenance(
        mup_tune=VERSION,
        parametrisation="falcon-h1" if settings.depth_rule == "none" else "falcon-h1+completep",
        origin=tuned.origin,
        run=tuned.run,
        evidence=tuned.evidence,
        settings_hash=settings.content_hash(),
        shape_hash=target.content_hash(),
    )
    return Aimed(
        tuned=tuned,
        settings=settings,
        target=target,
        table=table,
        optimizer=optimizer.model_copy(update={"schedule": schedule, "provenance": provenance, "rules": tuple(found)}),
        steps=Steps.of(schedule) if tokens is not None else None,
        config=hf_config(table),
        rules=tuple(found),
        warnings=tuple(warnings(tuned, target, settings.depth_rule, batch_tokens, tokens)),
        provenance=provenance,
    )


def warnings(
    tuned: Tuned, target: Shape, depth_rule: DepthRule, batch_tokens: int | None = None, tokens: int | None = None
) -> list[str]:
    """Sentences on what a user must not overlook. What nobody measured begins with ``extrapolation``."""
    found: list[str] = []
    base, proxy, budget = tuned.settings.base, tuned.proxy, tuned.budget
    if tuned.evidence and not tuned.evidence.confirmed:
        found.append(f"the run does not confirm its incumbent: {tuned.evidence.said}")
    if tuned.evidence and not tuned.evidence.finished:
        done = f"{tuned.evidence.concluded} of {tuned.evidence.stages} stages"
        found.append(f"the run is unfinished ({done} have concluded): its later stages may move these settings")
    if all(getattr(base, size) == getattr(target, size) for size in WIDTHS):
        found.append(
            "base equal to target: the target has the widths these settings are relative to, so every width factor "
            "is 1 and NO WIDTH SCALING TOOK PLACE"
        )
    trained = proxy.n_layers if proxy else base.n_layers
    if trained != target.n_layers:
        scaled = {
            "none": "Falcon-H1 has no depth rule, nothing was scaled with depth",
            "completep": "completep scales the residual branches, and nobody has measured it over this range",
        }[depth_rule]
        found.append(f"extrapolation in depth {trained} → {target.n_layers}: {scaled}")
    if proxy and proxy.vocab_size != target.vocab_size:
        found.append(
            f"extrapolation in vocabulary {proxy.vocab_size} at the proxy, {target.vocab_size} at the target: the "
            "learning rates of embedding and lm_head and their multipliers were tuned at the proxy's; re-check them "
            "first"
        )
    if tuned.validated and target.d_model > tuned.validated:
        found.append(
            f"extrapolation in width: the widest model of this run has d_model {tuned.validated}, the target "
            f"{target.d_model}"
        )
    if proxy and target.d_model < proxy.d_model:
        found.append(f"the target is narrower than the proxy, d_model {proxy.d_model} → {target.d_model}")
    if budget and batch_tokens is not None and batch_tokens != budget.batch_tokens:
        found.append(f"extrapolation in batch: {budget.batch_tokens:,} → {batch_tokens:,} tokens a step")
    if budget and tokens is not None and tokens != budget.total_tokens:
        constant = "" if budget.power_onset_tokens else "; the run had no power schedule, so nothing lowers η over time"
        found.append(f"extrapolation in horizon: {budget.total_tokens:,} → {tokens:,} tokens in all{constant}")
    if budget and tokens is None:
        found.append(
            f"the target's length is not given: these settings were tuned over {budget.total_tokens:,} tokens; give "
            "--tokens to have the horizon judged"
        )
    return found

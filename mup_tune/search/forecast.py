"""What a plan is going to do, before anything is trained: the sum of its rehearsal, and derived numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from mup_tune.search.plan import Plan
from mup_tune.search.rehearsal import StageForecast


def forecast(plan: Plan) -> list[StageForecast]:
    """A line for every stage, in order."""
    return [each.forecast for each in plan.rehearsal]


def total(lines: Sequence[StageForecast]) -> dict[str, float]:
    """Sums over the stages, by field."""
    fields = ("trials", "tokens", "flops", "max_trials", "max_tokens", "max_flops")
    return {field: sum(getattr(line, field) for line in lines) for field in fields}


def derived(plan: Plan) -> dict[str, Any]:
    """Every number that follows from the plan's own, as plain data."""
    budget, shape, start, target = plan.header.budget, plan.shape, plan.start, plan.target
    return {
        "proxy": shape.name,
        "parameters": shape.parameters(),
        "tokens_per_parameter": budget.steps * budget.batch_tokens / shape.parameters(),
        "flops_per_trial": shape.flops_per_token(budget.seq_len) * budget.steps * budget.batch_tokens,
        "seq_len": budget.seq_len,
        "batch_tokens": budget.batch_tokens,
        "rows": budget.rows,
        "steps": budget.steps,
        "warmup_steps": budget.warmup_tokens / budget.batch_tokens,
        "warmup_share": budget.warmup_tokens / budget.total_tokens,
        "decay_steps": budget.decay_tokens / budget.batch_tokens,
        "decay_share": budget.decay_tokens / budget.total_tokens,
        "start": start.name,
        "base": start.base.model_dump(mode="json"),
        "eta": start.eta,
        "lambda": start.lam,
        "eta_lambda_T": start.elr**2 * budget.steps,
        "elr": start.elr,
        "elr_for_ewd": 1 / sqrt(budget.steps),  # where η·λ·T = ELR²·T = 1
        "seeds": list(plan.header.seeds),
        "target": target.name if target else None,
        "target_parameters": target.parameters() if target else None,
        "target_vocabulary": target.vocab_size if target else None,
        "same_vocabulary": shape.vocab_size == target.vocab_size if target else None,
        "scales": list(plan.scales),
    }

"""What a plan is going to do, before anything is trained: trials, tokens and FLOPs of every stage, derived numbers.

A stage says how many trials it wants if nothing surprises and at the very most (:meth:`Stage.counts`), and
which ones to take the cost of one from, their mean (:meth:`Stage.priced_by`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mup_tune.search.stage import Context, Stage, State
from mup_tune.search.stages import ElrEwd
from mup_tune.settings import Settings

if TYPE_CHECKING:
    from mup_tune.search.plan import Plan


@dataclass(frozen=True)
class StageForecast:
    """One stage: what it takes if nothing surprises, and with every extension, refinement and retry it may ask for.

    ``stage`` is its key in the journal. ``tokens`` are of training, all trials together; validation is not
    counted.
    """

    stage: str
    kind: str
    title: str
    trials: int
    tokens: int
    flops: float
    max_trials: int
    max_tokens: int
    max_flops: float


def forecast(plan: Plan) -> list[StageForecast]:
    """A line for every stage, in order."""
    state, longest, lines = State(plan.start), 0.0, []
    for index, stage in enumerate(plan.stages):
        line, state = foresee(plan.key(index), stage, plan.context, state, longest)
        longest += line.max_flops if stage.on_path else 0.0
        lines.append(line)
    return lines


def foresee(
    key: str, stage: Stage, context: Context, state: State, longest: float = 0.0
) -> tuple[StageForecast, State]:
    """The forecast of one stage entered with ``state``, and a state to enter the next one with.

    ``longest``: the FLOPs that the search for the incumbent may have spent before, at the very most. What the
    stage would learn is made up: every reference is other Settings than any before, every axis it measures
    has sensitivity 1, and a tuned ELR is one at which EWD is identifiable, if the grid reaches as far.
    """
    # Before anything is spent stages refuse what would find no ground to stand on, so the first look has no
    # FLOPs.
    first = stage.priced_by(context, replace(state, flops=0.0)) or context.trials(state.incumbent, context.seeds[:1])
    tokens = fmean(trial.budget.steps * trial.budget.batch_tokens for trial in first)
    flops = fmean(trial.flops for trial in first)
    trials = stage.counts(context, state)[0]
    most = stage.counts(context, replace(state, flops=max(longest, state.flops)))[1]
    line = StageForecast(
        stage=key,
        kind=stage.kind,
        title=stage.title,
        trials=trials,
        tokens=round(trials * tokens),
        flops=trials * flops,
        max_trials=most,
        max_tokens=round(most * tokens),
        max_flops=most * flops,
    )
    count = len(state.references)
    left = {name: state.incumbent.scaled({"elr": 1 + 1e-6 * (count + n)}) for n, name in enumerate(stage.provides, 1)}
    after = State(
        incumbent=_tuned(stage, context, state.incumbent),
        references={**state.references, **left},
        sensitivity={**state.sensitivity, **dict.fromkeys(stage.measures, 1.0)},
        flops=state.flops + (line.flops if stage.on_path else 0.0),
    )
    return line, after


def _tuned(stage: Stage, context: Context, incumbent: Settings) -> Settings:
    """η·λ·T = ELR²·T reaches 1 at an ELR of T^-½, where the stages begin to sweep EWD."""
    if not isinstance(stage, ElrEwd) or not stage.incumbent or not stage.elr_offsets:
        return incumbent
    elr = 1.001 / sqrt(context.budget.steps)
    within = incumbent.elr < elr <= incumbent.elr * 2 ** max(stage.elr_offsets)
    return incumbent.with_values({"elr": elr}) if within else incumbent


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

"""What was run, as terms and values: the plan, the proxy, the budget, the data and the environment."""

from __future__ import annotations

from math import isfinite

import numpy as np
import pandas as pd

from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report import formats
from mup_tune.run.description import CorpusRecord, PlanRecord, SourceRecord
from mup_tune.run.view import RunView
from mup_tune.settings import GLOBAL_AXES
from mup_tune.shape import Shape

LONG = {"elr": "learning rate (ELR)", "ewd": "weight decay (EWD)", "rope_base": "RoPE base"}


def what_was_tuned(run: RunView) -> str:
    """What was tuned, on which proxy and on which text, as one sentence."""
    plan, corpus = run.plan, run.record.corpus
    swept = {axis.axis for finding in run.findings for axis in finding.axes}
    n = sum(name in swept for name in MULTIPLIER_NAMES)
    found = [f"{'all' if n == len(MULTIPLIER_NAMES) else f'{n} of the'} 35 µP multipliers"] if n else []
    found += [LONG[axis] for axis in GLOBAL_AXES if axis in swept]
    what = " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    proxy = f"{plan.proxy.name or 'a proxy'} ({plan.proxy.size}, {plan.proxy.parameters():,} parameters)"
    target = f", for {plan.target.name}" if plan.target and plan.target.name else ""
    sources = ", ".join(f"{each.name} ({formats.si(each.train_tokens)} tokens)" for each in corpus.sources)
    return (
        f"{f'Tuned: {what}, of' if what else 'Measured, not tuned:'} {proxy} on {sources or corpus.name}, "
        f"{plan.budget.total_tokens:,} tokens a trial{target}."
    )


def what_was_run(run: RunView) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (term, value) on the plan, the proxy, the budget, the data, the machine and the trials."""
    plan, record = run.plan, run.record
    sizes = [(key, f"{size:,}") for key, size in _sizes(plan.proxy).items()]
    groups = [
        (
            "Plan",
            [
                ("plan", plan.name),
                ("plan hash", record.plan_hash),
                ("started from", plan.start.name),
                ("stages concluded", f"{len(run.findings)} of {len(plan.stages)}"),
                ("seeds for tuning", ", ".join(str(seed) for seed in plan.seeds)),
                ("created", formats.instant(record.created)),
            ],
        ),
        ("Proxy Shape", [("name", plan.proxy.name), ("parameters", f"{plan.proxy.parameters():,}"), *sizes]),
        ("Budget of one trial", _budget(plan)),
        ("Data", _data(plan, record.corpus)),
        ("Environment", _machine(run)),
        ("Trials", _trials(run)),
    ]
    return [(title, [(term, text) for term, text in rows if text]) for title, rows in groups]


def _data(plan: PlanRecord, corpus: CorpusRecord) -> list[tuple[str, str]]:
    budget, shape, target = plan.budget, plan.proxy, plan.target
    mixed = len(corpus.sources) > 1
    if mixed:
        rows = [(each.name, f"weight {each.weight:g}, hash {each.hash}, {_tokens(each)}") for each in corpus.sources]
        rows.append(("mixture hash", corpus.hash))
    else:
        rows = [("corpus", corpus.name), ("corpus hash", corpus.hash)]
        rows += [("tokens", _tokens(each)) for each in corpus.sources]
    shared = ", shared out by weight" if mixed else ""
    rows.append(("validation", f"{budget.val_tokens:,} tokens{shared}, the same for every trial"))
    if budget.val_lengths:
        factors = ", ".join(f"{factor}×" for factor in budget.val_lengths)
        rows.append(("validation lengths", f"{factors} of {budget.seq_len:,} tokens, on one text"))
    if target and target.vocab_size != shape.vocab_size:
        rows.append(
            (
                "vocabulary",
                f"{shape.vocab_size:,} at the proxy, {target.vocab_size:,} at {target.name or 'the target'}: "
                "no rule scales with it, so embedding and lm_head settings cross over as they are, "
                "and losses do not compare",
            )
        )
    return rows


def _tokens(source: SourceRecord) -> str:
    return f"{source.train_tokens:,} training and {source.val_tokens:,} validation tokens"


def _sizes(shape: Shape) -> dict[str, int]:
    return {
        "d_model": shape.d_model,
        "layers": shape.n_layers,
        "query heads": shape.n_heads,
        "KV heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "d_ssm": shape.d_ssm,
        "SSM heads": shape.n_ssm_heads,
        "d_state": shape.d_state,
        "groups": shape.n_groups,
        "d_ff": shape.d_ff,
        "vocabulary": shape.vocab_size,
    }


def _budget(plan: PlanRecord) -> list[tuple[str, str]]:
    budget = plan.budget
    return [
        ("tokens", f"{budget.total_tokens:,}"),
        ("steps", f"{budget.steps:,}"),
        ("batch", f"{budget.batch_tokens:,} tokens = {budget.rows:,} × {budget.seq_len:,}"),
        ("warmup", f"{budget.warmup_tokens:,} tokens"),
        ("LR decay", f"{budget.decay_tokens:,} tokens, to {formats.value(budget.lr_decay_to)} of the peak"),
        ("tokens per parameter", formats.value(budget.total_tokens / plan.proxy.parameters())),
        ("precision", budget.dtype),
    ]


def _machine(run: RunView) -> list[tuple[str, str]]:
    record, packs = run.record, run.packs
    rows = [
        ("host", record.host),
        ("platform", record.platform),
        ("CPUs", str(record.cpus or "")),
        ("Python", record.python),
        ("mup-tune", record.version),
        ("git commit", record.commit or ""),
    ]
    columns = {
        "device": "device",
        "plan.lanes": "lanes",
        "threads": "threads per lane",
        "mup_tune": "trained by mup-tune",
        "torch": "torch",
        "backend": "backend",
        "cpu": "CPU capability",
    }
    rows += [(label, _distinct(packs, column)) for column, label in columns.items()]
    speed, mfu = (_numbers(packs, column) for column in ("tokens_per_s", "mfu"))
    if len(speed):
        rows.append(("throughput", f"{formats.si(float(np.median(speed)))} tokens/s, median over packs"))
    if len(mfu):
        rows.append(("MFU", f"{100 * float(np.median(mfu)):.1f} %, median over packs"))
    return rows


def _trials(run: RunView) -> list[tuple[str, str]]:
    trials = run.trials
    ok = int((trials["status"] == "ok").sum())
    rows = [("ok", f"{ok:,}"), ("diverged", f"{len(trials) - ok:,}"), ("packs", f"{len(run.packs):,}")]
    horizon = _numbers(trials, "eta_lambda_T")
    if len(horizon):
        median = float(np.median(horizon))
        meaning = "" if median >= 1 else ": below 1, so EWD acts on the init, not on an equilibrium"
        rows.append(("η·λ·T", f"{formats.value(median)} in the median trial{meaning}"))
    clipped = _numbers(trials, "clipped_fraction")
    if len(clipped):
        rows.append(("clipped steps", f"{100 * float(np.median(clipped)):.1f} % in the median trial"))
    return rows


def _distinct(table: pd.DataFrame, column: str) -> str:
    if column not in table:
        return ""
    return ", ".join(sorted({str(each) for each in table[column].dropna()}))


def _numbers(table: pd.DataFrame, column: str) -> list[float]:
    if column not in table:
        return []
    return [float(each) for each in table[column].dropna() if isfinite(float(each))]

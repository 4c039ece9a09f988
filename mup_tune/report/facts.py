"""What the page says, as plain data: the headline claims, what was run, and the curves of the Settings compared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from mup_tune.findings import Comparison, Finding
from mup_tune.report import basins, formats
from mup_tune.report.figures import Curve
from mup_tune.run.tables import RunView
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.trial import Budget, Trial

CONFIRM = "confirm"  # the stage kind that trains on fresh seeds; no other comparison makes a headline
VERDICTS = {
    "confirmed": "confirmed: the 95 % CI lies above 0",
    "worse": "worse: the 95 % CI lies below 0",
    "unclear": "not confirmed: the 95 % CI includes 0",
}


@dataclass(frozen=True)
class Claim:
    """One comparison as the page tells it; ``state`` is a key of :data:`VERDICTS` or "unmeasured"."""

    comparison: Comparison
    state: str
    candidate_loss: float | None
    reference_loss: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says; without one, the stage's own words."""
        return VERDICTS.get(self.state, self.comparison.verdict)


def claim(comparison: Comparison) -> Claim:
    """Mean losses are over the seeds where both sides ended; the interval alone decides the state."""
    candidate, reference = comparison.candidate_losses, comparison.reference_losses
    both = [(a, b) for s, a in candidate.items() if a is not None and (b := reference.get(s)) is not None]
    state = "unmeasured"
    if comparison.gain is not None:
        gain = comparison.gain
        state = "confirmed" if gain.low > 0 else "worse" if gain.high < 0 else "unclear"
    means = [float(np.mean(side)) for side in zip(*both, strict=True)] if both else [None, None]
    return Claim(comparison, state, means[0], means[1], len(both))


def confirmation(run: RunView) -> Finding | None:
    """The last confirmation: comparisons inside a tuning stage use the seeds that chose, and so prove nothing."""
    return next((each for each in reversed(run.findings) if each.kind == CONFIRM and each.comparisons), None)


def headline(run: RunView, claims: list[Claim]) -> tuple[str, str]:
    """(the headline, the sentence below it). The gain named is the one over the hardest reference."""
    if not run.findings:
        if run.live:
            return "Still in progress: no stage has concluded yet", "This page shows what was run so far."
        return "No findings: no stage of this run has concluded", "There is nothing to claim from it."
    checked = [basin for finding in run.findings for basin in finding.basins]
    if checked and all(finding.basins for finding in run.findings):
        basin = basins.leading(checked)
        others = [f"{each.param}: {each.verdict}: {each.why}." for each in checked if each is not basin]
        why = f"{basin.why[0].upper()}{basin.why[1:]}."
        return f"{basins.HEADLINES[basin.verdict]}: {basin.hp} under {basin.param}", " ".join([why, *others])
    told = [each.headline for each in run.findings if each.headline]
    if not claims and told and len(run.findings) == len(run.plan["stages"]):
        rest = "".join(f"{sentence}. " for sentence in told[1:])
        return told[0], f"{rest}This run measures; it claims no gain, which takes a confirmation on fresh seeds."
    if not claims:
        wanted = len(run.plan["stages"])
        broken = f"Interrupted after {len(run.findings)} of {wanted} stages"
        done = "Tuned, not confirmed" if len(run.findings) == wanted else broken
        return f"{'Still in progress' if run.live else done}: no gain is claimed", (
            "No confirmation stage on fresh seeds has concluded; what the stages below found is not yet a result."
        )
    measured = [each for each in claims if each.comparison.gain is not None]
    if not measured:
        return "No gain could be measured", "; ".join(
            f"over {each.comparison.reference}: {each.comparison.verdict}" for each in claims
        )
    hardest = min(measured, key=lambda each: each.comparison.gain.value if each.comparison.gain else 0.0)
    reference, gain = hardest.comparison.reference, hardest.comparison.gain
    assert gain is not None
    amount = f"{1e3 * abs(gain.value):,.1f} mnat/token"
    title = {
        "confirmed": f"Confirmed: {amount} lower loss than {reference}",
        "worse": f"Worse: {amount} higher loss than {reference}",
    }.get(hardest.state, f"No confirmed gain over {reference}")
    parts = [f"Gain {formats.mnat(gain.value)}, 95 % CI {formats.mnat_ci(gain)} mnat/token"]
    parts[0] += f", over {formats.plural(hardest.seeds, 'seed')}."
    confirmed = [each.comparison.reference for each in measured if each.state == "confirmed" and each is not hardest]
    missing = [each.comparison.reference for each in claims if each.comparison.gain is None]
    if confirmed:
        parts.append(f"Confirmed {'by more ' if hardest.state == 'confirmed' else ''}over {', '.join(confirmed)}.")
    if missing:
        parts.append(f"Not measured against {', '.join(missing)}.")
    return title, " ".join(parts)


def what_was_run(run: RunView) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (term, value) on the plan, the proxy, the budget, the data, the machine and the trials."""
    plan, record = run.plan, run.record
    shape, budget = proxy(run), Budget.model_validate(plan["budget"])
    sizes = [(key, f"{size:,}") for key, size in _sizes(shape).items()]
    groups = [
        (
            "Plan",
            [
                ("plan", str(plan.get("name", ""))),
                ("plan hash", str(record.get("plan_hash", ""))),
                ("started from", str((plan.get("start") or {}).get("name", ""))),
                ("stages concluded", f"{len(run.findings)} of {len(plan.get('stages', []))}"),
                ("seeds for tuning", ", ".join(str(seed) for seed in plan.get("seeds", []))),
                ("created", formats.instant(record.get("created"))),
            ],
        ),
        ("Proxy Shape", [("name", shape.name), ("parameters", f"{shape.parameters():,}"), *sizes]),
        ("Budget of one trial", _budget(budget, shape)),
        ("Data", _data(run, budget, shape)),
        ("Machine", _machine(run)),
        ("Trials", _trials(run)),
    ]
    return [(title, [(term, text) for term, text in rows if text]) for title, rows in groups]


def _data(run: RunView, budget: Budget, shape: Shape) -> list[tuple[str, str]]:
    corpus, target = run.record.get("corpus") or {}, run.plan.get("target")
    sources = corpus.get("sources") or []
    rows = [("corpus", str(corpus.get("name", ""))), ("corpus hash", str(corpus.get("hash", "")))]
    if len(sources) > 1:
        rows = [
            (str(each["name"]), f"weight {each['weight']:g}, hash {each['hash']}, {_tokens(each)}") for each in sources
        ]
        rows.append(("mixture hash", str(corpus["hash"])))
    elif sources:
        rows.append(("tokens", _tokens(sources[0])))
    shared = ", shared out by weight" if len(sources) > 1 else ""
    rows.append(("validation", f"{budget.val_tokens:,} tokens{shared}, the same for every trial"))
    if budget.val_lengths:
        factors = ", ".join(f"{factor}×" for factor in budget.val_lengths)
        rows.append(("validation lengths", f"{factors} of {budget.seq_len:,} tokens, on one text"))
    if target and target["vocab_size"] != shape.vocab_size:
        rows.append(
            (
                "vocabulary",
                f"{shape.vocab_size:,} at the proxy, {target['vocab_size']:,} at {target.get('name') or 'the target'}: "
                "no rule scales with it, so embedding and lm_head settings cross over as they are, "
                "and losses do not compare",
            )
        )
    return rows


def _tokens(source: dict[str, Any]) -> str:
    return f"{source['train_tokens']:,} training and {source['val_tokens']:,} validation tokens"


def proxy(run: RunView) -> Shape:
    return Shape.model_validate(run.plan["proxy"])


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


def _budget(budget: Budget, shape: Shape) -> list[tuple[str, str]]:
    return [
        ("tokens", f"{budget.total_tokens:,}"),
        ("steps", f"{budget.steps:,}"),
        ("batch", f"{budget.batch_tokens:,} tokens = {budget.rows:,} × {budget.seq_len:,}"),
        ("warmup", f"{budget.warmup_tokens:,} tokens"),
        ("LR decay", f"{budget.decay_tokens:,} tokens, to {formats.value(budget.lr_decay_to)} of the peak"),
        ("tokens per parameter", formats.value(budget.total_tokens / shape.parameters())),
        ("precision", budget.dtype),
    ]


def _machine(run: RunView) -> list[tuple[str, str]]:
    record, packs = run.record, run.packs
    keys = {"host": "host", "platform": "platform", "cpus": "CPUs", "python": "Python", "version": "mup-tune"}
    rows = [(label, str(record.get(key) or "")) for key, label in keys.items()]
    columns = {
        "device": "device",
        "plan.lanes": "lanes",
        "threads": "threads per lane",
        "torch": "torch",
        "backend": "backend",
    }
    rows += [(label, _distinct(packs, column)) for column, label in columns.items()]
    speed, mfu, seconds = (_numbers(packs, column) for column in ("tokens_per_s", "mfu", "seconds"))
    if len(speed):
        rows.append(("throughput", f"{formats.si(float(np.median(speed)))} tokens/s, median over packs"))
    if len(mfu):
        rows.append(("MFU", f"{100 * float(np.median(mfu)):.1f} %, median over packs"))
    if len(seconds):
        rows.append(("training time", f"{formats.duration(float(np.sum(seconds)))}, summed over packs"))
    if len(packs) and record.get("created"):
        ends = [datetime.fromisoformat(str(end)) for end in packs["committed_utc"]]
        elapsed = (max(ends) - datetime.fromisoformat(record["created"])).total_seconds()
        rows.append(("wall time", f"{formats.duration(elapsed)} to the last pack, pauses included"))
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


def curves(run: RunView) -> tuple[dict[str, Curve], dict[str, Curve], int]:
    """Training loss of the final incumbent and of each reference over the seeds that all of them trained on.

    Returns (median loss over seeds in nats/token, median of reference − incumbent in millinats/token, seeds),
    by name, over tokens of one member; smoothed over a fiftieth of the training. Settings without trials are
    left out.
    """
    final = run.incumbent
    if final is None:
        return {}, {}, 0
    # References that are the incumbent itself would draw its line twice.
    named = {"incumbent": final, **{name: each for name, each in run.references.items() if each != final}}
    found = {name: per_seed for name, each in named.items() if (per_seed := _per_seed(run, each))}
    if "incumbent" not in found or len(found) < 2:
        return {}, {}, 0
    seeds = sorted(set.intersection(*(set(per_seed) for per_seed in found.values())))
    if not seeds:
        return {}, {}, 0
    stacks = {name: pd.concat([per_seed[seed] for seed in seeds], axis=1) for name, per_seed in found.items()}
    window = max(1, len(stacks["incumbent"]) // 50)
    smooth = {name: stack.rolling(window, min_periods=1).mean() for name, stack in stacks.items()}
    losses = {name: _line(stack.median(axis=1)) for name, stack in smooth.items()}
    gaps = {
        f"{name} − incumbent": _line(1e3 * (stack - smooth["incumbent"]).median(axis=1))
        for name, stack in smooth.items()
        if name != "incumbent"
    }
    return losses, gaps, len(seeds)


def _line(series: pd.Series[float]) -> Curve:
    kept = series.dropna()
    return [float(each) for each in kept.index], [float(each) for each in kept]


def _per_seed(run: RunView, settings: Settings) -> dict[int, pd.Series[float]]:
    """Training loss over tokens of the ok trials with exactly these Settings, by seed."""
    shape, budget = proxy(run), Budget.model_validate(run.plan["budget"])
    rows = run.trials[run.trials["status"] == "ok"].set_index("hash")
    found: dict[int, pd.Series[float]] = {}
    for seed in sorted({int(seed) for seed in rows["seed"]}):
        hash_ = Trial(shape=shape, budget=budget, settings=settings, seed=seed).hash
        if hash_ in rows.index:
            table = run.curves(str(rows.loc[hash_, "pack"]))
            curve = table[table["member"] == rows.loc[hash_, "member"]]
            found[seed] = pd.Series(curve["loss"].to_numpy(), index=curve["tokens"].to_numpy(), name=seed)
    return found

"""What a run does not show: caveats computed from its data, the heaviest first. None is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from mup_tune.findings import Finding
from mup_tune.findings.confirmation import Confirmation
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.validation import Validation
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report import formats
from mup_tune.report.plain import Names, same
from mup_tune.run.records import MADE_BY
from mup_tune.run.verdict import last_confirmation
from mup_tune.run.view import RunView

Level = Literal["serious", "caution", "note"]
MARKS: dict[Level, str] = {"serious": "⚑⚑", "caution": "⚑", "note": "·"}
FEW_SEEDS, ENOUGH_SEEDS = 4, 8
TOKENS_PER_PARAMETER = 20.0  # what compute-optimal training takes (arXiv 2203.15556)
SHORT_STEPS = 2000
CLIPPED, DIVERGED = 0.1, 0.05  # shares from which on they are more than a note


@dataclass(frozen=True)
class Caveat:
    """``weight`` orders them: how much a decision that overlooks it would suffer."""

    weight: int
    level: Level
    title: str
    text: str

    @property
    def mark(self) -> str:
        return MARKS[self.level]


def caveats(run: RunView, names: Names) -> list[Caveat]:
    """The heaviest first."""
    confirmation = last_confirmation(run.findings)
    found = [
        *_unfinished(run),
        *_claim(run, confirmation, names),
        *_sizes(run, confirmation, names),
        *_baseline(run, names),
        *_horizon(run),
        *_coverage(run),
        *_training(run),
        *_data(run),
        *_machines(run),
    ]
    return sorted(found, key=lambda each: -each.weight)


def _unfinished(run: RunView) -> Iterator[Caveat]:
    wanted, done = len(run.plan.stages), len(run.findings)
    if done < wanted:
        why = "the run is still at work" if run.live else "the run was stopped"
        yield Caveat(95, "serious", "Not finished", f"{done} of {wanted} stages have concluded: {why}.")


def _claim(run: RunView, confirmation: Finding | None, names: Names) -> Iterator[Caveat]:
    if confirmation is None:
        text = "No stage compared the Settings with a reference on seeds that tuned nothing, so no gain is claimed."
        yield Caveat(100, "serious", "No confirmation on fresh seeds", text)
        return
    if run.settings is not None and not same(run.settings, confirmation.after):
        text = "A later stage moved the Settings, so those below are not the ones that were compared."
        yield Caveat(98, "serious", "Changed since the confirmation", text)
    seeds = min(len(each.candidate_losses) for each in confirmation.comparisons)
    if seeds < ENOUGH_SEEDS:
        few = seeds < FEW_SEEDS
        text = (
            f"The gain rests on {formats.plural(seeds, 'fresh seed')}. Its interval is wide, and one odd seed counts."
        )
        yield Caveat(88 if few else 58, "serious" if few else "caution", "Few seeds", text)
    lost = [names.long(each.reference) for each in confirmation.comparisons if each.gain is None]
    if lost:
        yield Caveat(66, "caution", "Not measured", f"No gain is known over {', '.join(lost)}: seeds diverged there.")
    result = confirmation.result
    tokens = result.tokens if isinstance(result, Confirmation) else None
    if tokens is None:
        text = "The reference was not trained for longer, so the gain is known in nats alone."
        yield Caveat(34, "note", "Tokens saved not measured", text)
    elif tokens.saved is None or tokens.saved.beyond:
        text = (
            f"The reference trained for up to {tokens.horizons[-1].factor:.3g} × the tokens, which does not bound it."
        )
        yield Caveat(40, "caution", "Tokens saved has no upper end", text)


def _sizes(run: RunView, confirmation: Finding | None, names: Names) -> Iterator[Caveat]:
    """What is known beyond the proxy, and how far the target lies from there."""
    checked = [each.result for each in run.findings if isinstance(each.result, Validation)]
    if not checked and confirmation is not None:
        text = f"Only the proxy of {run.plan.proxy.parameters():,} parameters was trained. `mup-tune validate` goes on."
        yield Caveat(86, "serious", "No larger shape measured", text)
    for result in checked:
        proxy = result.shapes[0].claim.gain
        for at in result.larger:
            gain, size = at.claim.gain, at.shape.size
            if gain is None or not gain.above_0:
                text = f"At {size} no gain over {names.long(result.reference)} is shown."
                yield Caveat(90, "serious", f"Not shown at {size}", text)
            elif proxy is not None and proxy.value > 0 and gain.value < 0.8 * proxy.value:
                left = f"{100 * gain.value / proxy.value:.0f} % of the proxy's gain is left"
                yield Caveat(74, "caution", "The gain shrinks with size", f"At {size} {left}, at the same tokens.")
        edge = [size.label for size in result.elr.sizes if size.no_optimum == "edge"]
        if edge:
            text = f"The best learning rate lies at the edge of the grid at {', '.join(edge)}."
            yield Caveat(46, "caution", "Optimum not bracketed", text)
    if run.plan.target is not None:
        larger = [at.parameters for result in checked for at in result.larger]
        most, target = max([*larger, run.plan.proxy.parameters()]), run.plan.target
        if target.parameters() > most:
            times = float(f"{target.parameters() / most:.2g}")
            text = (
                f"{target.name or 'The target'} has {times:,g} times the parameters of the largest model trained here."
            )
            yield Caveat(60, "caution", "The target is far", text)
        if target.vocab_size != run.plan.proxy.vocab_size:
            text = (
                f"{run.plan.proxy.vocab_size:,} tokens at the proxy, {target.vocab_size:,} at the target: "
                "no rule scales embedding and lm_head with it."
            )
            yield Caveat(48, "caution", "Another vocabulary", text)


def _baseline(run: RunView, names: Names) -> Iterator[Caveat]:
    """A reference whose own optimum was not found makes gains over it too large."""
    for finding in run.findings:
        if isinstance(finding.result, GlobalAxes):
            edge = [axis.axis.upper() for axis in finding.result.axes if axis.decision == "edge"]
            if edge:
                text = f"The best {' and '.join(edge)} lies at the edge of its grid: the reference may do better still."
                yield Caveat(72, "caution", "Baseline at its grid's edge", text)


def _horizon(run: RunView) -> Iterator[Caveat]:
    budget, parameters = run.plan.budget, run.plan.proxy.parameters()
    ratio = budget.total_tokens / parameters
    if ratio < TOKENS_PER_PARAMETER or budget.steps < SHORT_STEPS:
        text = (
            f"A trial trains {budget.steps:,} steps on {float(f'{ratio:.2g}'):,g} tokens per parameter; "
            f"compute-optimal training takes about {TOKENS_PER_PARAMETER:.0f}. What is best early may lose later."
        )
        very = ratio < 1
        yield Caveat(80 if very else 64, "serious" if very else "caution", "Short training", text)
    horizon = _median(_of_incumbent(run), "eta_lambda_T")
    if horizon is not None and horizon < 1:
        text = (
            f"η·λ·T = {horizon:.2g} < 1 for the tuned Settings: weights never leave their init, "
            "so weight decays say little about a longer training."
        )
        yield Caveat(68, "caution", "Weight decay not in equilibrium", text)


def _coverage(run: RunView) -> Iterator[Caveat]:
    swept = {axis.axis for each in run.findings for axis in each.axes if axis.decision != "not identifiable"}
    left = [name for name in MULTIPLIER_NAMES if name not in swept]
    if left:
        named = ", ".join(left) if len(left) <= 4 else f"{', '.join(left[:3])} and {len(left) - 3} more"
        text = f"{len(left)} of the 35 multipliers were not swept: {named}."
        title = f"{len(left) if len(left) < 35 else 'None'} of the 35 {'not ' if len(left) < 35 else ''}swept"
        yield Caveat(30 + round(len(left) / 35 * 30), "caution", title, text)
    edge = [axis.axis for each in run.findings if each.on_path for axis in each.axes if axis.decision == "edge"]
    edge = [axis for axis in dict.fromkeys(edge) if axis in MULTIPLIER_NAMES]
    if edge:
        text = f"The best value lies at the end of what was tried: {', '.join(edge)}."
        yield Caveat(44, "caution", "At the edge of the grid", text)
    known = [each.sigma_delta for each in run.findings if each.sigma_delta is not None]
    seeds = len(run.plan.seeds)
    if seeds < FEW_SEEDS and run.findings:
        noise = f", with σ_Δ up to {1e3 * max(known):.1f} mnat/token" if known else ""
        on = f"{formats.plural(seeds, 'seed')}{noise}"
        text = f"Stages tune on {on}: single decisions may be noise."
        yield Caveat(28, "note", "Tuned on few seeds", text)


def _training(run: RunView) -> Iterator[Caveat]:
    clipped = _median(_of_incumbent(run), "clipped_fraction")
    if clipped is not None and clipped > 0:
        much = clipped >= CLIPPED
        text = f"{100 * clipped:.1f} % of the tuned Settings' steps were clipped at norm {run.plan.budget.clip_norm:g}."
        text += " The clip then sets part of the step size." if much else ""
        yield Caveat(52 if much else 16, "caution" if much else "note", "Clipped steps", text)
    trials, lost = len(run.trials), run.trials[run.trials["status"] != "ok"]
    if len(lost):
        share = len(lost) / trials
        stages = lost["stage"].value_counts()
        where = f", most of them in {stages.index[0]} ({int(stages.iloc[0])})" if len(stages) > 1 else ""
        text = f"{len(lost):,} of {trials:,} trials diverged ({100 * share:.1f} %){where}."
        much = share >= DIVERGED
        yield Caveat(42 if much else 14, "caution" if much else "note", "Diverged trials", text)


def _data(run: RunView) -> Iterator[Caveat]:
    if run.trials.empty:
        return
    longest = int(run.trials["total_tokens"].max())
    weights = sum(each.weight for each in run.record.corpus.sources)
    for source in run.record.corpus.sources:
        epochs = longest * source.weight / weights / source.train_tokens if source.train_tokens and weights else 0.0
        if epochs > 1:
            text = f"The longest trial reads {source.name} {epochs:.2g} times. Repeated text trains unlike new text."
            yield Caveat(62, "caution", "Corpus repeated", text)
    if len(run.record.corpus.sources) <= 1:
        text = "One corpus, read in one order by every trial: a gain may belong to this text."
        yield Caveat(24, "note", "One text", text)


def _machines(run: RunView) -> Iterator[Caveat]:
    changed = [name for key, name in MADE_BY.items() if key in run.packs and run.packs[key].dropna().nunique() > 1]
    if changed:
        text = f"Packs differ in {' and '.join(changed)}, so their losses compare within that difference only."
        yield Caveat(56, "caution", "Mixed machines or code", text)


def _of_incumbent(run: RunView) -> pd.DataFrame:
    """The ok trials of the incumbent at the proxy, or all ok trials where it has none."""
    ok = run.trials[run.trials["status"] == "ok"]
    if run.settings is None or ok.empty:
        return ok
    values = {axis: run.settings.value(axis) for axis in ("elr", "ewd", *MULTIPLIER_NAMES)}
    equal = (ok["total_tokens"] == run.plan.budget.total_tokens) & (ok["shape"] == run.plan.proxy.name)
    for axis, value in values.items():
        equal &= ok[axis] == value
    return ok[equal] if equal.any() else ok


def _median(trials: pd.DataFrame, column: str) -> float | None:
    found = trials[column].dropna() if column in trials else pd.Series(dtype=float)
    return None if found.empty else float(found.median())


def verdicts(run: RunView, items: Sequence[Caveat]) -> list[tuple[str, str, str]]:
    """What is shown, as (mark, title, outcome): the counterpart of the caveats in three words each."""
    found = list(_shown(run))
    counts = [(level, sum(each.level == level for each in items)) for level in MARKS]
    told = ", ".join(
        f"{count} {level}" if level != "note" else formats.plural(count, "note") for level, count in counts if count
    )
    return [*found, (MARKS["serious"] if counts[0][1] else MARKS["caution"], "Caveats", told or "none found")]


def _shown(run: RunView) -> Iterable[tuple[str, str, str]]:
    confirmation = last_confirmation(run.findings)
    if confirmation is not None:
        first = confirmation.comparisons[0]
        said = {"better": "shown", "worse": "a loss is shown", "unclear": "not shown", "unmeasured": "not measured"}
        seeds = formats.plural(len(first.candidate_losses), "fresh seed")
        yield ("✓" if first.outcome == "better" else "✕", "Gain at the proxy", f"{said[first.outcome]}, {seeds}")
    for finding in run.findings:
        if isinstance(finding.result, Validation):
            shown = sum(at.claim.outcome == "better" for at in finding.result.larger)
            of = len(finding.result.larger)
            yield ("✓" if shown == of else "✕", "Gain at larger shapes", f"shown at {shown} of {of}")
    if len(run.trials) and bool((run.trials["status"] == "ok").all()):
        yield ("✓", "Stability", f"none of {len(run.trials):,} trials diverged")

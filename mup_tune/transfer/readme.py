"""The README.md of an export: the same head for all formats, and a section of each.

Names that users chose pass through :func:`mup_tune.markdown.plain`, so that Markdown shows them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mup_tune.markdown import bullets, plain, table
from mup_tune.schedule import batch_lr_factor
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format
from mup_tune.transfer.groups import Group, InitSlice, ScheduleSpec

FIRST = (
    "**Do not train from `from_config`'s own init** (`FalconH1ForCausalLM(config)` alone, `AutoModelForCausalLM."
    "from_config`): it is a loading default with dt_bias = 1 (dt = 1.31, a near-memoryless SSM), A_log = "
    "log(1..n_heads) (a range that grows with width and breaks the transfer), and no decay groups come with it (norms, "
    "conv, A_log, D and dt_bias must not be decayed). "
)
DRAWN = "Call `init_weights_` and `param_groups` as below."
STEP_0 = "Start from the step-0 checkpoint, and give the optimizer the groups below."
NO_STEP_0 = (
    "Start from a step-0 checkpoint, which is NOT in this folder (transfer again with `--init-seed N`), and give the "
    "optimizer the groups below."
)
NOTES = """\
* The gradient clip of {clip:g} is on the global norm, which is not width-invariant: log how often it acts.
* mup-tune's proxies reset attention, convolution and SSM state where a document ends; a plain forward of `transformers`
  or of the trainers here does not reset the latter two. Pack your rows with that in mind.
* A model built on the meta device is sharded, filled by `to_empty(device=...)`, then initialised: `init_weights_` also
  computes its buffers. DDP, FSDP2, torch.compile and activation checkpointing may come before or after. Parameters stay
  float32; use autocast or a MixedPrecisionPolicy.
* You train with another implementation? `mup-tune verify . --model mine:build` names a multiplier that it drops or
  doubles.
* `config.json` holds no token ids: set `bos_token_id` and `eos_token_id` from your tokenizer."""


def readme(aimed: Aimed, formats: Sequence[Format], verification: Mapping[str, str], init_seed: int | None) -> str:
    """The text; its first line is the one thing nobody may miss."""
    settings, shape, optimizer = aimed.settings, aimed.target, aimed.optimizer
    base = ", ".join(f"{key} {value}" for key, value in settings.base.model_dump().items())
    foreign = not all(each.draws_init for each in formats)
    start = (STEP_0 if init_seed is not None else NO_STEP_0) if foreign else DRAWN
    parts = [
        FIRST + start,
        f"# {plain(shape.name or 'target')}, {shape.parameters():,} parameters, from {plain(aimed.tuned.origin)}",
        *([f"**Warnings**\n\n{bullets(map(plain, aimed.warnings))}"] if aimed.warnings else []),
        *([f"On this Shape: {plain(shape.note)}."] if shape.note else []),
        _made_from(aimed),
        f"Checked:\n\n{bullets(f'`{name}`: {said}.' for name, said in verification.items())}",
        f"Global axes: ELR {settings.elr:.6g}, EWD {settings.ewd:.6g}, so η = {settings.eta:.6g} and λ = "
        f"{settings.lam:.6g}. Base Shape, where all width and depth factors are 1: {base}. Depth rule: "
        f"{settings.depth_rule}.",
        f"abc-parametrisation: {optimizer.parametrisation}.",
        f"## Rules applied\n\n{_rules(aimed)}",
        f"## Parameter groups\n\n{_groups(optimizer.groups)}",
        *(_section(each, aimed) for each in formats),
        *([_weights(init_seed)] if init_seed is not None else []),
        f"## Notes\n\n{NOTES.format(clip=optimizer.clip_norm)}",
        f"## Schedule\n\n{_schedule(optimizer.schedule)}",
    ]
    return "\n\n".join(parts) + "\n"


def _made_from(aimed: Aimed) -> str:
    made = aimed.provenance
    said = f"Made by mup-tune {made.mup_tune}, parametrisation `{made.parametrisation}`, settings {made.settings_hash}"
    if made.run is None:
        return f"{said}, without a run: nothing here was measured on your data."
    run = made.run
    name, plan, corpus = (plain(repr(each)) for each in (run.name, run.plan, run.corpus))
    said += f", from the run {name} of mup-tune {run.mup_tune} (plan {plan} {run.plan_hash}, corpus {corpus} "
    said += f"{run.corpus_hash})."
    verdict = made.evidence and plain(made.evidence.said)
    return f"{said} The run's verdict on its incumbent: {verdict}." if verdict else said


def _rules(aimed: Aimed) -> str:
    rows = [(rule.name, f"{rule.factor:.6g}", rule.what, rule.source) for rule in aimed.rules]
    return table(("rule", "factor", "what", "source"), rows)


def _groups(groups: Sequence[Group]) -> str:
    """A row a parameter, its slices in one cell where their multipliers or inits differ."""
    rows = [
        (
            f"`{each.pattern}`",
            f"{each.lr:.6g}",
            f"{each.weight_decay:.6g}",
            f"{each.eps:.3g}",
            _by_slice({part.slice: _init(part) for part in each.init}),
            _by_slice({part.slice: f"{part.multiplier:.6g}" for part in each.init}),
        )
        for each in groups
    ]
    return table(("parameters", "lr", "weight_decay", "eps", "init std", "forward multiplier"), rows)


def _init(part: InitSlice) -> str:
    """The std, and the distribution where it is not normal; one without spread is its name alone."""
    if not part.std:
        return part.distribution
    return f"{part.std:.5g}" if part.distribution == "normal" else f"{part.std:.5g} {part.distribution}"


def _by_slice(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _section(format_: Format, aimed: Aimed) -> str:
    lost = format_.lost(aimed)
    tail = f"\n\nNot carried over:\n\n{bullets(lost)}" if lost else ""
    return f"## {format_.name}: {format_.about}\n\n{format_.section(aimed)}{tail}"


def _weights(init_seed: int) -> str:
    return (
        f"## Step-0 checkpoint\n\n`model*.safetensors` holds the training init of seed {init_seed} in float32 by "
        "`transformers`' names: the draws that `init_weights_` makes on a CPU."
    )


def _schedule(spec: ScheduleSpec) -> str:
    onset = "none" if spec.power_onset_fraction is None else f"{spec.power_onset_fraction:g}"
    lines = [
        f"{spec.eta}.",
        f"{spec.lam}.",
        f"warmup_fraction {spec.warmup_fraction:g}, decay_fraction {spec.decay_fraction:g}, lr_decay_to "
        f"{spec.lr_decay_to:g}, power_onset_fraction {onset}. Origin: {spec.origin}.",
    ]
    lines.append(
        "Along a batch ramp call `apply_ramped_schedule_(optimizer, tokens, batch_tokens)`. It scales η by √(b/b_end) "
        "at every step (arXiv 2507.22448). No proxy was tuned with a ramp."
    )
    if spec.batch_tokens and spec.lr_tuned_at_batch_tokens:
        factor = batch_lr_factor(spec.batch_tokens, spec.lr_tuned_at_batch_tokens)
        lines.append(
            f"η was tuned at {spec.lr_tuned_at_batch_tokens:,} tokens a batch and is scaled here, in every file, to "
            f"{spec.batch_tokens:,}: times √(b/b_ref) = {factor:.6g} (arXiv 2507.22448)."
        )
    elif spec.batch_tokens and spec.total_tokens:
        lines.append(
            f"η was tuned at {spec.batch_tokens:,} tokens a batch; the schedule here is over {spec.total_tokens:,} in "
            "all. For another batch b Falcon-H1 scales η by √(b/b_ref) (arXiv 2507.22448); that is NOT applied here: "
            "if your batch differs, transfer again with `--batch-tokens`, or re-sweep η."
        )
    return bullets(lines)

"""The README.md of an export."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.roles import RoleTable
from mup_tune.schedule import batch_lr_factor
from mup_tune.transfer.groups import OptimizerFile, ScheduleSpec
from mup_tune.transfer.resolve import Tuned

FIRST = (
    "**Do not train from `from_config`'s own init** (`FalconH1ForCausalLM(config)` alone, `AutoModelForCausalLM."
    "from_config`): it is a loading default with dt_bias = 1 (dt = 1.31, a near-memoryless SSM), A_log = "
    "log(1..n_heads) (a range that grows with width and breaks the transfer), and no decay groups come with it (norms, "
    "conv, A_log, D and dt_bias must not be decayed). Call `init_weights_` and `param_groups` as below."
)

SNIPPET = """\
# Run inside this folder. Put your own token batches where the random ids are.
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from mup_tune import load_transfer

sequences, seq_len, steps = 4, 32, 5  # sequences and tokens of one optimizer step, all devices together; their number
device = "cuda" if torch.cuda.is_available() else "cpu"
batch_tokens = sequences * seq_len

transfer = load_transfer(".", batch_tokens=batch_tokens, total_tokens=steps * batch_tokens)
model = FalconH1ForCausalLM(FalconH1Config.from_pretrained(".")).to(device)  # parameters stay float32
transfer.init_weights_(model, seed=0)
optimizer = torch.optim.AdamW(transfer.param_groups(model))

for step in range(steps):
    ids = torch.randint(model.config.vocab_size, (sequences, seq_len), device=device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), transfer.clip_norm)
    transfer.apply_schedule_(optimizer, step)
    optimizer.step()
    print(step, loss.item())
"""

FILES = """\
| file | holds |
|---|---|
| `config.json` | `FalconH1Config` with the 12 forward multipliers at this Shape, `ssm_in_multiplier` and the RoPE base (`rope_theta` for transformers 4, `rope_parameters` for 5) |
| `optimizer.yaml` | lr, weight_decay, eps and init of every parameter, by disjoint full-match patterns over parameter names; betas, clipping and schedule |
| `role_table.csv` | one row per parameter slice with the rule and the source behind every number |
| `settings.yaml`, `shape.yaml` | what this was computed from |"""  # noqa: E501

NOTES = """\
* Build the model on a real device. A model made on the meta device and filled by `to_empty()` has garbage in two
  buffers that are not parameters, the SSM multipliers and the rotary frequencies; rebuild those yourself.
* Call `init_weights_` before FSDP shards the parameters. DDP and `torch.compile` may come before or after; their
  `module.` and `_orig_mod.` prefixes are understood. A parameter that no pattern knows is an error.
* {update}. A trainer whose decay is not multiplied by lr needs lr·weight_decay instead.
* The gradient clip of {clip:g} is on the global norm, which is not width-invariant: log how often it acts.
* mup-tune's proxies reset attention, convolution and SSM state where a document ends; `transformers`' model, called as
  above, does not reset the latter two. Pack your rows with that in mind.
* `config.json` holds no token ids: set `bos_token_id` and `eos_token_id` from your tokenizer."""


def readme(tuned: Tuned, table: RoleTable, optimizer: OptimizerFile, warnings: Sequence[str], verification: str) -> str:
    """The text; its first line is the one thing nobody may miss."""
    settings, shape = table.settings, table.shape
    base = ", ".join(f"{key} {value}" for key, value in settings.base.model_dump().items())
    title = f"{shape.name or 'target'}, {shape.parameters():,} parameters, from {tuned.origin}"
    parts = [
        FIRST,
        f"# {title}",
        *([f"**Warnings**\n\n{_bullets(warnings)}"] if warnings else []),
        *([f"On this Shape: {shape.note}."] if shape.note else []),
        f"Checked: {verification}.",
        f"Global axes: ELR {settings.elr:.6g}, EWD {settings.ewd:.6g}, so η = {settings.eta:.6g} and λ = "
        f"{settings.lam:.6g}. Base Shape, where all width and depth factors are 1: {base}. Depth rule: "
        f"{settings.depth_rule}.",
        f"abc-parametrisation: {optimizer.parametrisation}.",
        f"## Files\n\n{FILES}",
        f"## Train\n\n```python\n{SNIPPET}```",
        NOTES.format(update=optimizer.update, clip=optimizer.clip_norm),
        f"## Schedule\n\n{_schedule(optimizer.schedule)}",
    ]
    return "\n\n".join(parts) + "\n"


def _schedule(spec: ScheduleSpec) -> str:
    onset = "none" if spec.power_onset_fraction is None else f"{spec.power_onset_fraction:g}"
    lines = [
        f"{spec.eta}.",
        f"{spec.lam}.",
        f"warmup_fraction {spec.warmup_fraction:g}, decay_fraction {spec.decay_fraction:g}, lr_decay_to "
        f"{spec.lr_decay_to:g}, power_onset_fraction {onset}. Origin: {spec.origin}.",
        "`load_transfer(folder, batch_tokens=..., total_tokens=...)` binds it to your budget; a step outside it is an "
        "error.",
    ]
    if spec.batch_tokens and spec.lr_tuned_at_batch_tokens:
        factor = batch_lr_factor(spec.batch_tokens, spec.lr_tuned_at_batch_tokens)
        lines.append(
            f"η was tuned at {spec.lr_tuned_at_batch_tokens:,} tokens a batch and is scaled here, in every file, to "
            f"{spec.batch_tokens:,}: times √(b/b_ref) = {factor:.6g} (arXiv 2507.22448). λ is not scaled, so ELR moves "
            f"by {factor**0.5:.6g} and EWD by {factor**-0.5:.6g}."
        )
    elif spec.batch_tokens and spec.total_tokens:
        lines.append(
            f"η was tuned at {spec.batch_tokens:,} tokens a batch and {spec.total_tokens:,} in all. For another "
            "batch b Falcon-H1 scales η by √(b/b_ref) (arXiv 2507.22448); that is NOT applied here: if your batch "
            "differs, transfer again with `--batch-tokens`, or re-sweep η."
        )
    return _bullets(lines)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)

"""Every column of a run's tables: its type, unit and meaning. ``docs/tables.md`` shows them.

    python -m mup_tune.run.columns

prints them as that page has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mup_tune.multipliers import MULTIPLIER_NAMES

Type = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Column:
    """One column, or a family of them: ``pattern`` is what their names match, and ``name`` stands for all."""

    name: str
    type: Type
    unit: str
    meaning: str
    pattern: str = ""

    def __post_init__(self) -> None:
        if not self.meaning:
            raise ValueError(f"the column {self.name} has no meaning")

    def covers(self, name: str) -> bool:
        return re.fullmatch(self.pattern or re.escape(self.name), name) is not None


@dataclass(frozen=True)
class Table:
    """A table's name, what a row of it is, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column | None:
        """The column, or the family, of that name; None where nothing describes it."""
        return next((column for column in self.columns if column.covers(name)), None)


NATS, FLOP, UTC = "nats/token", "FLOP", "ISO 8601"
STAGE = Column("stage", "text", "", "The stage's key: its place in the plan, and its name or kind.")
PACK = Column("pack", "text", "", "The population's id.")
GRAD_NORM = "Norm of the gradient before clipping"

TRIAL = (
    STAGE,
    PACK,
    Column("member", "integer", "", "The trial's place in its pack, from 0."),
    Column("hash", "text", "", "The trial's identity: a hash of Shape, Budget, Settings and seed."),
    Column("shape", "text", "", "The Shape's name."),
    Column("d_model", "integer", "", "The Shape's width."),
    Column("n_layers", "integer", "", "The Shape's depth."),
    Column("total_tokens", "integer", "tokens", "What the Budget trains on."),
    Column("settings", "text", "", "The Settings' name, a label."),
    Column("settings_hash", "text", "", "The Settings' identity. Trials of one differ in seed or size."),
    Column("seed", "integer", "", "The seed of the init."),
    Column("status", "text", "", "`ok` or `diverged`."),
    Column("loss", "number", NATS, "Validation loss; empty where the trial diverged."),
    Column("loss_se", "number", NATS, "Standard error of the loss over validation rows."),
    Column("reason", "text", "", "Why and at which step the trial diverged."),
)
METRICS = (
    Column("bits_per_byte", "number", "bits/byte", "The loss per byte of text."),
    Column("loss.<source>", "number", NATS, "The loss on one source of a mixture.", r"loss\..+"),
    Column("loss_x<n>", "number", NATS, "The loss at n times the training length.", r"loss_x\d+"),
    Column("clipped_fraction", "number", "", "Share of the steps whose gradient was clipped."),
    Column("eta_lambda_T", "number", "", "η·λ·T: below 1 the init is never forgotten."),
    Column("flops", "number", FLOP, "Its training FLOP, in as many steps as its pack did."),
    Column("grad_norm", "number", "", f"{GRAD_NORM}, at the last step."),
    Column("members", "number", "", "Trials in its pack."),
    Column("tokens_per_s", "number", "tokens/s", "This trial's share of its pack's speed."),
    Column("train_loss", "number", NATS, "Training loss, mean of the last twentieth of the steps."),
)
AXES = (
    Column("elr", "number", "", "Effective learning rate √(η·λ)."),
    Column("ewd", "number", "", "Effective weight decay √(λ/η)."),
    Column("rope_base", "number", "", "Base of the rotary frequencies."),
    Column(
        "<multiplier>",
        "number",
        "",
        "One column each: `mup-tune multipliers` says what it acts on.",
        "|".join(map(re.escape, MULTIPLIER_NAMES)),
    ),
)
TRIALS = Table("trials", "a finished trial, in the order of commits", (*TRIAL, *METRICS, *AXES))

CURVES = Table(
    "curves",
    "a logged point of a trial's training, means over the steps since the last one",
    (
        Column("hash", "text", "", "The trial, as in `trials`."),
        Column("step", "integer", "", "Steps done."),
        Column("tokens", "integer", "tokens", "Tokens that this trial has seen."),
        Column("loss", "number", NATS, "Training loss."),
        Column("grad_norm", "number", "", f"{GRAD_NORM}."),
        Column("clipped", "number", "", "Share of the steps whose gradient was clipped."),
        Column("eta", "number", "", "Global learning rate η at that step."),
    ),
)

STAGES = Table(
    "stages",
    "a concluded stage, in the plan's order",
    (
        STAGE,
        Column("kind", "text", "", "The stage's kind, as a plan names it."),
        Column("title", "text", "", "What the stage did, in a line."),
        Column("result", "text", "", "The type of its result in `findings.json`."),
        Column(
            "decision",
            "text",
            "",
            "`moved` or `kept`: the incumbent. `beside`: it was not the stage's to move.",
        ),
        Column("trials", "integer", "", "Trials trained for it. Taken over ones are the earlier stage's."),
        Column("diverged", "integer", "", "How many of them diverged."),
        Column("tokens", "integer", "tokens", "What they trained on, diverged ones counted whole."),
        Column("flops", "number", FLOP, "Their training FLOP, diverged ones counted whole."),
        Column("seconds", "number", "s", "Time that lanes worked on its packs, summed over lanes."),
        Column("sigma_delta", "number", NATS, "σ_Δ, the noise of a paired difference."),
        Column("gain", "number", NATS, "What it gains on fresh seeds; positive is better. Empty if untested."),
        Column("gain_low", "number", NATS, "Lower end of the gain's 95 % CI."),
        Column("gain_high", "number", NATS, "Upper end of the gain's 95 % CI."),
        Column("gain_over", "text", "", "What the gain is over. Of several references the hardest."),
        Column("outcome", "text", "", "What the CI says: `better`, `worse`, `unclear` or `unmeasured`."),
        Column("settings", "text", "", "Name of the incumbent that the stage handed on."),
        Column("settings_hash", "text", "", "That incumbent's identity, as in `trials`."),
        Column("code", "text", "", "The version and the code that trained its packs."),
    ),
)

PACKS = Table(
    "packs",
    "a committed pack, in the order of commits",
    (
        STAGE,
        PACK,
        Column("members", "integer", "", "Trials in the pack."),
        Column("committed_utc", "text", UTC, "When it was committed."),
        Column("curves", "text", "", "Its file in `curves/`."),
        Column("sha256", "text", "", "SHA-256 of that file."),
        Column("device", "text", "", "What it was trained on."),
        Column("threads", "integer", "", "CPU threads of its lane."),
        Column("backend", "text", "", "What computed the step."),
        Column("dtype", "text", "", "Dtype of matrix products."),
        Column("mup_tune", "text", "", "The version and the code that trained it."),
        Column("torch", "text", "", "The version of torch."),
        Column("cpu", "text", "", "Instructions that torch uses on this CPU."),
        Column("tokens_per_s", "number", "tokens/s", "Speed over all members."),
        Column("mfu", "number", "", "Model FLOP utilisation, as a share of the device's peak."),
        Column("seconds", "number", "s", "Time that it took, validation included."),
        Column("steps", "integer", "", "Steps done."),
        Column("plan.<fact>", "text", "", "What was planned: members, lanes, what it replaces.", r"plan\..+"),
    ),
)

TABLES = (TRIALS, CURVES, STAGES, PACKS)


def markdown(table: Table) -> str:
    """The section of ``docs/tables.md``."""
    lines = [f"A row is {table.row}.", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{each.name}` | {each.type} | {each.unit} | {each.meaning} |" for each in table.columns]
    return "\n".join(lines) + "\n"


def told(table: Table) -> str:
    """The same as text, for a docstring."""
    lines = [f"``{table.name}``: a row is {table.row}."]
    for each in table.columns:
        lines.append(f"    {each.name} ({', '.join(filter(None, (each.type, each.unit)))}): {each.meaning}")
    return "\n".join(lines)


def schema(given: Any, table: Table) -> Any:
    """The Arrow schema ``given`` with each column as ``table`` describes it."""
    import pyarrow as pa

    types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
    fields = []
    for field in given:
        column = table.column(field.name)
        if column is not None:
            told = {"unit": column.unit, "description": column.meaning}
            field = pa.field(field.name, types[column.type], metadata=told)
        fields.append(field)
    return pa.schema(fields, given.metadata)


if __name__ == "__main__":
    print("\n".join(f"## `{table.name}`\n\n{markdown(table)}" for table in TABLES), end="")

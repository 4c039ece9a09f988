"""``hf``: for ``transformers`` and plain PyTorch loops, through ``load_transfer``."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path

from mup_tune.files import dump_yaml
from mup_tune.roles import Role, RoleTable
from mup_tune.settings import Settings, load_settings
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.format import Format, config_json
from mup_tune.transfer.verify import verify

SNIPPET = """\
# Run inside this folder. These steps show the calls: random ids stand where your batches go, so the loss says nothing.
# On a CPU five steps of a model of half a billion parameters take minutes. A small target takes seconds, such as
# `mup-tune transfer RUN --target cpu-64 --out small`.
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
* `load_transfer(folder, batch_tokens=..., total_tokens=...)` binds the schedule to your budget; a step outside it
  is an error."""


class HuggingFace(Format):
    name = "hf"
    about = "config.json and optimizer.yaml for transformers and PyTorch loops, through load_transfer"
    draws_init = True

    def files(self, aimed: Aimed) -> dict[str, str]:
        return {
            **config_json(aimed),
            "role_table.csv": _csv(aimed.table),
            "settings.yaml": aimed.settings.to_yaml(),
            "shape.yaml": dump_yaml(aimed.target.model_dump(mode="json")),
            "optimizer.yaml": dump_yaml(aimed.optimizer.model_dump(mode="json")),
        }

    def section(self, aimed: Aimed) -> str:
        return f"{FILES}\n\n```python\n{SNIPPET}```\n\n{NOTES.format(update=aimed.optimizer.update)}"

    def settings(self, folder: Path) -> Settings:
        return load_settings(str(folder / "settings.yaml"), None)

    def verify(self, folder: Path, aimed: Aimed) -> str:
        return verify(folder, aimed.config, aimed.table, aimed.optimizer)


def _csv(table: RoleTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Role)], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        shape = "x".join(str(size) for size in row.shape)
        writer.writerow({**asdict(row), "shape": shape, "init_std": "" if row.init_std is None else row.init_std})
    return text.getvalue()

"""Pretrain an exported target with transformers: a whole loop on one device, to start your own from.

    mup-tune transfer RUN --target gpu-256 --out tuned
    python examples/train_hf.py tuned --tokens 20000000 --out trained

These sizes are for a GPU. To see it work on a CPU within minutes, take a small target:

    mup-tune transfer RUN --target cpu-64 --out small
    python examples/train_hf.py small --tokens 200000 --out trained

What comes from the export: config, init, parameter groups, schedule and clipping. What is yours: data, batch
size, number of tokens. `--out` holds a checkpoint to resume from, and at the end the model as transformers
saves it. The same command after an interruption goes on where the last checkpoint was written, on the very
batches that an uninterrupted run would have seen.

transformers' model does not reset convolution and SSM state where a document ends inside a row; mup-tune's
proxies do. Text of long documents, or rows of one document each, make the two the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FalconH1Config, FalconH1ForCausalLM

from mup_tune import load_transfer
from mup_tune.data.batches import Batch
from mup_tune.data.mixture import Data, open_mixture
from mup_tune.errors import UserError
from mup_tune.trial import IGNORED_TARGET

STATE, MODEL = "state.pt", "model"  # in --out


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that `mup-tune transfer` wrote")
    parser.add_argument("--corpus", default="python-stdlib", help="folder that `mup-tune data prepare` wrote")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of the whole training")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=16, help="of one optimizer step")
    parser.add_argument("--rows-at-once", type=int, help="of one forward pass; fewer than --rows saves memory")
    parser.add_argument("--seed", type=int, default=0, help="of the init")
    parser.add_argument("--data-seed", type=int, default=0, help="of the rows' order")
    parser.add_argument("--out", type=Path, help="folder for checkpoint and model; left out: nothing is kept")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--stop-at", type=int, help="checkpoint and stop after this step, before the schedule's end")
    parser.add_argument("--print-every", type=int, default=10, help="steps between lines")
    return parser.parse_args(given)


def train(args: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Train, and yield every step with its loss in nats/token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transfer = load_transfer(args.export, batch_tokens=args.rows * args.seq_len, total_tokens=args.tokens)
    assert transfer.schedule is not None  # a budget was given
    data = open_mixture([Data(corpus=args.corpus)])
    if data.vocab_size > transfer.config["vocab_size"]:
        raise UserError(f"has {data.vocab_size} token ids, the model {transfer.config['vocab_size']}", file=args.corpus)
    batches = data.batches("train", args.seq_len, args.rows, args.data_seed)

    model = FalconH1ForCausalLM(FalconH1Config.from_pretrained(args.export)).to(device)  # float32; matmuls see bf16
    transfer.init_weights_(model, args.seed)
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    state = args.out / STATE if args.out else None
    sizes = {name: getattr(args, name) for name in ("rows", "seq_len", "tokens", "data_seed")}
    first = resumed(state, model, optimizer, sizes) if state else 0
    steps = transfer.schedule.steps
    last = min(steps, args.stop_at or steps)

    for step in range(first, last):
        optimizer.zero_grad()
        loss = backward(model, batches.batch(step), args.rows_at_once or args.rows, device)
        torch.nn.utils.clip_grad_norm_(model.parameters(), transfer.clip_norm)
        transfer.apply_schedule_(optimizer, step)
        optimizer.step()
        if state and ((step + 1) % args.save_every == 0 or step + 1 == last):
            save(state, step + 1, model, optimizer, sizes)
        yield step, float(loss)
    if args.out and last == steps:
        model.save_pretrained(args.out / MODEL)


def backward(model: torch.nn.Module, batch: Batch, rows_at_once: int, device: str) -> Tensor:
    """Gradients of the mean loss over the batch's predicted tokens, a few rows at a time; that loss."""
    tokens_BT, targets_BT = (torch.from_numpy(ids).to(device) for ids in (batch.tokens_BT, batch.targets_BT))
    predicted = (targets_BT != IGNORED_TARGET).sum()
    total = torch.zeros((), device=device)
    for tokens, targets in zip(tokens_BT.split(rows_at_once), targets_BT.split(rows_at_once), strict=True):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=tokens, use_cache=False).logits
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        (nll / predicted).backward()
        total += nll.detach() / predicted
    return total


def save(
    state: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, sizes: dict[str, int]
) -> None:
    """Write beside and rename, so that an interruption never leaves half a checkpoint."""
    state.parent.mkdir(parents=True, exist_ok=True)
    beside = state.with_suffix(".new")
    content = {"step": step, "sizes": sizes, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, beside)
    beside.replace(state)


def resumed(state: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, sizes: dict[str, int]) -> int:
    """The first step to take: 0, or where the checkpoint left off. Step and sizes fix the rows."""
    if not state.is_file():
        return 0
    loaded: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)
    if loaded["sizes"] != sizes:
        raise UserError(f"was trained with {loaded['sizes']}, not with {sizes}", file=state, fix="Name another --out")
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    return int(loaded["step"])


def main() -> None:
    args = arguments()
    started, tokens = time.perf_counter(), 0
    try:
        for step, loss in train(args):
            tokens += args.rows * args.seq_len
            if (step + 1) % args.print_every == 0:
                speed = tokens / (time.perf_counter() - started)
                print(f"step {step + 1:7d}  loss {loss:.4f}  {speed:10,.0f} tokens/s", flush=True)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

"""One rank of a training step under FSDP2 on the CPU: what :mod:`test_loops` starts twice."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import FalconH1Config, FalconH1ForCausalLM

from mup_tune import load_transfer
from mup_tune.errors import UserError

WORLD, SEED, STEP = 2, 3, 40


def token_ids() -> Tensor:
    """The step's whole batch; every rank takes its own half."""
    return torch.randint(512, (4, 16), generator=torch.Generator().manual_seed(0))


def loss_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Mean over rows and tokens, so that the mean over ranks is that of the whole batch."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def trained(export: Path, model: torch.nn.Module, ids: Tensor) -> torch.nn.Module:
    """One step as the exported README takes it, on a model that is already initialised."""
    transfer = load_transfer(export)
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    loss_of(model, ids).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), transfer.clip_norm)
    transfer.apply_schedule_(optimizer, STEP)
    optimizer.step()
    return model


def run(rank: int, export: Path, out: Path) -> None:
    """Meta device, shard, ``to_empty``, init, one step; rank 0 saves what each stage left in ``out``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=WORLD)
    with torch.device("meta"):
        model = FalconH1ForCausalLM(FalconH1Config.from_pretrained(str(export)))
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    transfer = load_transfer(export)
    try:
        transfer.init_weights_(model, seed=SEED)
        refused = ""
    except UserError as error:
        refused = str(error)
    model.to_empty(device="cpu")
    transfer.init_weights_(model, seed=SEED)
    before = _whole(model)
    trained(export, model, token_ids().chunk(WORLD)[rank])
    after = _whole(model)
    if rank == 0:
        torch.save({"refused": refused, "before": before, "after": after}, out)
    torch.distributed.destroy_process_group()


def _whole(model: torch.nn.Module) -> dict[str, Tensor]:
    whole = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        whole[name] = parameter.full_tensor().detach().clone()
    return whole

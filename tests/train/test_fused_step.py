"""The GPU step trains as the PyTorch step does; here in Triton's interpreter, without a CUDA graph."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from mup_tune.roles import role_table
from mup_tune.settings import Settings, falcon_h1_published, untuned
from mup_tune.shape import Shape
from mup_tune.train.fused_step import FusedStep
from mup_tune.train.population import new_population
from mup_tune.train.torch_step import TorchStep
from mup_tune.trial import Budget

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = Shape(
    d_model=32,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ssm=32,
    ssm_head_dim=16,
    d_state=8,
    n_groups=1,
    d_ff=48,
    vocab_size=29,
)
T = 13
BUDGET = Budget(seq_len=T, batch_tokens=2 * T, total_tokens=20 * T, warmup_tokens=0, decay_tokens=0, val_tokens=2 * T)
SETTINGS = (
    untuned(SHAPE).scaled({"elr": 4.0}),
    falcon_h1_published().scaled({"rope_base": 1e-7, "ssm_in_proj.elr": 2}),
)


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    documents = (torch.arange(T) // 5).expand(2, -1).contiguous().int()
    found = []
    for step in range(steps):
        tokens = torch.randint(0, SHAPE.vocab_size, (2, T), generator=generator).to(DEVICE)
        found.append((tokens, tokens.roll(-1, 1), documents.to(DEVICE) if step % 2 else None))
    return found


def fused(members: int) -> FusedStep:
    return FusedStep(SHAPE, members, 2, T, device=DEVICE, dtype=torch.float32, graph=DEVICE == "cuda")


def history(step: FusedStep | TorchStep, settings: tuple[Settings, ...], steps: int = 2) -> dict[str, torch.Tensor]:
    step.load([role_table(SHAPE, each) for each in settings], [0] * len(settings))
    losses, norms = [], []
    for index, batch in enumerate(batches(steps)):
        step.step(*batch, 1.0 - 0.1 * index, 1.0)
        losses.append(step.loss_P.clone())
        norms.append(step.norm_P.clone())
    parameters = {name: each.detach().clone() for name, each in step.population.named_parameters()}
    nll = step.nll(*batches(1)[0])
    return {"losses": torch.stack(losses), "norms": torch.stack(norms), "nll": nll, **parameters}


def test_training_is_the_pytorch_steps_and_a_diverged_member_stays_where_it_was() -> None:
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    ours, theirs = fused(3), TorchStep(SHAPE, 3, BUDGET, DEVICE, "torch")
    found, wanted = (history(step, (*SETTINGS, wild)) for step in (ours, theirs))
    assert ours.alive_P.tolist() == theirs.alive_P.tolist() == [True, True, False]
    for name, rtol in (("losses", 2e-5), ("norms", 2e-4)):
        torch.testing.assert_close(found.pop(name)[:, :2], wanted.pop(name)[:, :2], rtol=rtol, atol=0)
    torch.testing.assert_close(found.pop("nll")[:2], wanted.pop("nll")[:2], rtol=1e-4, atol=0)
    start = new_population(SHAPE, [role_table(SHAPE, wild)], [0], DEVICE)
    for name, parameter in found.items():
        # Adam divides by |g|: where a gradient is rounding alone, its sign is too.
        assert (parameter - wanted[name])[:2].norm() < 2e-3 * wanted[name][:2].norm(), name
        assert torch.equal(parameter[2], start.get_parameter(name)[0]), name


def test_a_step_that_is_loaded_again_forgets_the_pack_before() -> None:
    step = fused(1)
    history(step, SETTINGS[1:], steps=1)
    again, fresh = (history(each, SETTINGS[:1], steps=1) for each in (step, fused(1)))
    for name in fresh:
        torch.testing.assert_close(again[name], fresh[name], rtol=1e-5, atol=1e-6)

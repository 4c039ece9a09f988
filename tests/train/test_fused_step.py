"""The GPU step trains as the PyTorch step does; here in Triton's interpreter, without a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mup_tune.data.batches import Batch
from mup_tune.roles import role_table
from mup_tune.settings import Settings, falcon_h1_published, untuned
from mup_tune.shape import Shape
from mup_tune.train.fused_step import FusedStep
from mup_tune.train.population import new_population
from mup_tune.train.torch_step import TorchStep
from mup_tune.train.validation import to_device
from mup_tune.trial import IGNORED_TARGET, Budget

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


def batches(steps: int) -> list[Batch]:
    """Every other one of rows that are one document each."""
    generator = np.random.default_rng(0)
    documents = np.stack([np.zeros(T), np.arange(T) // 5]).astype(np.int32)
    found = []
    for step in range(steps):
        tokens = generator.integers(0, SHAPE.vocab_size, (2, T))
        targets = np.roll(tokens, -1, 1)
        targets[0, -step:] = IGNORED_TARGET
        found.append(Batch(tokens, targets, np.stack([documents[step % 2]] * 2)))
    return found


def fused(members: int) -> FusedStep:
    return FusedStep(SHAPE, members, 2, T, device=DEVICE, dtype=torch.float32, graph=DEVICE == "cuda")


def history(
    step: FusedStep | TorchStep, settings: tuple[Settings, ...], steps: int = 2, at_once: int = 20
) -> dict[str, torch.Tensor]:
    """Of so many steps, fed ``at_once`` at once."""
    step.load([role_table(SHAPE, each) for each in settings], [0] * len(settings))
    traces, factors = [], [(1.0 - 0.1 * index, 1.0 + 0.1 * index) for index in range(steps)]
    for start in range(0, steps, at_once):
        part = slice(start, start + at_once)
        fed = batches(steps)[part]
        step.feed(fed, factors[part])
        for _ in fed:
            step.step()
        traces.append(step.trace_4SP[:, : len(fed)].clone())
    parameters = {name: each.detach().clone() for name, each in step.population.named_parameters()}
    nll = step.nll(*to_device(batches(1)[0], DEVICE))
    told = dict(zip(("losses", "norms", "clipped", "alive"), torch.cat(traces, 1), strict=True))
    assert torch.equal(told["losses"][-1].nan_to_num(), step.loss_P.nan_to_num())
    assert torch.equal(told["alive"][-1].bool(), step.alive_P)
    return {**told, "nll": nll, **parameters}


def test_training_is_the_pytorch_steps_and_a_diverged_member_stays_where_it_was() -> None:
    wild = untuned(SHAPE).scaled({"embedding": 1e30, "lm_head": 1e30})
    ours, theirs = fused(3), TorchStep(SHAPE, 3, BUDGET, DEVICE, "torch")
    found, wanted = (history(step, (*SETTINGS, wild), steps=3) for step in (ours, theirs))
    assert ours.alive_P.tolist() == theirs.alive_P.tolist() == [True, True, False]
    for name in ("clipped", "alive"):
        assert found.pop(name).tolist() == wanted.pop(name).tolist(), name
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


@pytest.mark.parametrize("make", [fused, lambda members: TorchStep(SHAPE, members, BUDGET, DEVICE, "torch")])
def test_steps_are_the_same_however_many_are_fed_at_once(make: Callable[[int], FusedStep | TorchStep]) -> None:
    """All at once, or two and then one that starts in the middle of a pack."""
    step = make(1)
    found, other = (history(step, SETTINGS[1:], steps=3, at_once=each) for each in (3, 2))
    assert len(found["losses"]) == 3
    for name in ("losses", "norms", "clipped", "alive"):
        torch.testing.assert_close(other[name], found[name], rtol=2e-5, atol=0)
    for name, wanted in found.items():
        assert (other[name] - wanted).norm() <= 2e-3 * wanted.norm(), name  # a GPU adds in any order


def test_steps_want_batches_that_fit_and_are_left() -> None:
    step, (one,) = fused(1), batches(1)
    for each in (step, TorchStep(SHAPE, 1, BUDGET, DEVICE, "torch")):
        history(each, SETTINGS[:1], steps=1)
        with pytest.raises(IndexError):
            each.step()
    with pytest.raises(ValueError, match="21 steps are fed, at most 20 fit"):
        step.feed([one] * 21, [(1.0, 1.0)] * 21)
    with pytest.raises(ValueError, match=r"a batch of \(1, 13\) for a step of \(2, 13\)"):
        step.feed([Batch(one.tokens_BT[:1], one.targets_BT[:1], one.documents_BT[:1])], [(1.0, 1.0)])
    for each in (step, TorchStep(SHAPE, 1, BUDGET, DEVICE, "torch")):
        each.load([role_table(SHAPE, SETTINGS[0])], [0])
        each.feed([one], [(1.0, 1.0)])
        each.load([role_table(SHAPE, SETTINGS[0])], [0])
        with pytest.raises(IndexError):  # they were another pack's
            each.step()

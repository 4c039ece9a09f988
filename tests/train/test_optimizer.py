from __future__ import annotations

from math import sqrt

import pytest
import torch

from mup_tune.train.optimizer import MemberAdamW, Rates

SHAPES = {"matrix": (3, 5), "vector": (4,), "conv": (2, 1, 4)}
ETA, LAM, EPS = (1e-2, 3e-3, 1e-1), (0.1, 0.5, 0.0), (1e-16, 1e-8, 1e-4)


def make(members: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Rates]]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.randn(members, *shape, generator=generator).requires_grad_() for name, shape in SHAPES.items()
    }

    def column(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values[:members]).view(-1, *[1] * (like.ndim - 1))

    rates = {
        name: Rates(column(ETA, tensor), column(LAM, tensor), column(EPS, tensor))
        for name, tensor in parameters.items()
    }
    return parameters, rates


def gradients(step: int, members: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: scale * torch.randn(members, *shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_every_member_follows_torch_adamw_with_clipping(scale: float) -> None:
    ours, rates = make(3)
    theirs = [{name: torch.nn.Parameter(tensor[p].detach().clone()) for name, tensor in ours.items()} for p in range(3)]
    optimizer = MemberAdamW(ours, rates, (0.9, 0.95), clip_norm=1.0)
    references = [
        torch.optim.AdamW(theirs[p].values(), lr=ETA[p], weight_decay=LAM[p], eps=EPS[p], betas=(0.9, 0.95))
        for p in range(3)
    ]
    for step in range(5):
        for name, gradient in gradients(step, 3, scale).items():
            ours[name].grad = gradient.clone()
            for p in range(3):
                theirs[p][name].grad = gradient[p].clone()
        norm = optimizer.gradient_norms()
        factor = 1 / (1 + step)
        clipped = optimizer.step(factor, 1.0, norm, torch.ones(3, dtype=torch.bool))
        assert bool(clipped.all()) == (scale > 1)
        for p in range(3):
            total = torch.nn.utils.clip_grad_norm_(theirs[p].values(), 1.0)
            torch.testing.assert_close(norm[p], total)
            references[p].param_groups[0]["lr"] = ETA[p] * factor
            references[p].step()
    for name, tensor in ours.items():
        for p in range(3):
            torch.testing.assert_close(tensor[p], theirs[p][name].detach(), rtol=2e-5, atol=2e-6)


def test_a_dead_member_stands_still_and_the_others_do_not_notice() -> None:
    def train(poison: bool) -> dict[str, torch.Tensor]:
        parameters, rates = make(3)
        optimizer = MemberAdamW(parameters, rates, (0.9, 0.95), clip_norm=1.0)
        alive = torch.tensor([True, not poison, True])
        for step in range(4):
            for name, gradient in gradients(step, 3).items():
                if poison:
                    gradient[1] = float("nan")
                parameters[name].grad = gradient
            optimizer.step(1.0, 1.0, optimizer.gradient_norms(), alive)
        return {name: tensor.detach() for name, tensor in parameters.items()}

    start, healthy, poisoned = make(3)[0], train(False), train(True)
    for name in SHAPES:
        assert torch.equal(poisoned[name][[0, 2]], healthy[name][[0, 2]])
        assert torch.equal(poisoned[name][1], start[name][1].detach())


@pytest.mark.parametrize(("eta", "lam"), [(0.01, 0.2), (0.04, 0.05)])
def test_random_gradients_lead_to_the_equilibrium_rms(eta: float, lam: float) -> None:
    """‖θ‖_RMS → √(η/2λ) under i.i.d. N(0, 1) gradients (arXiv 2507.22448)."""
    size = 4096
    parameters = {"w": torch.zeros(1, size)}
    rate = Rates(*(torch.tensor([[value]]) for value in (eta, lam, 1e-16)))
    optimizer = MemberAdamW(parameters, {"w": rate}, (0.9, 0.999), clip_norm=1e9)
    generator = torch.Generator().manual_seed(0)
    alive = torch.ones(1, dtype=torch.bool)
    for _ in range(int(4 / (eta * lam))):
        parameters["w"].grad = torch.randn(1, size, generator=generator)
        optimizer.step(1.0, 1.0, optimizer.gradient_norms(), alive)
    assert parameters["w"].square().mean().sqrt().item() == pytest.approx(sqrt(eta / (2 * lam)), rel=0.05)


def test_every_parameter_needs_rates_and_a_gradient() -> None:
    parameters, rates = make(2)
    with pytest.raises(ValueError, match="vector"):
        MemberAdamW(parameters, {name: rate for name, rate in rates.items() if name != "vector"}, (0.9, 0.95), 1.0)
    with pytest.raises(RuntimeError, match="no gradient"):
        MemberAdamW(parameters, rates, (0.9, 0.95), 1.0).gradient_norms()

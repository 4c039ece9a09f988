"""The abc-symmetry under AdamW (docs/method.md): θ sits in a weight or in its multiplier; η, λ, eps follow.

Member 0 is the reference; every other member of the same population has one group shifted. All in float64,
unclipped: a clip on the global gradient norm is no symmetry, for g → g/θ. No activation changes, so the
norms' own eps may stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import pytest
import torch
from random_models import TINY, random_table, random_tokens, randomise_, variant

from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.multipliers import FORWARD
from mup_tune.shape import Shape
from mup_tune.train.optimizer import MemberAdamW, Rates

STEPS, ETA, LAM = 5, 0.02, 0.7
FOLLOW = {"eta": 1, "lam": -1, "eps": -1}  # the power of θ that each takes
# Every matrix, and the multiplier that θ moves into; up has none of its own, it shares down's.
GROUPS = {
    "embedding_weight": "embedding",
    "lm_head_weight": "lm_head",
    "qkv": "attention_in",
    "attention_out_proj": "attention_out",
    "ssm_in_proj": "ssm_in",
    "ssm_out_proj": "ssm_out",
    "mlp_gate_proj": "mlp_gate",
    "mlp_up_proj": "mlp_down",
    "mlp_down_proj": "mlp_down",
}
SHAPES = {"plain": TINY, "gated_norm": variant(gated_norm=True)}


def copies(shape: Shape, n_members: int) -> Population:
    """Members with the same weights and multipliers, in float64."""
    population = Population(shape, n_members, ssd_chunk=8).double()
    population.set_roles([random_table(shape, 1)] * n_members)
    randomise_(population, 1)
    with torch.no_grad():
        for parameter in population.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    return population


def group_of(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@torch.no_grad()
def shift_(population: Population, member: int, group: str, theta: float) -> None:
    """W → θW and m → m/θ for one group of one member."""
    population.multipliers.get_buffer(GROUPS[group])[member] /= theta
    for name, parameter in population.named_parameters():
        if group_of(name) == group:
            parameter[member] *= theta


def train(shape: Shape, theta: float, moved: Iterable[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses [STEPS, P], and each parameter's largest distance from the reference's, relative, by member [P].

    Args:
        moved: the keys of ``FOLLOW`` that do follow θ.
    """
    population = copies(shape, 1 + len(GROUPS))
    tokens, targets = random_tokens(shape, 2, 21)
    parameters = dict(population.named_parameters())
    powers = {key: power if key in moved else 0 for key, power in FOLLOW.items()}
    for member, group in enumerate(GROUPS, 1):
        shift_(population, member, group, theta)
    loss_P = population.nll(tokens, targets).sum(1) / 42
    loss_P.sum().backward()

    def rates(name: str, parameter: torch.Tensor) -> Rates:
        eps = 0.3 * parameter.grad[0].square().mean().sqrt().item()  # large enough to matter
        theta_P = torch.ones(1 + len(GROUPS), dtype=torch.float64)
        if group_of(name) in GROUPS:
            theta_P[1 + list(GROUPS).index(group_of(name))] = theta
        column = theta_P.view(-1, *[1] * (parameter.ndim - 1))
        return Rates(ETA * column ** powers["eta"], LAM * column ** powers["lam"], eps * column ** powers["eps"])

    optimizer = MemberAdamW(
        parameters, {name: rates(name, parameter) for name, parameter in parameters.items()}, (0.9, 0.95), inf
    )
    alive, losses = torch.ones(1 + len(GROUPS), dtype=torch.bool), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_P = population.nll(tokens, targets).sum(1) / 42
        loss_P.sum().backward()
        optimizer.step(1.0, 1.0, optimizer.gradient_norms(), alive)
        losses.append(loss_P.detach())
    apart = {}
    for name, parameter in parameters.items():
        value = parameter.detach().clone()
        if group_of(name) in GROUPS:
            value[1 + list(GROUPS).index(group_of(name))] /= theta
        apart[name] = ((value - value[:1]).flatten(1).norm(dim=1) / value[0].norm()).detach()
    return torch.stack(losses), apart


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("theta", [3.7, 0.06])
def test_theta_between_multiplier_and_weight_moves_nothing(shape: str, theta: float) -> None:
    losses, apart = train(SHAPES[shape], theta, FOLLOW)
    assert (losses[0] - losses[-1]).min() > 0.1  # it does train
    assert ((losses - losses[:, :1]).abs() < 1e-8 * losses[:, :1]).all()
    for name, distance in apart.items():
        assert (distance < 1e-8).all(), name


@pytest.mark.parametrize("forgotten", FOLLOW)
def test_each_of_eta_lambda_and_eps_has_to_follow(forgotten: str) -> None:
    losses, apart = train(TINY, 3.7, FOLLOW.keys() - {forgotten})
    for member, group in enumerate(GROUPS, 1):
        own = [distance[member].item() for name, distance in apart.items() if group_of(name) == group]
        assert min(own) > 1e-4, group
        assert (losses[-1, member] - losses[-1, 0]).abs() > 1e-6, group


def logits_apart(population: Population) -> torch.Tensor:
    """Largest difference of every member's logits from member 0's, relative."""
    tokens, _ = random_tokens(population.shape, 2, 21)
    with torch.no_grad():
        logits = population.logits(tokens)
    return (logits - logits[:1]).flatten(1).abs().amax(1) / logits[0].abs().max()


def test_slices_of_one_matrix_trade_with_their_own_multiplier() -> None:
    """Slices of one matrix may differ in init. Their η, λ and eps are the matrix' own."""
    multipliers = {each.slice: each.name for each in FORWARD.values() if each.slice}
    assert multipliers.keys() == {"k", "z", "x", "B", "C", "dt"}
    population = copies(TINY, 1 + len(multipliers))
    table = random_table(TINY, 1)
    with torch.no_grad():
        for member, (slice_, multiplier) in enumerate(multipliers.items(), 1):
            population.multipliers.get_buffer(multiplier)[member] /= 5.0
            for name, tensor in hf.state_dict(population, member).items():
                if slice_ == "k" and "k_proj" in name:
                    tensor *= 5.0
                start = 0
                for role in table.of(name):
                    if role.slice == slice_:
                        tensor[start : start + role.shape[0]] *= 5.0
                    start += role.shape[0]
    assert (logits_apart(population) < 1e-12).all()
    population.multipliers.get_buffer("key")[1] *= 5.0
    assert logits_apart(population)[1] > 1e-4


PAIRS = {
    "q and k": ("self_attn.q_proj", "self_attn.k_proj"),
    "v and o": ("self_attn.v_proj", "self_attn.o_proj"),
    "up and down": ("feed_forward.up_proj", "feed_forward.down_proj"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_only_meets_as_a_product_may_be_rescaled(pair: str) -> None:
    """Why q, k, v, up and the attention sum may grow or shrink with width: only products are flat."""
    population = copies(TINY, 3)
    one, other = PAIRS[pair]
    for member in (1, 2):
        for name, tensor in hf.state_dict(population, member).items():
            if one in name:
                tensor *= 6.3
            if other in name and member == 1:
                tensor /= 6.3
    apart = logits_apart(population)
    assert apart[1] < 1e-12
    assert apart[2] > 1e-4  # one side alone is another function

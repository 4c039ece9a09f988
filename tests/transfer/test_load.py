from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mup_tune import load_transfer
from mup_tune.errors import UserError
from mup_tune.model.hf import state_dict
from mup_tune.model.init import draw_
from mup_tune.roles import RoleTable, role_table
from mup_tune.schedule import Schedule
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.train.population import new_population
from mup_tune.transfer import Transfer
from mup_tune.trial import Budget


@pytest.fixture(scope="module")
def transfer(export: Path) -> Transfer:
    return load_transfer(export)


@pytest.fixture(scope="module")
def table(target: Shape, tuned: Settings) -> RoleTable:
    return role_table(target, tuned)


@pytest.fixture
def model(export: Path) -> Any:
    return transformers.FalconH1ForCausalLM(transformers.FalconH1Config.from_pretrained(str(export)))


class Wrapped(nn.Module):
    """As DDP around torch.compile names things."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        compiled = nn.Module()
        compiled._orig_mod = inner
        self.module = compiled


def test_every_parameter_is_drawn_from_its_role(transfer: Transfer, model: Any, table: RoleTable) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    transfer.init_weights_(model, seed=3)
    for name, parameter in model.named_parameters():
        wanted = torch.empty_like(parameter)
        draw_(wanted, table.of(name), seed=3, parameter=name)
        assert torch.equal(parameter, wanted), name
        start = 0
        for role in table.of(name):
            part = parameter[start : start + role.shape[0]]
            start += role.shape[0]
            if role.init == "normal":
                assert role.init_std is not None
                assert abs(part.std().item() - role.init_std) < 5 * role.init_std / sqrt(2 * part.numel()), name
            if role.init == "softplus_inverse_dt":
                dt = nn.functional.softplus(part)
                assert 1e-3 * (1 - 1e-4) <= dt.min() <= dt.max() <= 0.1 * (1 + 1e-4)


def test_a_proxy_and_its_export_start_from_the_same_weights(
    transfer: Transfer, model: Any, target: Shape, table: RoleTable
) -> None:
    population = new_population(target, [table, table], [4, 5], "cpu")
    transfer.init_weights_(model, seed=5)
    ours = state_dict(population, 1)
    assert ours.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(ours[name], parameter), name


def test_seeds_and_wrappers(transfer: Transfer, model: Any) -> None:
    wrapped = Wrapped(copy.deepcopy(model))
    transfer.init_weights_(model, seed=0)
    transfer.init_weights_(wrapped, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wrapped.parameters(), strict=True))
    transfer.init_weights_(wrapped, seed=1)
    assert not torch.equal(model.lm_head.weight, wrapped.module._orig_mod.lm_head.weight)
    by_name = [[id(each) for each in group["params"]] for group in transfer.param_groups(wrapped)]
    assert sum(map(len, by_name)) == len(list(model.parameters()))


def test_groups_carry_the_role_table(transfer: Transfer, model: Any, table: RoleTable) -> None:
    groups = transfer.param_groups(model)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        role, group = table.of(name)[0], of[id(parameter)]
        assert (group["lr"], group["weight_decay"], group["eps"]) == (role.lr, role.weight_decay, role.eps)
        assert (group["betas"], transfer.clip_norm) == ((0.9, 0.9), 0.5)
        if parameter.ndim == 1 or "conv1d" in name:
            assert group["weight_decay"] == 0


def test_one_step_is_the_documented_update(transfer: Transfer, model: Any, table: RoleTable, budget: Budget) -> None:
    transfer.init_weights_(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    ids = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    step = 60  # after the power schedule's onset
    transfer.apply_schedule_(optimizer, step)
    optimizer.step()
    assert budget.lam_factor(step) < 1
    for name, parameter in model.named_parameters():
        role, gradient = table.of(name)[0], parameter.grad
        eta = role.lr * budget.eta_factor(step)
        decay = role.weight_decay * budget.lam_factor(step)
        # The first Adam step: bias-corrected moments are g and g².
        update = gradient / (gradient.abs() + role.eps)
        wanted = before[name] * (1 - eta * decay) - eta * update
        torch.testing.assert_close(parameter.detach(), wanted, rtol=2e-5, atol=2e-6, msg=name)
    assert model.lm_head.weight.grad.abs().max() > 0


def test_the_schedule_is_stateless_and_survives_a_checkpoint(
    transfer: Transfer, model: Any, budget: Budget, table: RoleTable
) -> None:
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    for step in (99, 0, 45, 45):
        transfer.apply_schedule_(optimizer, step)
        (head,) = (group for group in optimizer.param_groups if "lm_head" in group["name"])
        role = table.of("lm_head.weight")[0]
        assert head["lr"] == pytest.approx(role.lr * budget.eta_factor(step), rel=1e-12)
        assert head["weight_decay"] == pytest.approx(role.weight_decay * budget.lam_factor(step), rel=1e-12)
    again = torch.optim.AdamW(transfer.param_groups(model))
    again.load_state_dict(optimizer.state_dict())
    transfer.apply_schedule_(again, 9)
    assert again.param_groups[0]["lr"] == pytest.approx(again.param_groups[0]["base_lr"])


def test_along_a_batch_ramp_the_rate_follows_the_batch_and_the_tokens(
    transfer: Transfer, model: Any, budget: Budget, table: RoleTable
) -> None:
    """Warmup, power schedule and decay go by tokens seen, and λ does not see the batch."""
    optimizer, role = torch.optim.AdamW(transfer.param_groups(model)), table.of("lm_head.weight")[0]
    (head,) = (group for group in optimizer.param_groups if "lm_head" in group["name"])
    for step in (0, 45, 60, 99):
        transfer.apply_schedule_(optimizer, step)
        plain = (head["lr"], head["weight_decay"])
        tokens = (step + 1) * budget.batch_tokens
        transfer.apply_ramped_schedule_(optimizer, tokens, budget.batch_tokens)
        assert (head["lr"], head["weight_decay"]) == pytest.approx(plain, rel=1e-12)
        transfer.apply_ramped_schedule_(optimizer, tokens, budget.batch_tokens // 4)
        assert (head["lr"], head["weight_decay"]) == pytest.approx((plain[0] / 2, plain[1]), rel=1e-12)
    between = (45 + 0.5) * budget.batch_tokens
    transfer.apply_ramped_schedule_(optimizer, int(between), budget.batch_tokens)
    assert role.lr * budget.eta_factor(45) <= head["lr"] <= role.lr * budget.eta_factor(44)
    for tokens, batch in ((budget.total_tokens + 1, 128), (64, 128), (128, 0)):
        with pytest.raises(UserError, match="outside the budget"):
            transfer.apply_ramped_schedule_(optimizer, tokens, batch)


def test_the_schedule_binds_to_the_targets_own_budget(export: Path, budget: Budget) -> None:
    own = load_transfer(export).schedule
    assert own is not None
    assert own.model_dump().items() <= budget.model_dump().items()
    bound = load_transfer(export, batch_tokens=1000, total_tokens=1_000_000).schedule
    assert bound == Schedule(
        batch_tokens=1000,
        total_tokens=1_000_000,
        warmup_tokens=100_000,
        decay_tokens=200_000,
        lr_decay_to=0.05,
        power_onset_tokens=300_000,
    )
    with pytest.raises(UserError, match="batch_tokens = 1000"):
        load_transfer(export, batch_tokens=1000, total_tokens=10)


def test_without_a_budget_the_schedule_asks_for_one(export: Path, model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export, folder)
    text = (folder / "optimizer.yaml").read_text()
    text = text.replace("batch_tokens: 128", "batch_tokens: null").replace("total_tokens: 12800", "total_tokens: null")
    (folder / "optimizer.yaml").write_text(text)
    transfer = load_transfer(folder)
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    with pytest.raises(UserError, match=r"load_transfer\(folder, batch_tokens"):
        transfer.apply_schedule_(optimizer, 0)
    with pytest.raises(UserError, match="together"):
        load_transfer(folder, total_tokens=1000)
    load_transfer(folder, batch_tokens=10, total_tokens=1000).apply_schedule_(optimizer, 99)


def test_an_edited_learning_rate_takes_effect(export: Path, model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export, folder)
    path = folder / "optimizer.yaml"
    path.write_text(re.sub(r"lr: [\d.]+", "lr: 0.125", path.read_text()))
    assert {group["base_lr"] for group in load_transfer(folder).param_groups(model)} == {0.125}
    path.write_text(path.read_text().replace("clip_norm", "clipnorm"))
    with pytest.raises(UserError, match=r"optimizer\.yaml.*clipnorm.*clip_norm"):
        load_transfer(folder)


def test_steps_and_optimizers_that_do_not_belong(transfer: Transfer, model: Any) -> None:
    optimizer = torch.optim.AdamW(transfer.param_groups(model))
    with pytest.raises(UserError, match=r"0 … 99"):
        transfer.apply_schedule_(optimizer, 100)
    with pytest.raises(UserError, match="base_lr"):
        transfer.apply_schedule_(torch.optim.AdamW(model.parameters()), 0)


def test_models_that_do_not_belong(transfer: Transfer, model: Any, export: Path) -> None:
    model.value_head = nn.Linear(4, 1)
    with pytest.raises(UserError, match=r"value_head\.weight' is matched by no pattern"):
        transfer.param_groups(model)
    del model.value_head
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(UserError, match=r"lm_head.*untied"):
        transfer.param_groups(model)
    config = json.loads((export / "config.json").read_text())
    config["ssm_multipliers"][4] = 1.0
    other = transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**config))
    with pytest.raises(UserError, match=r"config\.json: ssm_multipliers"):
        transfer.init_weights_(other)
    with torch.device("meta"):
        empty = transformers.FalconH1ForCausalLM(transformers.FalconH1Config.from_pretrained(str(export)))
    with pytest.raises(UserError, match="meta device"):
        transfer.init_weights_(empty)


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.yaml"):
        load_transfer(tmp_path)


def test_the_readmes_snippet_trains(export: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=export, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 5
    assert all(5 < loss < 8 for loss in losses)  # ln 512 = 6.24

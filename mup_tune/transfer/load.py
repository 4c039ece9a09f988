"""Training from an export: init, parameter groups and schedule for a ``transformers`` Falcon-H1 model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mup_tune.errors import UserError
from mup_tune.files import read_json, read_yaml, validated
from mup_tune.schedule import Schedule, batch_lr_factor
from mup_tune.transfer.groups import Group, OptimizerFile, ScheduleSpec
from mup_tune.transfer.torch_model import check_config, grouped, init_, refill_buffers_


@dataclass(frozen=True)
class Transfer:
    """An export, loaded. ``config`` is ``config.json``; ``schedule`` is None until a budget is known."""

    folder: Path
    config: dict[str, Any]
    optimizer: OptimizerFile
    schedule: Schedule | None

    @property
    def clip_norm(self) -> float:
        """The bound on the global gradient norm, for ``torch.nn.utils.clip_grad_norm_``."""
        return self.optimizer.clip_norm

    def init_weights_(self, model: nn.Module, seed: int = 0) -> None:
        """Draw every parameter anew from the training init and compute the buffers anew, in place.

        One seed gives one model on one kind of device, the proxies' own draws. DDP, torch.compile, activation
        checkpointing and FSDP2's ``fully_shard`` may come before or after. A model built on the meta device
        is sharded first, then filled by ``to_empty(device=...)``, then initialised here. Where parameters are
        sharded, every rank calls this.

        Raises:
            UserError: a model of another config, with unknown or missing parameters, not in float32, cut by
                FSDP1, or on the meta device.
        """
        owned = self._owned(model)
        for name, (parameter, group) in owned.items():
            init_(parameter, group.roles(), seed=seed, name=name)
        in_proj = next(group for name, (_, group) in owned.items() if name.endswith("mamba.in_proj.weight"))
        refill_buffers_(model, self.config, [part.rows for part in in_proj.init])

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for ``torch.optim.AdamW``, one a pattern, at peak η and λ.

        ``base_lr`` and ``base_weight_decay`` stay in the groups and in the optimizer's state dict;
        :meth:`apply_schedule_` computes from them alone. AdamW's decay is θ ← θ − lr·weight_decay·θ, the
        coupling these values were tuned under; an optimizer that decays by weight_decay alone needs
        lr·weight_decay.

        Raises:
            UserError: a model of another config or not in float32, a parameter that no pattern knows, or
                patterns left without parameters.
        """
        members: dict[str, list[Tensor]] = {group.pattern: [] for group in self.optimizer.groups}
        for parameter, group in self._owned(model).values():
            members[group.pattern].append(parameter)
        return [
            {
                "params": members[group.pattern],
                "name": group.pattern,
                "lr": group.lr,
                "weight_decay": group.weight_decay,
                "eps": group.eps,
                "betas": self.optimizer.betas,
                "base_lr": group.lr,
                "base_weight_decay": group.weight_decay,
            }
            for group in self.optimizer.groups
        ]

    def apply_schedule_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's lr and weight_decay for a 0-based step. Stateless; call it before ``step()``.

        Raises:
            UserError: no budget is known, a step outside it, or groups that are not of :meth:`param_groups`.
        """
        schedule = self._scheduled()
        if not 0 <= step < schedule.steps:
            raise UserError(
                f"step {step} is outside the budget's steps 0 … {schedule.steps - 1} "
                f"({schedule.total_tokens} tokens in batches of {schedule.batch_tokens})",
                fix="Give load_transfer the target's own batch_tokens and total_tokens",
            )
        _set_rates_(optimizer, schedule.eta_factor(step), schedule.lam_factor(step))

    def apply_ramped_schedule_(self, optimizer: torch.optim.Optimizer, tokens: int, batch_tokens: int) -> None:
        """:meth:`apply_schedule_` along a batch ramp, whose steps are of different sizes.

        η is times √(batch_tokens/b) as well, where b is the schedule's batch; λ is not (arXiv 2507.22448).

        Args:
            tokens: seen when this step updates, its own batch included.
            batch_tokens: of this step.

        Raises:
            UserError: as above; a batch or a number of tokens outside the budget.
        """
        schedule = self._scheduled()
        if not 1 <= batch_tokens <= tokens <= schedule.total_tokens:
            raise UserError(
                f"{tokens} tokens with the last {batch_tokens} is outside the budget of {schedule.total_tokens} tokens",
                fix="Give load_transfer the target's own total_tokens, and count this step's batch into `tokens`",
            )
        ramp = batch_lr_factor(batch_tokens, schedule.batch_tokens)
        _set_rates_(optimizer, ramp * schedule.eta_factor_at(tokens), schedule.lam_factor_at(tokens))

    def _scheduled(self) -> Schedule:
        if self.schedule is None:
            raise UserError(
                "the schedule needs the target's budget",
                file=self.folder / "optimizer.yaml",
                field="schedule.total_tokens",
                fix="load_transfer(folder, batch_tokens=..., total_tokens=...)",
            )
        return self.schedule

    def _owned(self, model: nn.Module) -> dict[str, tuple[nn.Parameter, Group]]:
        """Every parameter and its group, by ``transformers`` name, of a model that is the export's target."""
        check_config(model, self.config, self.folder / "config.json")
        return grouped(self.optimizer.groups, model)


def load_transfer(folder: str | Path, *, batch_tokens: int | None = None, total_tokens: int | None = None) -> Transfer:
    """Load what ``mup-tune transfer`` wrote.

    Args:
        folder: the export.
        batch_tokens: tokens of one optimizer step, over all devices and accumulated micro-batches.
        total_tokens: tokens of the whole training; warmup, decay and the power schedule's onset are fractions
            of it. Both default to the numbers in ``optimizer.yaml``, which are the proxy's, or null without a
            run.

    Raises:
        UserError: a missing or malformed file, or token counts that make no schedule.
    """
    folder = Path(folder)
    path = folder / "optimizer.yaml"
    optimizer = validated(OptimizerFile, read_yaml(path), path)
    return Transfer(
        folder, read_json(folder / "config.json"), optimizer, _bound(optimizer.schedule, batch_tokens, total_tokens)
    )


def _set_rates_(optimizer: torch.optim.Optimizer, eta: float, lam: float) -> None:
    """Every group's lr and weight_decay at these factors on their peaks."""
    for group in optimizer.param_groups:
        if "base_lr" not in group or "base_weight_decay" not in group:
            raise UserError("a parameter group has no base_lr", fix="Build the optimizer from param_groups(model)")
        group["lr"] = group["base_lr"] * eta
        group["weight_decay"] = group["base_weight_decay"] * lam


def _bound(spec: ScheduleSpec, batch_tokens: int | None, total_tokens: int | None) -> Schedule | None:
    """The schedule at a budget, or None where neither the caller nor the file knows one."""
    batch = spec.batch_tokens if batch_tokens is None else batch_tokens
    total = spec.total_tokens if total_tokens is None else total_tokens
    if batch is None or total is None:
        if batch_tokens is not None or total_tokens is not None:
            raise UserError("batch_tokens and total_tokens are needed together", field="load_transfer")
        return None
    if not 1 <= batch <= total:
        raise UserError(f"batch_tokens = {batch} must lie in 1 … total_tokens = {total}", field="load_transfer")
    onset = spec.power_onset_fraction
    return Schedule(
        batch_tokens=batch,
        total_tokens=total,
        warmup_tokens=round(spec.warmup_fraction * total),
        decay_tokens=round(spec.decay_fraction * total),
        lr_decay_to=spec.lr_decay_to,
        power_onset_tokens=None if onset is None else max(1, round(onset * total)),
    )

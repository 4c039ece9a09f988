"""Train one pack: init, steps with per-member clipping and masking, validation on fixed batches.

Shape suffixes: P members, B rows, T tokens of a row, S steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan

import torch

from mup_tune.data.batches import Batch
from mup_tune.data.mixture import Mixture
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.init import draw_
from mup_tune.roles import RoleTable, role_table
from mup_tune.shape import Shape
from mup_tune.train.optimizer import MemberAdamW, rates
from mup_tune.train.schedule import Schedule
from mup_tune.train.validation import Validation, to_device, validate
from mup_tune.trial import Budget, Pack, PackResult, Row, Trial

CURVE_POINTS = 200  # a member; steps are averaged into at most this many
CHECK_EVERY = 20  # steps between looks at the device, so that it is not waited for each step

OnStep = Callable[[float, float], None]  # fraction done, tokens/s over all members


@dataclass(frozen=True)
class Device:
    """Where a lane trains, and how fast its matrix products can be (FLOP/s), the denominator of MFU."""

    name: str
    threads: int
    peak_flops: float


def new_population(shape: Shape, tables: list[RoleTable], seeds: list[int], device: str) -> Population:
    """A population at its training init; members with one seed share their draws, scaled by their own init."""
    population = Population(shape, len(tables), device=device)
    population.set_roles(tables)
    for member, (table, seed) in enumerate(zip(tables, seeds, strict=True)):
        for name, tensor in hf.state_dict(population, member).items():
            draw_(tensor, table.of(name), seed=seed, parameter=name)
    return population


def train_pack(pack: Pack, data: Mixture, device: Device, on_step: OnStep) -> PackResult:
    """Train the members of ``pack`` side by side. Same pack, machine and threads: bitwise the same losses on the CPU.

    A member whose loss or gradient norm stops being finite is masked from that step on and reported as diverged; the
    others' numbers do not change.
    """
    run = PackTraining(pack.trials, data, device)
    started = time.perf_counter()
    run.train(on_step)
    trained_s = time.perf_counter() - started
    shape, budget = run.shape, run.budget
    validation = validate(run.population, data, budget, device.name)
    tokens = run.steps_done * budget.batch_tokens * len(pack.trials)
    speed = tokens / trained_s
    flops = shape.flops_per_token(budget.seq_len)
    record = {
        "device": device.name,
        "threads": device.threads,
        "backend": run.population.backend,
        "dtype": budget.dtype,
        "torch": str(torch.__version__),
        "tokens_per_s": speed,
        "mfu": speed * flops / device.peak_flops,
        "seconds": time.perf_counter() - started,
        "steps": run.steps_done,
    }
    members = len(pack.trials)
    extra = {
        "tokens_per_s": speed / members,
        "members": float(members),
        "flops": flops * run.steps_done * budget.batch_tokens,
    }
    rows = tuple(run.row(member, validation, extra) for member in range(members))
    return PackResult(pack, rows, run.curves(), record)


class PackTraining:
    """The tensors of one pack while it trains."""

    def __init__(self, trials: tuple[Trial, ...], data: Mixture, device: Device) -> None:
        self.trials, self.data, self.device = trials, data, device
        self.shape, self.budget = trials[0].shape, trials[0].budget
        if any(trial.shape != self.shape or trial.budget != self.budget for trial in trials):
            raise ValueError("members of a pack share one Shape and one Budget")
        tables = [role_table(self.shape, trial.settings) for trial in trials]
        self.population = new_population(self.shape, tables, [trial.seed for trial in trials], device.name)
        parameters = dict(self.population.named_parameters())
        budget: Budget = self.budget
        self.optimizer = MemberAdamW(
            parameters,
            rates(parameters, tables, hf.owning_role),
            (budget.beta1, budget.beta2),
            budget.clip_norm,
        )
        self.schedule = Schedule.of(budget)
        members, steps = len(trials), budget.steps
        self.alive_P = torch.ones(members, dtype=torch.bool, device=device.name)
        self.loss_SP = torch.full((steps, members), nan, device=device.name)
        self.norm_SP = torch.full((steps, members), nan, device=device.name)
        self.clipped_SP = torch.zeros((steps, members), dtype=torch.bool, device=device.name)
        self.alive_SP = torch.zeros((steps, members), dtype=torch.bool, device=device.name)
        self.steps_done = 0

    def train(self, on_step: OnStep) -> None:
        budget = self.budget
        batches = self.data.batches("train", budget.seq_len, budget.rows, budget.data_seed)
        started = time.perf_counter()
        for step in range(budget.steps):
            self.step(step, batches.batch(step))
            self.steps_done = step + 1
            if self.steps_done % CHECK_EVERY == 0:
                tokens = self.steps_done * budget.batch_tokens * len(self.trials)
                on_step(self.steps_done / budget.steps, tokens / (time.perf_counter() - started))
                if not bool(self.alive_P.any()):
                    break
        if self.device.name.startswith("cuda"):
            torch.cuda.synchronize()

    def step(self, step: int, batch: Batch) -> None:
        tokens, targets, documents = to_device(batch, self.device.name)
        count = int((batch.targets_BT >= 0).sum())
        self.optimizer.zero_grad()
        loss_P = self.population.nll(tokens, targets, documents).sum(1) / count
        loss_P.sum().backward()  # type: ignore[no-untyped-call]
        norm_P = self.optimizer.gradient_norms()
        self.loss_SP[step], self.norm_SP[step] = loss_P.detach(), norm_P
        self.alive_P = self.alive_P & loss_P.detach().isfinite() & norm_P.isfinite()
        self.alive_SP[step] = self.alive_P
        eta, lam = self.schedule.eta_factor(step), self.schedule.lam_factor(step)
        self.clipped_SP[step] = self.optimizer.step(eta, lam, norm_P, self.alive_P)

    def row(self, member: int, validation: Validation, extra: dict[str, float]) -> Row:
        trial, loss = self.trials[member], float(validation.loss_P[member])
        alive = bool(self.alive_P[member]) and isfinite(loss)
        lived = int(self.alive_SP[:, member].sum())
        settings, tail = trial.settings, self.loss_SP[: self.steps_done, member][-max(1, self.steps_done // 20) :]
        metrics = {
            **extra,
            "eta_lambda_T": settings.eta * settings.lam * self.budget.steps,
            "clipped_fraction": float(self.clipped_SP[:, member].sum()) / max(1, lived),
            "train_loss": float(tail.mean()),
            "grad_norm": float(self.norm_SP[self.steps_done - 1, member]),
        }
        if not alive:
            return Row(trial, "diverged", nan, nan, self._reason(member, lived), metrics)
        metrics |= {name: float(value_P[member]) for name, value_P in validation.metrics.items()}
        return Row(trial, "ok", loss, float(validation.se_P[member]), "", metrics)

    def _reason(self, member: int, lived: int) -> str:
        if lived >= self.steps_done:
            return "the validation loss is not finite"
        loss, norm = float(self.loss_SP[lived, member]), float(self.norm_SP[lived, member])
        what = f"the loss became {loss}" if not isfinite(loss) else f"the gradient norm became {norm}"
        return f"{what} at step {lived + 1} of {self.budget.steps}"

    def curves(self) -> dict[str, list[float]]:
        """Columns of the pack's curve table; each point is the mean of a window of steps that ends at ``step``."""
        done, budget = self.steps_done, self.budget
        columns: dict[str, list[float]] = {
            key: [] for key in ("member", "step", "tokens", "loss", "grad_norm", "clipped", "eta")
        }
        edges = sorted({round(done * point / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)} - {0})
        loss_SP, norm_SP, clipped_SP = self.loss_SP.cpu(), self.norm_SP.cpu(), self.clipped_SP.float().cpu()
        for member, trial in enumerate(self.trials):
            for start, stop in zip([0, *edges[:-1]], edges, strict=True):
                columns["member"].append(member)
                columns["step"].append(stop)
                columns["tokens"].append(stop * budget.batch_tokens)
                for key, values in (("loss", loss_SP), ("grad_norm", norm_SP), ("clipped", clipped_SP)):
                    columns[key].append(float(values[start:stop, member].mean()))
                columns["eta"].append(trial.settings.eta * self.schedule.eta_factor(stop - 1))
        return columns

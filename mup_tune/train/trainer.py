"""Train one pack: init, steps with per-member clipping and masking, validation on fixed batches.

Shape suffixes: P members, B rows, T tokens of a row, S steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isfinite, nan

import torch

from mup_tune.data.batches import Batch
from mup_tune.data.mixture import Mixture
from mup_tune.roles import role_table
from mup_tune.train.device import Device
from mup_tune.train.step import Steps
from mup_tune.train.validation import Validation, to_device, validate
from mup_tune.trial import Pack, PackResult, Trial, TrialResult
from mup_tune.version import trained_by

CURVE_POINTS = 200  # a member; steps are averaged into at most this many
CHECK_EVERY = 20  # steps between looks at the device, so that it is not waited for each step

OnStep = Callable[[float, float], None]  # fraction done, tokens/s over all members


def train_pack(pack: Pack, data: Mixture, device: Device, on_step: OnStep, steps: Steps | None = None) -> PackResult:
    """Train the members of ``pack`` side by side.

    The same pack, machine and number of threads give bitwise the same losses on a CPU. A member whose loss
    or gradient norm stops being finite is masked from that step on and reported as diverged; the others'
    numbers do not change.
    """
    run = PackTraining(pack.trials, data, device, steps)
    started = time.perf_counter()
    run.train(on_step)
    trained_s = time.perf_counter() - started
    shape, budget = run.shape, run.budget
    validation = validate(run.stepper, data, budget, device.name)
    tokens = run.steps_done * budget.batch_tokens * len(pack.trials)
    speed = tokens / trained_s
    flops = shape.flops_per_token(budget.seq_len)
    record = {
        "device": device.name,
        "threads": device.threads,
        "backend": run.stepper.backend,
        "dtype": budget.dtype,
        "mup_tune": trained_by(),
        "torch": str(torch.__version__),
        **({"cpu": torch.backends.cpu.get_cpu_capability()} if device.name == "cpu" else {}),
        "tokens_per_s": speed,
        "mfu": speed * flops / device.peak_flops[budget.dtype],
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

    def __init__(self, trials: tuple[Trial, ...], data: Mixture, device: Device, steps: Steps | None = None) -> None:
        self.trials, self.data, self.device = trials, data, device
        self.shape, self.budget = trials[0].shape, trials[0].budget
        if any(trial.shape != self.shape or trial.budget != self.budget for trial in trials):
            raise ValueError("members of a pack share one Shape and one Budget")
        self.stepper = (steps or Steps(device.name)).of(self.shape, len(trials), self.budget)
        tables = [role_table(self.shape, trial.settings) for trial in trials]
        self.stepper.load(tables, [trial.seed for trial in trials])
        members, n_steps = len(trials), self.budget.steps
        self.loss_SP = torch.full((n_steps, members), nan, device=device.name)
        self.norm_SP = torch.full((n_steps, members), nan, device=device.name)
        self.clipped_SP = torch.zeros((n_steps, members), dtype=torch.bool, device=device.name)
        self.alive_SP = torch.zeros((n_steps, members), dtype=torch.bool, device=device.name)
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
                if not bool(self.stepper.alive_P.any()):
                    break
        if self.device.name.startswith("cuda"):
            torch.cuda.synchronize()

    def step(self, step: int, batch: Batch) -> None:
        stepper = self.stepper
        if (largest := int(batch.tokens_BT.max())) >= self.shape.vocab_size:  # kernels would read another member's row
            raise ValueError(f"token {largest} lies outside the Shape's vocabulary of {self.shape.vocab_size}")
        factors = self.budget.eta_factor(step), self.budget.lam_factor(step)
        stepper.step(*to_device(batch, self.device.name), *factors)
        self.loss_SP[step], self.norm_SP[step] = stepper.loss_P, stepper.norm_P
        self.clipped_SP[step], self.alive_SP[step] = stepper.clipped_P, stepper.alive_P

    def row(self, member: int, validation: Validation, extra: dict[str, float]) -> TrialResult:
        trial, loss = self.trials[member], float(validation.loss_P[member])
        alive = bool(self.stepper.alive_P[member]) and isfinite(loss)
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
            return TrialResult(trial, "diverged", nan, nan, self._reason(member, lived), metrics)
        metrics |= {name: float(value_P[member]) for name, value_P in validation.metrics.items()}
        return TrialResult(trial, "ok", loss, float(validation.se_P[member]), "", metrics)

    def _reason(self, member: int, lived: int) -> str:
        if lived >= self.steps_done:
            return "the validation loss is not finite"
        loss, norm = float(self.loss_SP[lived, member]), float(self.norm_SP[lived, member])
        what = f"the loss became {loss}" if not isfinite(loss) else f"the gradient norm became {norm}"
        return f"{what} at step {lived + 1} of {self.budget.steps}"

    def curves(self) -> dict[str, list[float]]:
        """Columns of the pack's curve table; a point is the mean of the window of steps up to ``step``."""
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
                columns["eta"].append(trial.settings.eta * budget.eta_factor(stop - 1))
        return columns

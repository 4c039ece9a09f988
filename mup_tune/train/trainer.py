"""Train one pack: init, steps with per-member clipping and masking, validation on fixed batches.

Shape suffixes: P members, B rows, T tokens of a row, S steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import isfinite, nan

import torch

from mup_tune.data.batches import Batch
from mup_tune.data.mixture import Mixture
from mup_tune.roles import role_table
from mup_tune.train.device import Device
from mup_tune.train.fed import fed_steps
from mup_tune.train.step import Steps
from mup_tune.train.validation import Validation, validate
from mup_tune.trial import Pack, PackResult, Trial, TrialResult
from mup_tune.version import trained_by

CURVE_POINTS = 200  # a member; steps are averaged into at most this many
POLL_S = 0.0005  # between looks at a GPU: waiting for it inside a library would hold back an interrupt

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
        self._on_gpu = device.name.startswith("cuda")
        self._trace_4SP = torch.zeros(4, self.budget.steps, len(trials), pin_memory=self._on_gpu)
        self.loss_SP, self.norm_SP, self.clipped_SP, self.alive_SP = self._trace_4SP
        self.steps_done = 0

    def train(self, on_step: OnStep) -> None:
        budget, started = self.budget, time.perf_counter()
        for stop in self._trained():
            self.steps_done = stop
            tokens = stop * budget.batch_tokens * len(self.trials)
            on_step(stop / budget.steps, tokens / (time.perf_counter() - started))
            if not self.alive_SP[stop - 1].any():
                break
        if self._on_gpu:
            torch.cuda.synchronize()

    def _trained(self) -> Iterator[int]:
        """Numbers of steps after which the trace is known.

        A GPU has the steps behind them queued meanwhile, so that it never waits for the host: they are
        assembled and fed while it trains. A CPU is looked at first.
        """
        budget = self.budget
        queued: deque[tuple[int, torch.cuda.Event | None]] = deque()
        batches = self.data.batches("train", budget.seq_len, budget.rows, budget.data_seed)
        at_once, ahead = fed_steps(budget.rows, budget.seq_len), 1 if self._on_gpu else 0
        for start in range(0, budget.steps, at_once):
            stop = min(start + at_once, budget.steps)
            self.feed(start, batches.batches(start, stop))
            for _ in range(start, stop):
                self.stepper.step()
            queued.append((stop, self._kept(start, stop)))
            if len(queued) > ahead:
                yield _awaited(*queued.popleft())
        for each in queued:
            yield _awaited(*each)

    def feed(self, start: int, batches: Sequence[Batch]) -> None:
        """Feed the steps from ``start`` on."""
        largest = max(int(batch.tokens_BT.max()) for batch in batches)
        if largest >= self.shape.vocab_size:  # kernels would read another member's row
            raise ValueError(f"token {largest} lies outside the Shape's vocabulary of {self.shape.vocab_size}")
        steps = range(start, start + len(batches))
        self.stepper.feed(batches, [(self.budget.eta_factor(step), self.budget.lam_factor(step)) for step in steps])

    def _kept(self, start: int, stop: int) -> torch.cuda.Event | None:
        """Copy what the stepper tells of its last steps; on a GPU, what comes when that is done."""
        for kept_SP, told_SP in zip(self._trace_4SP, self.stepper.trace_4SP, strict=True):
            kept_SP[start:stop].copy_(told_SP[: stop - start], non_blocking=True)
        if not self._on_gpu:
            return None
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return done

    def row(self, member: int, validation: Validation, extra: dict[str, float]) -> TrialResult:
        trial, loss = self.trials[member], float(validation.loss_P[member])
        alive = bool(self.alive_SP[self.steps_done - 1, member]) and isfinite(loss)
        lived = int(self.alive_SP[: self.steps_done, member].sum())
        settings, tail = trial.settings, self.loss_SP[: self.steps_done, member][-max(1, self.steps_done // 20) :]
        metrics = {
            **extra,
            "eta_lambda_T": settings.eta * settings.lam * self.budget.steps,
            "clipped_fraction": float(self.clipped_SP[: self.steps_done, member].sum()) / max(1, lived),
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
        for member, trial in enumerate(self.trials):
            for start, stop in zip([0, *edges[:-1]], edges, strict=True):
                columns["member"].append(member)
                columns["step"].append(stop)
                columns["tokens"].append(stop * budget.batch_tokens)
                for key, values in (("loss", self.loss_SP), ("grad_norm", self.norm_SP), ("clipped", self.clipped_SP)):
                    columns[key].append(float(values[start:stop, member].mean()))
                columns["eta"].append(trial.settings.eta * budget.eta_factor(stop - 1))
        return columns


def _awaited(steps: int, done: torch.cuda.Event | None) -> int:
    """``steps``, when they are done."""
    while done is not None and not done.query():  # type: ignore[no-untyped-call]
        time.sleep(POLL_S)
    return steps

"""Simulated training: a landscape over log2 of the axes, seed offsets, noise, divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log2

import numpy as np

from mup_tune.findings import Finding, State
from mup_tune.report.words import headline
from mup_tune.search.rehearsal import Rehearsed
from mup_tune.search.stage import Conclusion, Context, Known, Stage
from mup_tune.settings import Settings, untuned
from mup_tune.shape import Shape
from mup_tune.trial import Budget, Trial, TrialResult

SHAPE = Shape(
    d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ssm=32, ssm_head_dim=8, d_state=16, d_ff=64,
    vocab_size=264,
)  # fmt: skip
START = untuned(SHAPE)


def budget(steps: int = 20_000) -> Budget:
    return Budget(
        seq_len=128, batch_tokens=1024, total_tokens=1024 * steps, warmup_tokens=0, decay_tokens=0, val_tokens=1024
    )


def context(seeds: int = 3, steps: int = 20_000, shape: Shape = SHAPE) -> Context:
    return Context(shape, budget(steps), tuple(range(seeds)))


@dataclass(frozen=True)
class Landscape:
    """``loss`` sees log2 of every axis' value over START's; ``longer`` sees that and the Budget's tokens,
    ``larger`` that and the Shape.

    Noise is a function of ``draw``, the seed, the Shape's size and these values, so that no test hangs on how
    a trial is hashed.
    """

    loss: Callable[[Mapping[str, float]], float]
    noise: float = 0.003
    seed_offset: float = 0.5
    diverges: Callable[[Mapping[str, float], int], bool] = lambda at, seed: False
    draw: int = 0
    longer: Callable[[Mapping[str, float], int], float] = lambda at, tokens: 0.0
    larger: Callable[[Mapping[str, float], Shape], float] = lambda at, shape: 0.0

    def row(self, trial: Trial) -> TrialResult:
        at = {axis: log2(trial.settings.value(axis) / START.value(axis)) for axis in AXES}
        loss = self.loss(at) + self.longer(at, trial.budget.total_tokens) + self.larger(at, trial.shape)
        if self.diverges(at, trial.seed):
            return TrialResult(trial, "diverged", float("nan"), float("nan"), "step 3")
        common = np.random.default_rng([self.draw, trial.seed, 1]).normal(0, self.seed_offset)
        values = (*at.values(), log2(trial.settings.rope_base))
        place = [round((value + 2**9) * 2**20) for value in values]  # to a millionth of a log2, never negative
        own = np.random.default_rng([self.draw, trial.seed, trial.shape.parameters(), *place]).normal(0, self.noise)
        return TrialResult(trial, "ok", 2.0 + loss + float(common + own), 0.001)


AXES = ("elr", "ewd", *START.multipliers)


def bowl(
    optima: Mapping[str, float], curvature: float = 0.05, skew: float = 0.0
) -> Callable[[Mapping[str, float]], float]:
    """Σ ½·curvature·z²·(1 + skew·z) with z the distance from the optimum; flat along every other axis."""

    def loss(at: Mapping[str, float]) -> float:
        distances = [at[axis] - optimum for axis, optimum in optima.items()]
        return sum(curvature / 2 * z**2 * (1 + skew * z) for z in distances)

    return loss


@dataclass(frozen=True)
class Driven:
    conclusion: Conclusion
    known: Known
    rounds: int

    @property
    def moved(self) -> dict[str, float]:
        """log2 of what each axis moved by."""
        finding = self.conclusion.finding
        return {
            axis: log2(finding.after.value(axis) / finding.before.value(axis))
            for axis in AXES
            if finding.after.value(axis) != finding.before.value(axis)
        }


def drive(
    stage: Stage,
    landscape: Landscape,
    context: Context,
    incumbent: Settings = START,
    references: Mapping[str, Settings] | None = None,
    known: Known | None = None,
    sensitivity: Mapping[str, float] | None = None,
) -> Driven:
    """Train all a stage wants, one barrier after another, and hold it to its contract on the way."""
    state = State(incumbent, references or {}, sensitivity or {})
    rows, before, rounds = dict(known or {}), list[str](), 0
    while True:
        wanted = stage.propose(context, state, rows)
        hashes = [trial.hash for trial in wanted]
        assert len(set(hashes)) == len(hashes), "a trial is proposed twice"
        assert hashes[: len(before)] == before, "more rows took a wish back"
        missing = [trial for trial in wanted if trial.hash not in rows]
        if not missing:
            return Driven(stage.conclude(context, state, rows), rows, rounds)
        rows |= {trial.hash: landscape.row(trial) for trial in missing}
        before, rounds = hashes, rounds + 1


def counts(stage: Stage, context: Context, state: State) -> tuple[int, int]:
    """(trials if nothing surprises, trials at the very most) of a stage that is entered with ``state``."""
    asked = Rehearsed(context)
    stage.walk(asked, state)
    expected = stage.expected(len(asked.trials), context, state)
    return expected, stage.most(expected, context, state)


def title(finding: Finding) -> str:
    """The headline of a finding, "" where it has none."""
    found = headline(finding)
    return found.title if found else ""

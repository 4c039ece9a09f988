"""Samplers of a joint search: the next candidates as a pure function of the ones before."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import floor
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from mup_tune.errors import UserError

if TYPE_CHECKING:  # plans are loaded without Optuna, which the samplers import when they are asked
    import optuna

Sampler = Literal["tpe", "gp", "cma-es", "trust-region", "random"]
History = Sequence[tuple[Mapping[str, float], float | None]]  # (offsets, mean loss; None where it diverged)
Told = tuple[tuple[tuple[int, ...], float | None], ...]  # the same in grid units, axes in order

PER_LOG2 = 64  # offsets are multiples of 1/64: the last bit of a float must not make another trial
STARTUP = 8  # candidates before a model is asked, a default round
CMA_SIGMA = 0.3  # of the radius: the first population's SD
NARROWEST = 4  # half-width of a trust region in grid units: 1/16 log2, below what noise can tell


def suggest(
    sampler: Sampler, axes: Sequence[str], radius: float, history: History, n: int, seed: int
) -> list[dict[str, float]]:
    """``n`` new candidates in the box of ±``radius`` around the centre: log2 offsets, multiples of 1/64.

    None of them is the centre, in ``history``, or there twice; what a sampler repeats is drawn anew from the
    whole box. The same arguments give the same candidates, so that resuming a run proposes what it proposed
    before.

    Args:
        history: empty, or the centre and then whole rounds of ``n`` candidates (a trust region counts
        rounds).

    Raises:
        UserError: the box holds fewer than ``n`` candidates that are new.
    """
    limit = floor(radius * PER_LOG2)
    check_room(axes, radius, max(len(history) - 1, 0) + n)
    told = tuple((tuple(round(at[axis] * PER_LOG2) for axis in axes), loss) for at, loss in history)
    units = _suggested(sampler, len(axes), limit, told, n, seed)
    return [{axis: unit / PER_LOG2 for axis, unit in zip(axes, each, strict=True)} for each in units]


def check_room(axes: Sequence[str], radius: float, candidates: int) -> None:
    """A :class:`UserError` where the box does not hold so many different candidates, the centre left out."""
    room = (2 * floor(radius * PER_LOG2) + 1) ** len(axes) - 1
    if room < candidates:
        raise UserError(
            f"±{radius:g} log2 over {', '.join(axes)} holds {room} different candidates, fewer than {candidates}",
            field="trials",
            fix="Lower it, or give more axes or a larger radius",
        )


@lru_cache(maxsize=256)  # a walk is replayed at every barrier, all its rounds from the first
def _suggested(sampler: Sampler, dims: int, limit: int, told: Told, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(seed)
    taken = {(0,) * dims, *(at for at, _ in told)}
    if sampler == "random":
        drawn: Iterable[tuple[int, ...]] = (_uniform(rng, [-limit] * dims, [limit] * dims) for _ in range(n))
    elif sampler == "trust-region":
        drawn = _trust_region(rng, dims, limit, told, n)
    elif sampler == "cma-es":
        drawn = _cma_es(dims, limit, told, n, seed)
    else:
        drawn = _modelled(sampler, dims, limit, told, n, seed)
    found: list[tuple[int, ...]] = []
    for at in drawn:
        while at in taken:
            at = _uniform(rng, [-limit] * dims, [limit] * dims)
        taken.add(at)
        found.append(at)
    return tuple(found)


def _uniform(rng: np.random.Generator, low: Sequence[int], high: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(each) for each in rng.integers(low, high, endpoint=True))


def _trust_region(rng: np.random.Generator, dims: int, limit: int, told: Told, n: int) -> Iterator[tuple[int, ...]]:
    """Uniform in a box around the best so far, halved after every round that brought nothing better."""
    best, half = _best(told[:1]), float(limit)
    for first in range(1, len(told), n):
        better = _best(told[: first + n])
        half = max(half / 2, min(NARROWEST, limit)) if better == best else half
        best = better
    middle = best or (0,) * dims
    low = [max(unit - floor(half), -limit) for unit in middle]
    high = [min(unit + floor(half), limit) for unit in middle]
    return (_uniform(rng, low, high) for _ in range(n))


def _cma_es(dims: int, limit: int, told: Told, n: int, seed: int) -> list[tuple[int, ...]]:
    """CMA-ES with learning-rate adaptation for noisy losses (arXiv 2304.03473); a round is a population.

    Optuna's sampler keeps its state in the attributes of trials that it asked itself, and a study rebuilt
    from history has none. So its library is told the rounds anew. A diverged candidate is told as the worst
    loss that trained.
    """
    from cmaes import CMA

    box = np.tile([-1.0, 1.0], (dims, 1))
    strategy = CMA(np.zeros(dims), CMA_SIGMA, bounds=box, population_size=n, lr_adapt=True, seed=seed)
    worst = max((loss for _, loss in told if loss is not None), default=0.0)
    for first in range(1, len(told), n):
        rows = told[first : first + n]
        strategy.tell([(np.array(at) / limit, worst if loss is None else loss) for at, loss in rows])
    return [tuple(round(limit * x) for x in strategy.ask()) for _ in range(n)]


def _best(told: Told) -> tuple[int, ...] | None:
    """The point of the lowest loss, the earliest of them; None where nothing trained."""
    ended = [(loss, place) for place, (_, loss) in enumerate(told) if loss is not None]
    return told[min(ended)[1]][0] if ended else None


def _modelled(sampler: Sampler, dims: int, limit: int, told: Told, n: int, seed: int) -> list[tuple[int, ...]]:
    """Optuna's TPE or GP on a study rebuilt from the history, asked ``n`` times before any answer.

    Both see what was asked as running: TPE by its constant liar, the GP through its batch acquisition. A
    diverged candidate is told as the worst loss that trained. FAIL would be ignored by both, who would go
    there again; TPE only ranks, so that any bad value does; and a far worse one would flatten the GP's bowl.
    """
    names = [str(axis) for axis in range(dims)]
    worst = max((loss for _, loss in told if loss is not None), default=0.0)
    with _quiet(sampler) as optuna:
        box = {name: optuna.distributions.FloatDistribution(-limit, limit) for name in names}
        study = optuna.create_study(sampler=_sampler(sampler, seed))
        for at, loss in told:
            params = {name: float(np.clip(unit, -limit, limit)) for name, unit in zip(names, at, strict=True)}
            value = worst if loss is None else loss
            study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=box))
        asked = [study.ask(fixed_distributions=box).params for _ in range(n)]
    return [tuple(round(params[name]) for name in names) for params in asked]


def _sampler(sampler: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GPSampler, TPESampler

    if sampler == "tpe":
        return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed)
    return GPSampler(n_startup_trials=STARTUP, deterministic_objective=False, seed=seed)


@contextmanager
def _quiet(sampler: Sampler) -> Iterator[ModuleType]:
    """Optuna without notes on experimental samplers; a GP on one thread, so that resuming repeats bits."""
    import optuna

    verbosity, threads = optuna.logging.get_verbosity(), None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if sampler == "gp":
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)
        if threads is not None:
            torch.set_num_threads(threads)

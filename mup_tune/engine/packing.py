"""How many members a population gets, and how trials are cut into packs. Pure arithmetic."""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import ceil

from mup_tune.engine.work import Calibration
from mup_tune.errors import UserError
from mup_tune.trial import Pack, Trial

# Below this relative difference in tokens/s two sizes are equally fast: timings vary by more.
TIE = 0.03


def population_size(calibration: Calibration, n_trials: int, lanes: int) -> int:
    """Members per pack: the fastest size by ``calibration``, but never so many that a lane has no work.

    ``min(P*, ceil(n_trials / lanes))`` and at least 1, where P* is the smallest size within 3 % of the
    fastest.

    Raises:
        UserError: no size fitted into the device's memory.
    """
    speeds = calibration.tokens_per_s
    if not speeds:
        raise UserError(
            f"not even one model fits into the memory of {calibration.device}",
            field="budget.batch_tokens",
            fix="Take a smaller batch, a shorter seq_len or a smaller proxy",
        )
    fastest = max(speeds.values())
    best = min(size for size, speed in speeds.items() if speed >= (1 - TIE) * fastest)
    return max(1, min(best, ceil(n_trials / lanes)))


def pack_sizes(n_trials: int, most: int) -> list[int]:
    """Members of as few packs of at most ``most`` as can be; they differ by at most 1, larger ones first."""
    groups = ceil(n_trials / most)
    return [(n_trials - index + groups - 1) // groups for index in range(groups)]


def split(trials: tuple[Trial, ...], size: int) -> list[tuple[Trial, ...]]:
    """Cut ``trials`` in order into groups of :func:`pack_sizes`."""
    ends = list(accumulate(pack_sizes(len(trials), size), initial=0))
    return [trials[start:end] for start, end in pairwise(ends)]


def halves(pack: Pack) -> tuple[Pack, Pack]:
    """The two packs that replace one that ran out of memory.

    Raises:
        UserError: a pack of one member, which cannot be made smaller.
    """
    if len(pack.trials) < 2:
        shape = pack.trials[0].shape
        raise UserError(
            f"one model of the Shape {shape.name!r} does not fit into the device's memory",
            field="budget.batch_tokens",
            fix="Take a smaller batch, a shorter seq_len or a smaller proxy",
        )
    first, second = split(pack.trials, ceil(len(pack.trials) / 2))
    return Pack.of(pack.stage, first), Pack.of(pack.stage, second)

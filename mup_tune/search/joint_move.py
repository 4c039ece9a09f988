"""Curves of several axes around one centre, and the move that they ask for together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mup_tune import stats
from mup_tune.findings.multipliers import Prediction, ShrunkenOptimum
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.roles import group_lr_wd
from mup_tune.search.axes import moved
from mup_tune.search.stage import Context
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings
from mup_tune.stats import Sigma

SMALLEST = 0.05  # log2: what wants to move less stays
LEAST = 0.1  # of an equal share of the joint gain: what adds less stays


def predicted(curves: Sequence[SweptAxis], sigma: Sigma | None, seeds: int, tests: int = 1) -> Prediction | None:
    """The joint move that the curves ask for, within what was trained; None where nothing tells.

    Every curve's slope and curvature are shrunk by what their noise and all curves together say
    (:mod:`mup_tune.stats.shrinkage`). ``seeds`` and ``tests`` are those that will measure the move.
    """
    if sigma is None or any(stats.usable(curve.losses[0.0]) is None for curve in curves):
        return None
    fits = {curve.axis: stats.quadratic(curve.offsets, curve.ordered, sigma) for curve in curves}
    usable = {axis: fit for axis, fit in fits.items() if fit is not None}
    if not usable:
        return None
    known = stats.posterior(list(usable.values()))
    low_n, high_n = np.array([(fit.low, fit.high) for fit in usable.values()]).T
    optima_n = np.clip(known.optima_n, low_n, high_n)
    gains_n = known.gains_n(optima_n)
    moves_n = (np.abs(optima_n) >= SMALLEST) & (gains_n >= LEAST * gains_n.mean())
    each = zip(usable, optima_n.tolist(), gains_n.tolist(), moves_n.tolist(), strict=True)
    return Prediction(
        optima=tuple(ShrunkenOptimum(axis=axis, offset=x, gain=gain, moves=moves) for axis, x, gain, moves in each),
        gain=known.gain(np.where(moves_n, optima_n, 0.0)),
        detectable=stats.detectable(sigma, seeds, tests),
    )


def shifted(before: Settings, prediction: Prediction, share: float = 1.0) -> Settings:
    """``before`` after that share of the joint move, in log2."""
    return moved(before, {axis: share * offset for axis, offset in prediction.joint.items()})


def identifiable(settings: Settings, name: str, context: Context) -> bool:
    """Whether the budget is long enough for a weight decay to act; always so for what is none."""
    return name not in MULTIPLIERS or MULTIPLIERS[name].kind != "wd" or horizon(settings, name, context) >= 1


def horizon(settings: Settings, name: str, context: Context) -> float:
    """η·λ·T of the matrix that an ``.ewd`` multiplier belongs to."""
    eta, lam = group_lr_wd(settings, name.removesuffix(".ewd"))
    return eta * lam * context.budget.steps

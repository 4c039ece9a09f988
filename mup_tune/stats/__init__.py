"""Fits and intervals for few seeds. The surface that later stages fit will live beside the parabola."""

from mup_tune.stats.losses import Losses, argmin, mean, means, usable
from mup_tune.stats.noise import (
    NOTHING,
    SIGNIFICANT,
    Interval,
    Sigma,
    holm,
    paired_gain,
    scatter_sigma,
    sigma_delta,
    slope,
)
from mup_tune.stats.parabola import MISFIT_LEVEL, Parabola, fit_parabola, lack_of_fit, near_minimum

__all__ = [
    "MISFIT_LEVEL",
    "NOTHING",
    "SIGNIFICANT",
    "Interval",
    "Losses",
    "Parabola",
    "Sigma",
    "argmin",
    "fit_parabola",
    "holm",
    "lack_of_fit",
    "mean",
    "means",
    "near_minimum",
    "paired_gain",
    "scatter_sigma",
    "sigma_delta",
    "slope",
    "usable",
]

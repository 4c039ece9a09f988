"""Fits and intervals for few seeds."""

from mup_tune.stats.bowl import Bowl, fit_bowl
from mup_tune.stats.losses import Losses, argmin, mean, means, usable
from mup_tune.stats.noise import (
    NOTHING,
    SIGNIFICANT,
    Interval,
    Sigma,
    detectable,
    difference,
    holm,
    paired_gain,
    paired_slope,
    scatter_sigma,
    sigma_delta,
    slope,
)
from mup_tune.stats.parabola import Parabola, fit_parabola, lack_of_fit, near_minimum
from mup_tune.stats.quadratic import MISFIT_LEVEL
from mup_tune.stats.shrinkage import Posterior, Quadratic, posterior, quadratic

__all__ = [
    "MISFIT_LEVEL",
    "NOTHING",
    "SIGNIFICANT",
    "Bowl",
    "Interval",
    "Losses",
    "Parabola",
    "Posterior",
    "Quadratic",
    "Sigma",
    "argmin",
    "detectable",
    "difference",
    "fit_bowl",
    "fit_parabola",
    "holm",
    "lack_of_fit",
    "mean",
    "means",
    "near_minimum",
    "paired_gain",
    "paired_slope",
    "posterior",
    "quadratic",
    "scatter_sigma",
    "sigma_delta",
    "slope",
    "usable",
]

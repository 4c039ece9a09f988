"""The schedule of one budget as a figure: η, λ, ELR and EWD over the tokens of a member."""

from __future__ import annotations

from math import log2

from markupsafe import Markup

from mup_tune.report.figures.curves import learning_curves
from mup_tune.schedule import schedule_table
from mup_tune.settings import Settings
from mup_tune.trial import Budget


def schedule_curves(budget: Budget, settings: Settings) -> dict[str, tuple[list[int], list[float]]]:
    """Tokens after each step and log2(value ÷ tuned value) of the four, by name."""
    rows = schedule_table(budget, settings)
    tokens = [(row.step + 1) * budget.batch_tokens for row in rows]
    curves = {
        "η": [log2(row.eta / settings.eta) for row in rows],
        "λ": [log2(row.lam / settings.lam) for row in rows],
        "ELR = √(η·λ)": [log2(row.elr / settings.elr) for row in rows],
        "EWD = √(λ/η)": [log2(row.ewd / settings.ewd) for row in rows],
    }
    return {title: (tokens, values) for title, values in curves.items()}


def schedule_figure(budget: Budget, settings: Settings, name: str = "schedule") -> Markup:
    """SVG of the :func:`schedule_curves`; 0 where a step trains on the tuned value itself."""
    curves = schedule_curves(budget, settings)
    return learning_curves(curves, name, "log2 (value ÷ tuned value)", 0, zero=True)

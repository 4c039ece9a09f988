"""Settings that the incumbent is compared with, and how they were had."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.joint_search import Search
from mup_tune.findings.result import Result
from mup_tune.settings import Settings


class TunedBaseline(FrozenModel):
    """Named Settings after a sweep of their own ELR."""

    name: str
    settings: Settings
    result: GlobalAxes


class RandomSearch(FrozenModel):
    """``flops``: what the search for the incumbent had spent; None where the plan sets the candidates."""

    search: Search
    flops: float | None


class BaselineSet(Result):
    """The baselines that took trials."""

    type: Literal["baselines"] = "baselines"
    tuned: tuple[TunedBaseline, ...]
    random: RandomSearch | None

"""What a run says about itself: ``plan.yaml`` and ``run.json``, each parsed once into a typed value."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mup_tune.files import FrozenModel
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.trial import Budget


class PlanRecord(FrozenModel):
    """The resolved plan, every name in it replaced by what it stood for when the run began.

    ``data`` and ``stages`` stay plain: their models belong to layers that a reader of runs does not need.
    """

    name: str
    about: str = ""
    data: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...]
    budget: Budget
    proxy: Shape
    start: Settings
    target: Shape | None = None
    stages: tuple[dict[str, Any], ...]
    references: dict[str, Settings] = Field(default_factory=dict)


class SourceRecord(FrozenModel):
    """One corpus of a run: its share of the rows, its hash, and how many tokens each split holds."""

    name: str
    corpus: str
    weight: float
    hash: str
    train_tokens: int
    val_tokens: int
    vocab_size: int | None = None


class CorpusRecord(FrozenModel):
    """What a run trains on. ``hash`` is its identity, ``name`` a label."""

    name: str = ""
    hash: str
    sources: tuple[SourceRecord, ...] = ()


class RunRecord(FrozenModel):
    """``run.json``: which version made the run, from which plan and corpus, when and on which machine.

    ``commit``: of the git checkout that mup-tune ran from, where it did.
    """

    version: str
    plan_hash: str
    corpus: CorpusRecord
    created: str
    host: str
    python: str
    platform: str
    cpus: int | None
    commit: str | None = None

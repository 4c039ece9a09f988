"""What an export was made from, as data: it stands in the files of every format."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings import Outcome
from mup_tune.stats import Interval

Verdict = Outcome | Literal["unconfirmed"]


class Rule(FrozenModel):
    """One rule as it was applied: what it does, by which factor at this target, and where it comes from."""

    name: str
    what: str
    factor: float
    source: str


class Evidence(FrozenModel):
    """The run's verdict on its incumbent.

    ``gain`` is that over the hardest ``reference``, in nats/token, positive where the incumbent is better,
    with its 95 % CI over ``seeds`` fresh seeds. ``unconfirmed``: no confirmation has concluded, or it was of
    other Settings than the incumbent. ``concluded`` of ``stages`` stages have ended.
    """

    verdict: Verdict
    reference: str | None = None
    gain: Interval | None = None
    seeds: int = 0
    finished: bool
    concluded: int
    stages: int
    said: str

    @property
    def confirmed(self) -> bool:
        return self.verdict == "better"


class RunFacts(FrozenModel):
    """The run behind an export: its folder's name, its plan, and what tells it from any other run."""

    name: str
    plan: str
    plan_hash: str
    corpus: str
    corpus_hash: str
    mup_tune: str


class Provenance(FrozenModel):
    """What an export was made from; a file that holds it can be traced and made again.

    ``settings_hash`` is that of the Settings as exported, ``shape_hash`` that of the target.
    """

    mup_tune: str
    parametrisation: Literal["falcon-h1", "falcon-h1+completep"]
    origin: str
    run: RunFacts | None
    evidence: Evidence | None
    settings_hash: str
    shape_hash: str

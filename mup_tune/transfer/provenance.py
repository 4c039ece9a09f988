"""What an export was made from: it stands in the files of every format."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.transfer.evidence import Evidence


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

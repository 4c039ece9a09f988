"""The stage kinds a plan can name, one file each."""

from __future__ import annotations

from mup_tune.search.stage import Stage
from mup_tune.search.stages.basin import BasinCheck
from mup_tune.search.stages.confirm import Confirm
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.search.stages.micro import Micro

KINDS: dict[str, type[Stage]] = {"elr_ewd": ElrEwd, "micro": Micro, "confirm": Confirm, "basin": BasinCheck}

__all__ = ["KINDS", "BasinCheck", "Confirm", "ElrEwd", "Micro"]

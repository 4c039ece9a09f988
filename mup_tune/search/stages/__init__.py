"""The stage kinds a plan can name, one file each."""

from __future__ import annotations

from mup_tune.search.stage import Stage
from mup_tune.search.stages.baselines import Baselines
from mup_tune.search.stages.basin import BasinCheck
from mup_tune.search.stages.channels import Channels
from mup_tune.search.stages.confirm import Confirm
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.search.stages.joint import Joint
from mup_tune.search.stages.micro import Micro
from mup_tune.search.stages.rope_base import RopeBase
from mup_tune.search.stages.width_depth import WidthDepth

KINDS: dict[str, type[Stage]] = {
    "elr_ewd": ElrEwd,
    "micro": Micro,
    "confirm": Confirm,
    "basin": BasinCheck,
    "rope_base": RopeBase,
    "channels": Channels,
    "shape": WidthDepth,
    "joint": Joint,
    "baselines": Baselines,
}

__all__ = [
    "KINDS",
    "Baselines",
    "BasinCheck",
    "Channels",
    "Confirm",
    "ElrEwd",
    "Joint",
    "Micro",
    "RopeBase",
    "WidthDepth",
]

"""What a format of an export is. Those in :mod:`mup_tune.transfer.formats` register themselves by name."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from mup_tune.errors import UserError
from mup_tune.model.hf import CONFIG
from mup_tune.settings import Settings
from mup_tune.transfer.aim import Aimed
from mup_tune.transfer.groups import Group


class Format(ABC):
    """One trainer's way to be told of lr, weight decay, eps, init and schedule.

    Every file is a pure function of what it is given, so one transfer gives the same bytes each time. Formats
    lie beside each other in one folder: a name that two of them write has the same content.

    Attributes:
        name: the word that ``--format`` takes.
        about: one line for the help and for the README.
        draws_init: whether the training loop draws the init itself. Others start from a step-0 checkpoint.
    """

    known: ClassVar[dict[str, Format]] = {}
    name: ClassVar[str]
    about: ClassVar[str]
    draws_init: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        Format.known[cls.name] = cls()

    @abstractmethod
    def files(self, aimed: Aimed) -> dict[str, str]:
        """Texts by file name. Raises UserError: this trainer cannot express something of the Settings."""

    @abstractmethod
    def section(self, aimed: Aimed) -> str:
        """Its part of the README: the files, and how to train from them."""

    @abstractmethod
    def settings(self, folder: Path) -> Settings:
        """The exported Settings, read back from its own files."""

    def lost(self, aimed: Aimed) -> tuple[str, ...]:
        """What the trainer cannot take, a sentence each."""
        return ()

    @abstractmethod
    def verify(self, folder: Path, aimed: Aimed) -> str:
        """A sentence on what was checked of the files in ``folder``. Raises UserError: a check fails."""


def made_from(aimed: Aimed) -> dict[str, Any]:
    """What the data file of every format holds beside its own values, as plain JSON values."""
    return {
        "provenance": aimed.provenance.model_dump(mode="json"),
        "rules": [rule.model_dump(mode="json") for rule in aimed.rules],
        "warnings": list(aimed.warnings),
        "settings": aimed.settings.model_dump(mode="json"),
        "shape": aimed.target.model_dump(mode="json"),
    }


def to_json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def config_json(aimed: Aimed) -> dict[str, str]:
    return {CONFIG: to_json(aimed.config)}


def lost_in_schedule(aimed: Aimed) -> tuple[str, ...]:
    """What a trainer with a warmup-stable-decay schedule of its own cannot follow."""
    spec = aimed.optimizer.schedule
    found = [
        f"the decay to {spec.lr_decay_to:g} of the peak has the trainer's curve, not the exponential one tuned with"
    ]
    if spec.power_onset_fraction is not None:
        found.append("the power schedule, η and λ ∝ t^-1/4 from its onset on: write a scheduler for it")
    if aimed.steps is None:
        found.append("the steps of warmup and decay, for which --tokens and the batch have to be known")
    return tuple(found)


def searched(group: Group) -> str:
    """The group's pattern for trainers that search in names: whole from a dot on, whatever stands before."""
    return rf"(?:^|\.){group.pattern}$"


def first_matches(patterns: Iterable[str], aimed: Aimed) -> None:
    """Check the semantics of search and first match: every parameter meets the pattern of its own group.

    Raises:
        UserError: a parameter that meets none, or another's.
    """
    compiled = [re.compile(pattern) for pattern in patterns]
    for name in aimed.table.parameters():
        owner = next((i for i, group in enumerate(aimed.optimizer.groups) if re.fullmatch(group.pattern, name)), None)
        first = next((i for i, pattern in enumerate(compiled) if pattern.search(name)), None)
        if first is None or first != owner:
            raise UserError(f"the parameter {name!r} does not meet its own pattern first", field="patterns")

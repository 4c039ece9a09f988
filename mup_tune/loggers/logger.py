"""What a logger is, and what it is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas as pd

    from mup_tune.run.folder import RunFolder
    from mup_tune.run.view import RunView


@dataclass(frozen=True)
class Committed:
    """A committed pack.

    Attributes:
        trials: finished in the run so far, this pack's included.
        time: when it was committed, in seconds since the epoch.
        values: numbers on the run so far, by a name such as ``run/diverged``.
    """

    trials: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Concluded:
    """A concluded stage.

    Attributes:
        stage: its key as part of a name. title: what it did, in a line.
        trials: finished in the run when it concluded. time: of its last pack.
        sentences: what it learned.
        row: its row of the table ``stages``.
        curves: training loss over tokens of its best trial (``best``), of the ``incumbent`` and of each
            reference, median over seeds; at the plan's proxy and Budget.
        view: the run so far.
    """

    stage: str
    title: str
    trials: int
    time: float
    sentences: list[str]
    row: dict[str, Any]
    curves: dict[str, pd.Series[float]]
    view: RunView

    @property
    def gains(self) -> dict[str, float]:
        """The gain and its CI by name; NaN where the stage measured none."""
        return {f"{key}/{self.stage}": self.row[key] for key in ("gain", "gain_low", "gain_high")}

    @property
    def newest(self) -> bool:
        """Whether no later stage has concluded."""
        return bool(self.row["stage"] == self.view.stages["stage"].iloc[-1])


class Logger(ABC):
    """One place that a run is told to. What it raises ends this logger, and not the sweep.

    Attributes:
        known: loggers by name. needs: modules that must be there.
        packs, stages: how many of each it was told before this driver began. It is not told them again.
    """

    known: ClassVar[dict[str, type[Logger]]] = {}
    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    packs: int = 0
    stages: int = 0

    def __init_subclass__(cls) -> None:
        cls.known[cls.name] = cls

    @abstractmethod
    def __init__(self, folder: RunFolder) -> None:
        """Open it for this run, or go on with what an earlier driver began."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where people look, in a line."""

    @abstractmethod
    def committed(self, pack: Committed) -> None: ...

    @abstractmethod
    def concluded(self, stage: Concluded) -> None: ...

    @abstractmethod
    def close(self, complete: bool) -> None:
        """No more comes from this driver. ``complete``: nor from any other."""

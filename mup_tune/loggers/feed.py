"""From a run's journal to its loggers: what is new in it, told to each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from mup_tune.files import content_hash
from mup_tune.findings import Finding
from mup_tune.loggers.logger import Committed, Concluded, Logger
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import slug
from mup_tune.run.view import RunView

if TYPE_CHECKING:
    from mup_tune.shape import Shape
    from mup_tune.trial import Budget

Words = Callable[[Finding], list[str]]
Say = Callable[[str], None]
ToldT = TypeVar("ToldT")


@contextmanager
def logged(
    kinds: Sequence[type[Logger]], folder: RunFolder, journal: Journal, words: Words, say: Say
) -> Iterator[Callable[[], None]]:
    """Loggers of a run while it is driven. What is yielded tells them what is new; the end does it too.

    Args:
        words: a finding as sentences.
        say: prints a line: where people look, and a warning where a logger fails.
    """
    feed = Feed(folder, journal, words, say)
    feed.open(kinds)
    try:
        yield feed.update
    finally:
        feed.update()
        feed.close()


class Feed:
    """Tells a run's loggers what its journal says. A logger that fails is left out from there on."""

    def __init__(self, folder: RunFolder, journal: Journal, words: Words, say: Say) -> None:
        self.folder, self.journal, self.words, self.say = folder, journal, words, say
        self.loggers: list[Logger] = []
        self.packs = self.stages = self.trials = self.diverged = 0
        self.flops = self.seconds = 0.0
        self.best: dict[str, float] = {}
        self.ends: dict[str, tuple[int, float]] = {}  # of a stage: trials and time at its last pack
        self.at_plan = _size(folder.plan.proxy, folder.plan.budget)

    def open(self, kinds: Iterable[type[Logger]]) -> None:
        for kind in kinds:
            try:
                logger = kind(self.folder)
                self.say(f"--log {kind.name}: {logger.where}")
            except Exception as error:
                self._warn(kind.name, error)
            else:
                self.loggers.append(logger)
        self.update()

    def update(self) -> None:
        """Tell what came since the last time."""
        if not self.loggers:
            return
        try:
            self._update()
        except Exception as error:  # of the facts, which all of them need
            for logger in self.loggers:
                self._warn(logger.name, error)
            self.loggers = []

    def close(self) -> None:
        complete = bool(self.journal.get_note("complete"))
        for logger in list(self.loggers):
            self._call(logger, logger.close, complete)

    def _update(self) -> None:
        for pack in self.journal.packs()[self.packs :]:
            self.packs += 1
            told = self._committed(pack)
            for logger in [each for each in self.loggers if self.packs > each.packs]:
                self._call(logger, logger.committed, told)
        view: RunView | None = None
        for finding in self.journal.findings()[self.stages :]:
            self.stages += 1
            if asking := [each for each in self.loggers if self.stages > each.stages]:
                view = view or RunView.of(self.folder, self.journal)
                concluded = self._concluded(finding, view)
                for logger in asking:
                    self._call(logger, logger.concluded, concluded)

    def _committed(self, pack: dict[str, Any]) -> Committed:
        rows = [self.journal.rows[hash_] for hash_ in pack["hashes"]]
        first, stage = rows[0].trial, slug(pack["stage"])
        self.trials += len(rows)
        self.diverged += sum(not row.ok for row in rows)
        self.flops += sum(row.trial.flops for row in rows)
        self.seconds += pack["record"].get("seconds", 0.0)
        values = {"run/diverged": float(self.diverged), "run/flops": self.flops, "run/device_seconds": self.seconds}
        if speed := pack["record"].get("tokens_per_s"):
            values["run/tokens_per_s"] = float(speed)
        if _size(first.shape, first.budget) == self.at_plan:
            losses = [row.loss for row in rows if row.ok]
            self.best[stage] = min([self.best.get(stage, inf), *losses])
            if self.best[stage] < inf:
                values[f"best_loss/{stage}"] = self.best[stage]
        time = datetime.fromisoformat(pack["committed_utc"]).timestamp()
        self.ends[pack["stage"]] = self.trials, time
        return Committed(self.trials, time, values)

    def _concluded(self, finding: Finding, view: RunView) -> Concluded:
        key = finding.stage
        (found,) = view.stages[view.stages["stage"] == key].to_dict("records")
        row = {str(name): value for name, value in found.items()}
        # A stage that trained nothing ends where the one before it did.
        trials, time = self.ends.get(key) or max(self.ends.values(), default=(0, 0.0))
        curves = self._curves(key, view)
        return Concluded(slug(key), finding.title, trials, time, self.words(finding), row, curves, view)

    def _curves(self, key: str, view: RunView) -> dict[str, pd.Series[float]]:
        """Of trials that had ended when the stage concluded: told later, it is told the same."""
        until = view.stage_keys[: view.stage_keys.index(key) + 1]
        _, state = self.journal.conclusion(key) or (None, None)
        named = {**state.references, "incumbent": state.incumbent} if state else {}
        found: dict[str, pd.Series[float]] = {}
        for name, settings in named.items():
            if seeds := view.curves_of(settings, until):
                found[slug(name)] = pd.concat(list(seeds.values()), axis=1).median(axis=1)
        rows = [member.row for member in self.journal.members() if member.stage == key and member.row.ok]
        alike = [row for row in rows if _size(row.trial.shape, row.trial.budget) == self.at_plan]
        if alike:
            curve = view.curve(min(alike, key=lambda row: row.loss).trial.hash)
            found["best"] = pd.Series(curve["loss"].to_numpy(), index=curve["tokens"].to_numpy())
        return {name: curve.dropna() for name, curve in found.items()}

    def _call(self, logger: Logger, method: Callable[[ToldT], None], told: ToldT) -> None:
        try:
            method(told)
        except Exception as error:
            self.loggers.remove(logger)
            self._warn(logger.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        first, *_ = str(error).strip().splitlines() or [""]
        self.say(f"warning: --log {name} ends here, and the run goes on ({type(error).__name__}: {first})")


def _size(shape: Shape, budget: Budget) -> str:
    """What two trials share whose losses compare."""
    return content_hash([shape.model_dump(mode="json"), budget.model_dump(mode="json")])

"""The live display of a sweep: stage, trials done, best loss, tokens/s, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mup_tune.cli.output import led
from mup_tune.engine.events import Event, Finished, Lanes, Lost, Started
from mup_tune.engine.work import Progress
from mup_tune.search.loop import Position, Sweep
from mup_tune.trial import Pack


class Display:
    """Follows a driver's events. On a terminal it redraws in place, elsewhere it prints a line a pack."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.started = time.monotonic()
        self.lanes = 0
        self.progress: dict[str, Progress] = {}
        self.packs: dict[str, Pack] = {}
        self.trained_s: list[float] = []  # lane seconds a trial, of finished packs
        self.pack_started: dict[str, float] = {}
        self.stage, self.changed = "", ""
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Callable[[Event], None]:
        self._say_changed()
        if self.console.is_terminal:
            self.live.start()
        return self.on_event

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def on_event(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Lanes):
            self.lanes = event.n
        elif isinstance(event, Progress):
            self.progress[event.lane] = event
        elif isinstance(event, Started):
            self.pack_started[event.lane] = now
            if isinstance(event.work, Pack):
                self.packs[event.lane] = event.work
            self._say_stage()
        elif isinstance(event, Finished | Lost):
            pack = self.packs.pop(event.lane, None)
            self.progress.pop(event.lane, None)
            if isinstance(event, Finished) and pack:
                self.trained_s.append((now - self.pack_started[event.lane]) / len(pack.trials))
            if isinstance(event, Lost):
                self.console.print(led("lost", f" on {event.lane}: {event.why}; handed out again", "yellow"))
            self._say_changed()
            if not self.console.is_terminal:
                self._say_line()

    def _say_stage(self) -> None:
        at = self.sweep.position()
        if at.title != self.stage:
            self.stage = at.title
            self.console.print(led(f"stage {at.stage + 1}/{at.stages}", f" {at.title}"))

    def _say_changed(self) -> None:
        """Once a change: losses of other code or other arithmetic are not those that the run began with."""
        if self.sweep.changed not in ("", self.changed):
            self.changed = self.sweep.changed
            self.console.print(
                f"warning: this run's first pack was trained with {self.changed}. Its losses and the new ones may not "
                "compare."
            )

    def _say_line(self) -> None:
        at = self.sweep.position()
        self.console.print(f"  {at.done}/{at.wanted} trials{_best(at)}, {self._elapsed()}")

    def _elapsed(self) -> str:
        return str(timedelta(seconds=round(time.monotonic() - self.started)))

    def _left(self, at: Position) -> str:
        """Time left in this stage's known trials; a stage may ask for more once it has seen these."""
        if not self.trained_s:
            return "–"
        under_way = sum(
            self.progress[lane].fraction * len(pack.trials)
            for lane, pack in self.packs.items()
            if lane in self.progress
        )
        mean = sum(self.trained_s) / len(self.trained_s)
        return str(timedelta(seconds=round(max(0.0, at.wanted - at.done - under_way) * mean / max(1, self.lanes))))

    def render(self) -> RenderableType:
        at = self.sweep.position()
        speed = sum(progress.tokens_per_s for progress in self.progress.values())
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"stage {at.stage + 1}/{at.stages}", style="bold"),
            ProgressBar(total=max(1, at.wanted), completed=at.done, width=24),
            f"{at.done}/{at.wanted} trials{_best(at)}",
            f"{speed:,.0f} tokens/s" if speed else "starting lanes" if not self.packs else "",
            f"{self._elapsed()}, stage ends in {self._left(at)}",
        )
        lanes = Table.grid(padding=(0, 2))
        for lane, pack in sorted(self.packs.items()):
            progress = self.progress.get(lane)
            done = progress.fraction if progress else 0.0
            lanes.add_row(f"  {lane}", ProgressBar(total=1.0, completed=done, width=24), f"{len(pack.trials)} members")
        return Group(head, lanes)


def _best(at: Position) -> str:
    return f", best {at.best_loss:.4f}" if at.best_loss is not None else ""

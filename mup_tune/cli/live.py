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
from mup_tune.engine.work import Calibrate, Progress, Work
from mup_tune.search.loop import Position, Sweep
from mup_tune.trial import Pack

LINE_EVERY_S = 60.0  # in a log
LONGEST_S = 1000 * 24 * 3600  # what is said of longer times, after a first step that was slow
BESIDE = 6  # lines of a terminal that lanes leave free


class Display:
    """Follows a driver's events. On a terminal it redraws in place, elsewhere it prints a line a minute."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep, self.console = sweep, console
        self.started = self.said = time.monotonic()
        self.lanes = 0
        self.progress: dict[str, Progress] = {}
        self.at_work: dict[str, tuple[Work, float]] = {}  # since when
        self.speeds: dict[str, float] = {}  # tokens/s of each lane, as last heard
        self.flops, self.seconds = 0.0, 0.0  # of lanes, in finished packs
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
            if event.tokens_per_s:
                self.speeds[event.lane] = event.tokens_per_s
        elif isinstance(event, Started):
            self.at_work[event.lane] = event.work, now
            self._say_stage()
            if isinstance(event.work, Calibrate):
                self._say_calibration(event.work)
        elif isinstance(event, Finished | Lost):
            work, since = self.at_work.pop(event.lane, (event.work, now))
            self.progress.pop(event.lane, None)
            if isinstance(event, Finished):
                self.flops += _flops(work)
                self.seconds += now - since if isinstance(work, Pack) else 0.0
            else:
                self.speeds.pop(event.lane, None)
                self.console.print(led("lost", f" on {event.lane}: {event.why}; handed out again", "yellow"))
            self._say_changed()
        if not self.console.is_terminal:
            self._say_line(now, isinstance(event, Finished))

    def _say_stage(self) -> None:
        at = self.sweep.position()
        if at.title != self.stage:
            self.stage = at.title
            self.console.print(led(f"stage {at.stage + 1}/{at.stages}", f" {at.title}"))

    def _say_calibration(self, work: Calibrate) -> None:
        if not self.console.is_terminal:
            line = f"  measuring how fast populations of {work.trial.shape.name} train, up to {work.sizes[-1]} members"
            self.console.print(line, soft_wrap=True)

    def _say_changed(self) -> None:
        """Once a change: losses of other code or other arithmetic are not those that the run began with."""
        if self.sweep.changed not in ("", self.changed):
            self.changed = self.sweep.changed
            self.console.print(
                f"warning: this run's first pack was trained with {self.changed}. Its losses and the new ones may not "
                "compare."
            )

    def _say_line(self, now: float, finished: bool) -> None:
        """Once a minute, and at a stage's end."""
        if now - self.said < LINE_EVERY_S and not finished:
            return
        at = self.sweep.position()
        if not at.wanted or (now - self.said < LINE_EVERY_S and at.done < at.wanted):
            return
        self.said = now
        line = f"  stage {at.stage + 1}/{at.stages}, {_trials(at)}, {self._doing()}, {self._times(at)}"
        self.console.print(line, soft_wrap=True)

    def _doing(self) -> str:
        """Tokens/s over all lanes, or why there are none."""
        at_work = list(self.at_work.items())  # the display's thread reads while the driver's writes
        for lane, (work, _) in at_work:
            if isinstance(work, Calibrate):
                return f"measuring {self._measured(lane, work)}"
        busy = {lane for lane, _ in at_work}
        speed = sum(speed for lane, speed in list(self.speeds.items()) if lane in busy or not busy)
        return f"{speed:,.0f} tokens/s" if speed else "first steps" if busy else "starting lanes"

    def _measured(self, lane: str, work: Calibrate) -> str:
        progress = self.progress.get(lane)
        size = progress.size if progress else work.sizes[0]
        return f"{work.trial.shape.name} × {size}, {work.sizes.index(size) + 1} of {len(work.sizes)} sizes"

    def _times(self, at: Position) -> str:
        return f"{_clock(time.monotonic() - self.started)}, stage ends in {self._left(at)}"

    def _left(self, at: Position) -> str:
        """Time left in this stage's known trials; a stage may ask for more once it has seen these."""
        now, flops, seconds = time.monotonic(), 0.0, 0.0
        for lane, (work, since) in list(self.at_work.items()):
            progress = self.progress.get(lane)
            if progress and isinstance(work, Pack):
                flops += progress.fraction * _flops(work)
                seconds += now - since
        if not self.flops + flops:
            return "–"
        a_flop = (self.seconds + seconds) / (self.flops + flops)
        return _clock(max(0.0, at.flops_left - flops) * a_flop / max(1, self.lanes))

    def render(self) -> RenderableType:
        """At most as wide and as high as the terminal."""
        at = self.sweep.position()
        head = _grid()
        head.add_row(ProgressBar(total=max(1, at.wanted), completed=at.done, width=24), _trials(at))
        lanes, room = _grid(), max(1, self.console.size.height - BESIDE)
        shown = sorted(self.at_work.items())
        for lane, (work, _) in shown[:room]:
            progress = self.progress.get(lane)
            bar = ProgressBar(total=1.0, completed=progress.fraction if progress else 0.0, width=16)
            what = f"{len(work.trials)} members" if isinstance(work, Pack) else f"measures {self._measured(lane, work)}"
            lanes.add_row(f"  {lane}", bar, what)
        more = [_line(f"  and {len(shown) - room} more lanes")] if len(shown) > room else []
        title = Text.assemble((f"stage {at.stage + 1}/{at.stages}", "bold"), f" {at.title}")
        title.no_wrap, title.overflow = True, "ellipsis"
        return Group(title, head, _line(f"{self._doing()}, {self._times(at)}"), lanes, *more)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    return grid


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _trials(at: Position) -> str:
    return f"{at.done}/{at.wanted} trials" + (f", best {at.best_loss:.4f}" if at.best_loss is not None else "")


def _flops(work: Work) -> float:
    return sum(trial.flops for trial in work.trials) if isinstance(work, Pack) else 0.0


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=min(round(seconds), LONGEST_S)))

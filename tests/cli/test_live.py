"""What a sweep says of itself while it trains: in place on a terminal, in lines in a log."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from mup_tune.cli import live
from mup_tune.cli.live import Display
from mup_tune.cli.output import Terminal
from mup_tune.engine.events import Finished, Lanes, Lost, Started
from mup_tune.engine.work import Calibrate, Progress
from mup_tune.search.loop import Position
from mup_tune.settings import untuned
from mup_tune.shape import load_shape
from mup_tune.trial import Budget, Pack, Trial

SHAPE = load_shape("cpu-32")
BUDGET = Budget(seq_len=8, batch_tokens=16, total_tokens=64, warmup_tokens=0, decay_tokens=16, val_tokens=16)
TRIAL = Trial(shape=SHAPE, budget=BUDGET, settings=untuned(SHAPE), seed=0)
FLOPS = TRIAL.flops


def packs(n: int, size: int = 1) -> list[Pack]:
    trials = [TRIAL.model_copy(update={"seed": seed}) for seed in range(n * size)]
    return [Pack.of("elr", tuple(trials[size * index : size * (index + 1)])) for index in range(n)]


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


class Bench:
    """A display of a sweep that stands where ``at`` says."""

    def __init__(self, terminal: bool = False) -> None:
        self.file, self.at = io.StringIO(), Position(0, 2, "ELR and EWD", 0, 40, 40 * FLOPS, None)
        console = Terminal(file=self.file, force_terminal=terminal, width=80, height=24)
        sweep: Any = SimpleNamespace(position=lambda: self.at, changed="")
        self.display = Display(sweep, console)
        self.tell = self.display.on_event

    def said(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def shown(self) -> list[str]:
        console = Terminal(file=io.StringIO(), width=80, height=24)
        self.display.console = console
        console.print(self.display.render())
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_log_has_a_line_a_minute_and_one_at_the_stages_end(clock: Clock) -> None:
    bench = Bench()
    first, second = packs(2, size=20)
    bench.tell(Lanes(1))
    bench.tell(Started("lane-0", first))
    for _ in range(5):
        clock.now += 25
        bench.tell(Progress("lane-0", first.id, 0.5, 12345.0))
    assert bench.said() == [
        "stage 1/2 ELR and EWD",
        "  stage 1/2, 0/40 trials, 12,345 tokens/s, 0:01:15, stage ends in 0:03:45",
    ]
    bench.at = Position(0, 2, "ELR and EWD", 20, 40, 20 * FLOPS, 2.5)
    clock.now += 25
    bench.tell(Finished("lane-0", first))
    assert bench.said()[2:] == [
        "  stage 1/2, 20/40 trials, best 2.5000, 12,345 tokens/s, 0:02:30, stage ends in 0:02:30"
    ]
    bench.tell(Started("lane-0", second))
    bench.at = Position(0, 2, "ELR and EWD", 40, 40, 0.0, 2.25)
    clock.now += 10
    bench.tell(Finished("lane-0", second))
    assert bench.said()[3:] == [
        "  stage 1/2, 40/40 trials, best 2.2500, 12,345 tokens/s, 0:02:40, stage ends in 0:00:00"
    ]


def test_a_calibration_says_what_it_measures_and_how_far_it_is(clock: Clock) -> None:
    bench = Bench()
    work = Calibrate(TRIAL, (1, 2, 4, 8))
    bench.tell(Lanes(1))
    bench.tell(Started("lane-0", work))
    assert bench.said()[1:] == [f"  measuring how fast populations of {SHAPE.name} train, up to 8 members"]
    clock.now += 90
    bench.tell(Progress("lane-0", "", 0.5, 0.0, 4))
    assert bench.said()[2:] == [
        "  stage 1/2, 0/40 trials, measuring cpu-32 × 4, 3 of 4 sizes, 0:01:30, stage ends in –"
    ]
    assert any("measures cpu-32 × 4, 3 of 4 sizes" in line for line in bench.shown())
    bench.tell(Finished("lane-0", work))
    assert bench.display.flops == bench.display.seconds == 0.0  # of training alone


def test_a_log_says_nothing_before_there_is_a_stage(clock: Clock) -> None:
    bench = Bench()
    bench.at = Position(0, 2, "ELR and EWD", 0, 0, 0.0, None)
    clock.now += 90  # Ray started
    bench.tell(Lanes(1))
    assert bench.said() == []


def test_a_lost_lane_trains_nothing(clock: Clock) -> None:
    bench = Bench()
    one, two = packs(2)
    for lane, pack in (("lane-0", one), ("lane-1", two)):
        bench.tell(Started(lane, pack))
        bench.tell(Progress(lane, pack.id, 0.5, 1000.0))
    assert "2,000 tokens/s" in bench.shown()[2]
    bench.tell(Lost("lane-1", two, "killed"))
    assert "1,000 tokens/s" in bench.shown()[2]


@pytest.mark.parametrize("lanes", [1, 18, 64])
def test_the_display_fits_a_terminal_of_80_by_24(lanes: int, clock: Clock) -> None:
    """A line that wraps, or one too many, would leave a copy of itself at every redraw."""
    bench = Bench()
    bench.at = Position(9, 12, "a stage of a very long name, " * 5, 12345, 123456, 1e9, 12.3456)
    for index, pack in enumerate(packs(lanes)):
        bench.tell(Started(f"lane-{index}", pack))
        bench.tell(Progress(f"lane-{index}", pack.id, 1e-9, 123456789.0))
    clock.now += 1e6
    lines = bench.shown()
    assert len(lines) == 3 + min(lanes, 18) + (lanes > 18) <= 23
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("stage 10/12 a stage of a very long name")
    assert "12345/123456 trials, best 12.3456" in lines[1]
    assert lanes < 64 or "and 46 more lanes" in lines[-1]

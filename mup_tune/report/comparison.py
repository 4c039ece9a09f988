"""Several runs side by side: where their Settings went, what they gained, and how far that differs.

Runs are taken for independent. A difference is to the first run, with :func:`mup_tune.stats.difference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log, log2

from mup_tune import stats
from mup_tune.errors import UserError
from mup_tune.report import facts, formats
from mup_tune.report.gains import PROXY, Gained, gains_of
from mup_tune.report.summary import Summary, summary_of
from mup_tune.report.tables import KINDS, curvatures, endpoints
from mup_tune.run.view import RunView
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

SAME = 1e-9  # log2 below which two values are one


@dataclass(frozen=True)
class Cell:
    """A measured value of one run; ``difference``: to the first run, where both are known."""

    value: Interval | None
    difference: Interval | None = None


@dataclass(frozen=True)
class GainRow:
    """The gain over one reference at one place, a cell a run, and what it is worth in tokens.

    ``ratios``: each run's factor in tokens over the first run's.
    """

    place: str
    reference: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    saved: tuple[TokensSaved | None, ...]
    ratios: tuple[Interval | None, ...]


@dataclass(frozen=True)
class SettingRow:
    """One setting after each run. ``start``: before all of them, where they started from one value."""

    name: str
    kind: str
    start: float | None
    values: tuple[float | None, ...]

    @property
    def log2(self) -> tuple[float | None, ...]:
        """From the first run's value."""
        first, *others = self.values
        return (None, *(log2(each / first) if first and each else None for each in others))

    @property
    def furthest(self) -> float:
        """The largest log2 distance to the first run's value; 0 where they are one."""
        most = max(abs(each or 0.0) for each in self.log2)
        return most if most > SAME else 0.0

    @property
    def differs(self) -> bool:
        return self.furthest > 0


@dataclass(frozen=True)
class Compared:
    """The runs by unique names, in the order given."""

    names: tuple[str, ...]
    runs: tuple[RunView, ...]

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        return tuple(map(summary_of, self.runs))

    @cached_property
    def losses_compare(self) -> bool:
        """Whether all validated on one text, cut in one way."""
        ways = {
            (run.record.corpus.hash, run.plan.budget.val_tokens, run.plan.budget.seq_len, run.plan.proxy.vocab_size)
            for run in self.runs
        }
        return len(ways) == 1

    @cached_property
    def gains(self) -> tuple[GainRow, ...]:
        """Every gain on fresh seeds, at the proxy first; those that most runs have before others."""
        told = [gains_of(run) for run in self.runs]
        keys = list(dict.fromkeys(key for each in told for key in each))
        rows = [_gain_row(key, [each.get(key) for each in told]) for key in keys]
        return tuple(
            sorted(rows, key=lambda row: (row.place != PROXY, -sum(cell.value is not None for cell in row.cells)))
        )

    @cached_property
    def settings(self) -> tuple[SettingRow, ...]:
        """Those that differ most first."""
        ends = [endpoints(run) for run in self.runs]
        rows = []
        for name, kind in KINDS.items():
            starts = {run.plan.start.value(name) for run in self.runs}
            values = tuple(end[1].value(name) if end else None for end in ends)
            rows.append(SettingRow(name, kind, starts.pop() if len(starts) == 1 else None, values))
        return tuple(sorted(rows, key=lambda row: -row.furthest))

    @cached_property
    def sensitivities(self) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
        """By axis, the largest curvature that a run shows first."""
        told = [curvatures(run.findings) for run in self.runs]
        axes = dict.fromkeys(axis for each in told for axis in each)
        rows = [(axis, _cells([each.get(axis) for each in told])) for axis in axes]
        return tuple(sorted(rows, key=lambda row: -largest(row[1])))

    @cached_property
    def what_was_run(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """What was run: group, term and a text a run."""
        told = [
            {(group, term): text for group, rows in facts.what_was_run(run) for term, text in rows} for run in self.runs
        ]
        keys = dict.fromkeys(key for each in told for key in each)
        return tuple((*key, tuple(each.get(key, formats.NONE) for each in told)) for key in keys)


def compared(runs: Sequence[RunView]) -> Compared:
    """Runs with names of their own: folders' names, with as much of their paths as tells them apart.

    Raises:
        UserError: a run is given twice.
    """
    paths = [run.path.resolve() for run in runs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{str(twice)!r} is given twice", field="RUN", fix="Name each run once")
    depth = 1
    while len(names := {"/".join(path.parts[-depth:]) for path in paths}) < len(paths):
        depth += 1
    names_in_order = tuple("/".join(path.parts[-depth:]) for path in paths)
    assert len(names) == len(names_in_order)
    return Compared(names_in_order, tuple(runs))


def largest(cells: Sequence[Cell]) -> float:
    """The largest value whose CI lies above 0; 0 where none does."""
    return max((each.value.value for each in cells if each.value and each.value.above_0), default=0.0)


def _gain_row(key: tuple[str, str], told: Sequence[Gained | None]) -> GainRow:
    saved = tuple(each and each.saved for each in told)
    return GainRow(
        *key,
        cells=_cells([each and each.comparison.gain for each in told]),
        seeds=tuple(each.seeds if each else 0 for each in told),
        saved=saved,
        ratios=(None, *(_ratio(each, saved[0]) for each in saved[1:])),
    )


def _cells(values: Sequence[Interval | None]) -> tuple[Cell, ...]:
    first, *others = values
    apart = [None if each is None or first is None else stats.difference(each, first) for each in others]
    return (Cell(first), *map(Cell, others, apart))


def _ratio(one: TokensSaved | None, other: TokensSaved | None) -> Interval | None:
    """One factor in tokens over the other, a difference of logarithms; None where one has no upper end."""
    if one is None or other is None or one.beyond or other.beyond:
        return None
    logs = [Interval(*(log(each) for each in (at.value, at.low, at.high))) for at in (one.factor, other.factor)]
    apart = stats.difference(*logs)
    return Interval(exp(apart.value), exp(apart.low), exp(apart.high))

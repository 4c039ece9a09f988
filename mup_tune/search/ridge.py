"""ELR and EWD swept as one plane: their optima lie on a ridge, and one after the other misses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from mup_tune import stats
from mup_tune.findings import AxisFinding, Decision
from mup_tune.findings.global_axes import Place, Plane
from mup_tune.search.stage import Asked
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.settings import Settings
from mup_tune.stats import NOTHING, Interval, Losses, Sigma
from mup_tune.stats.bowl import Bowl, fit_bowl

BESIDE = (-1, 0, 1)  # steps of a block about its middle
EIGHT, NINE = 8, 9  # neighbours of a place, and places of a block
Point = tuple[float, float]  # log2 offsets of (ELR, EWD)


class Ridge:
    """Blocks of places around the best point of an ELR line, and the bowl through all of them."""

    def __init__(
        self, asked: Asked, line: SweptAxis, ewd_offsets: Sequence[float], extend: int, seeds: Sequence[int]
    ) -> None:
        self.asked, self.line, self.ewd_offsets, self.extend, self.seeds = asked, line, ewd_offsets, extend, seeds
        self.centre = line.centre
        self.losses: dict[Point, Losses] = {(x, 0.0): losses for x, losses in line.losses.items()}
        self.steps = (line.offsets[-1] - line.offsets[-2], ewd_offsets[-1] - ewd_offsets[-2])
        self.extended = 0

    def walk(self) -> tuple[Settings, list[AxisFinding]]:
        """The Settings at the bowl's lowest point, and what became of both axes."""
        middle = self.line.best or 0.0
        self._train(product((middle + self.steps[0] * n for n in BESIDE), self.ewd_offsets))
        while self.extended < self.extend and (around := self._around(self.best, 1.0)):
            self._train(around)
            self.extended += 1
        at = self.optimum
        half = tuple(step / 2 for step in self.steps)
        nearest = (round(at[0] / half[0]) * half[0], round(at[1] / half[1]) * half[1])
        self._train([nearest, *self._around(nearest, 0.5)])
        return self.at(self.optimum), self._axes()

    def at(self, place: Point) -> Settings:
        return self.centre.scaled({"elr": 2.0 ** place[0], "ewd": 2.0 ** place[1]})

    @property
    def best(self) -> Point:
        places = list(self.losses)
        index = stats.argmin(stats.means([self.losses[place] for place in places]))
        return (self.line.best or 0.0, 0.0) if index is None else places[index]

    @property
    def sigma(self) -> Sigma | None:
        """σ_Δ over the places that a bowl is fitted to."""
        return stats.sigma_delta([each for losses in self.losses.values() if (each := stats.usable(losses))])

    @property
    def fit(self) -> Bowl | None:
        return fit_bowl(list(self.losses), list(self.losses.values()))

    @property
    def optimum(self) -> Point:
        """The bowl's lowest point where EWD's curvature is shown; else EWD stays unless a place is better.

        Along a flat EWD the best of many places is noise (Bonferroni over them all).
        """
        fit = self.fit
        if fit is not None and fit.yy.above_0:
            return fit.x.value, fit.y.value
        gain, line = self._gain(), self.line.fit(self.sigma)
        if gain is not None and gain.significant:
            return self.best
        return (self.line.best or 0.0) if line is None else line.optimum.value, 0.0

    @property
    def finding(self) -> Plane:
        places = sorted(self.losses)
        return Plane(
            places=tuple(Place(elr=x, ewd=y, losses=self.losses[x, y]) for x, y in places),
            fit=self.fit,
            extended=self.extended,
        )

    def _around(self, place: Point, share: float) -> list[Point]:
        """Its neighbours at that share of the grids' steps which are not trained yet."""
        dx, dy = (share * step for step in self.steps)
        return [
            there
            for m, n in product(BESIDE, BESIDE)
            if (m, n) != (0, 0) and (there := (place[0] + m * dx, place[1] + n * dy)) not in self.losses
        ]

    def _train(self, places: Iterable[Point]) -> None:
        wanted = [place for place in places if place not in self.losses]
        found = self.asked.losses([self.at(place) for place in wanted], self.seeds, around=[self.centre] * len(wanted))
        self.losses.update(zip(wanted, found, strict=True))

    def _gain(self) -> Interval | None:
        """Of the best pair over the best one at the EWD that the stage began with."""
        level = (self.line.best or 0.0, 0.0)
        if self.best == level:
            return NOTHING
        gain = stats.paired_gain(self.losses[self.best], self.losses[level], self.sigma)
        return gain and gain.picked_from(len(self.losses) - 1)

    def _axes(self) -> list[AxisFinding]:
        """The lines through the block's middle: ELR at the EWD begun with, EWD at that line's best ELR."""
        after, middle = self.at(self.optimum), self.line.best or 0.0
        column = {y: losses for (x, y), losses in self.losses.items() if x == middle}
        lines = (self.line, SweptAxis("ewd", self.at((middle, 0.0)), column, self.extended))
        gains, found = (self.line.gain(self.sigma), self._gain()), []
        for place, (curve, gain) in enumerate(zip(lines, gains, strict=True)):
            old, new = self.centre.value(curve.axis), after.value(curve.axis)
            at_edge = self.best[place] in _ends(self.losses, place)
            decision: Decision = "kept" if new == old else "edge" if at_edge else curve.leaving(gain)
            found.append(
                AxisFinding(
                    axis=curve.axis,
                    before=old,
                    after=new,
                    points=curve.points,
                    fit=curve.fit(self.sigma),
                    gain=gain,
                    p_value=gain.p_value if gain else None,
                    decision=decision,
                    extended=max(self.extended, self.line.extended),
                )
            )
        return found


def _ends(places: Iterable[Point], axis: int) -> tuple[float, float]:
    along = [place[axis] for place in places]
    return min(along), max(along)

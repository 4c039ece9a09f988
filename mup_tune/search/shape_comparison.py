"""What the kinds that compare Shapes at equal parameters share: walk, ranking and loss-speed front."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median, median_low
from typing import Annotated

from pydantic import Field, field_validator

from mup_tune import stats
from mup_tune.findings import State
from mup_tune.findings.shapes import Ranking, ShapePoint, ShapeSet
from mup_tune.roles import role_table
from mup_tune.search import swept_axis
from mup_tune.search.stage import Asked, Conclusion, Context, Stage
from mup_tune.search.swept_axis import SweptAxis
from mup_tune.shape import Shape
from mup_tune.stats import Losses, Sigma
from mup_tune.trial import TrialResult


@dataclass(frozen=True)
class Contender:
    """A Shape under comparison. ``channels`` is SSM:attention:MLP in eighths, empty where it has none."""

    label: str
    shape: Shape
    channels: str = ""


class ShapeComparison(Stage):
    """Trains the incumbent Settings at several Shapes on the same tokens, each at its best ELR of a grid.

    A larger ELR suits some Shapes and not others, so the global ELR is re-swept at each (arXiv 2507.22448
    does so on a √2 grid); where the best point is the grid's edge, that Shape's grid alone is extended, at
    most ``extend`` times. The proxy takes part, and comes first in the finding. The incumbent never changes.
    """

    elr_offsets: tuple[float, ...] = (-0.5, 0.0, 0.5)
    extend: Annotated[int, Field(ge=0, le=4)] = 1
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("elr_offsets")
    @classmethod
    def _grid(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        return offsets if offsets == (0.0,) else swept_axis.checked_grid(offsets)

    @property
    @abstractmethod
    def noun(self) -> str:
        """What differs between the Shapes, for a sentence such as "No … stands out"."""

    @property
    @abstractmethod
    def prefix(self) -> str:
        """What a label needs before it to be understood alone."""

    @abstractmethod
    def contenders(self, context: Context) -> list[Contender]:
        """The Shapes, each once, the proxy first.

        Raises:
            UserError: a Shape that cannot be had at equal parameters, or fewer than two.
        """

    @property
    def on_path(self) -> bool:
        return False

    @property
    def equal_packs(self) -> bool:
        return True

    def most(self, expected: int, context: Context, state: State) -> int:
        """Every Shape's grid extended."""
        grid = len(self.elr_offsets)
        return expected + (self.extend * (expected // grid) if grid > 1 else 0)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        contenders, incumbent = self.contenders(asked.context), state.incumbent
        for each in contenders:
            role_table(each.shape, incumbent)  # an incumbent that cannot be carried to a Shape is told before training
        curves = [SweptAxis("elr", incumbent, shape=each.shape) for each in contenders]
        extend = self.extend if len(self.elr_offsets) > 1 else 0
        swept_axis.train_grid(
            asked, curves, self.elr_offsets, swept_axis.chosen_seeds(asked.context, self.n_seeds), extend
        )
        losses = [_tuned(curve) for curve in curves]
        # Between Shapes, init draws differ even at one seed: only points of different Shapes tell that noise.
        sigma = stats.sigma_delta([kept for point in losses if (kept := stats.usable(point)) is not None])
        result = ShapeSet(
            points=self._points(asked, contenders, curves, losses, sigma),
            ranking=ranked(losses, sigma),
            noun=self.noun,
            prefix=self.prefix,
            elr_tuned=len(self.elr_offsets) > 1,
            total_tokens=asked.context.budget.total_tokens,
        )
        return Conclusion(state, self.finding(incumbent, incumbent, result, sigma))

    def _points(
        self,
        asked: Asked,
        contenders: Sequence[Contender],
        curves: Sequence[SweptAxis],
        losses: Sequence[Losses],
        sigma: Sigma | None,
    ) -> tuple[ShapePoint, ...]:
        context = asked.context
        rows = asked.rows(
            [
                [trial for x in curve.offsets for trial in context.trials(curve.at(x), curve.losses[x], curve.shape)]
                for curve in curves
            ]
        )
        speeds = [_speed(each) for each in rows]
        on_front = front([(mean, speed) for mean, (speed, _) in zip(stats.means(losses), speeds, strict=True)])
        gains = [stats.paired_gain(each, losses[0], sigma) if index else None for index, each in enumerate(losses)]
        return tuple(
            ShapePoint(
                label=each.label,
                shape=each.shape,
                channels=each.channels,
                parameters=each.shape.parameters(),
                flops_per_token=each.shape.flops_per_token(context.budget.seq_len),
                losses=losses[index],
                elr_offset=curves[index].best or 0.0,
                at_edge=len(self.elr_offsets) > 1 and curves[index].best is not None and curves[index].at_edge,
                gain=gains[index],
                tokens_per_s=speeds[index][0],
                members=speeds[index][1],
                on_front=on_front[index],
            )
            for index, each in enumerate(contenders)
        )


def ranked(losses: Sequence[Losses], sigma: Sigma | None) -> Ranking:
    """Shapes by mean loss, each tested against the best one by paired t.

    The best is picked by the data it is compared on, which makes its lead over any other one of all pairwise
    differences: Holm runs over all of them. p-values are left out where nothing tells the noise.
    """
    means = stats.means(losses)
    there = {index: mean for index, mean in enumerate(means) if mean is not None}
    order = tuple(sorted(there, key=lambda index: there[index]))
    pairs = {pair: stats.paired_gain(losses[pair[0]], losses[pair[1]], sigma) for pair in combinations(order, 2)}
    known = {pair: gain.p_value for pair, gain in pairs.items() if gain is not None and gain.p_value is not None}
    adjusted = dict(zip(known, stats.holm(list(known.values())), strict=True))
    against_best = {worse: p for (better, worse), p in adjusted.items() if better == order[0]}
    return Ranking(order=order, p_values=against_best)


def front(points: Sequence[tuple[float | None, float]]) -> list[bool]:
    """Which (mean loss, tokens/s) no other point beats in one and matches in the other; no diverged one."""
    there = [(loss, speed) for loss, speed in points if loss is not None]
    return [
        loss is not None
        and not any(other <= loss and faster >= speed and (other, faster) != (loss, speed) for other, faster in there)
        for loss, speed in points
    ]


def _tuned(curve: SweptAxis) -> Losses:
    """Losses at the best offset; None for every seed where every offset diverged on one."""
    return dict.fromkeys(curve.losses[0.0], None) if curve.best is None else dict(curve.losses[curve.best])


def _speed(rows: Sequence[TrialResult]) -> tuple[float, int]:
    """Tokens/s of a Shape's packs and their members, medians over trials; a row holds a member's share."""
    members = [int(row.metrics["members"]) for row in rows]
    speeds = [row.metrics["tokens_per_s"] * size for row, size in zip(rows, members, strict=True)]
    return median(speeds), median_low(members)

"""What the kinds that compare Shapes at equal parameters share: the walk, the ranking and the loss-speed front."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median, median_low
from typing import Annotated

from pydantic import Field, field_validator

from mup_tune import stats
from mup_tune.findings import ShapePoint
from mup_tune.roles import role_table
from mup_tune.search.stage import Asked, Conclusion, Context, Losses, Stage, State
from mup_tune.search.stages import sweep
from mup_tune.search.stages.sweep import Curve
from mup_tune.shape import Shape
from mup_tune.stats import Sigma
from mup_tune.trial import TrialResult

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Contender:
    """A Shape under comparison. ``channels`` is SSM:attention:MLP in eighths, empty where it has none."""

    label: str
    shape: Shape
    channels: str = ""


@dataclass(frozen=True)
class Ranking:
    """Indices of the Shapes that trained, best first; ``p_values`` of the others against the best, where known."""

    order: tuple[int, ...]
    p_values: Mapping[int, float]

    @property
    def within_noise(self) -> list[int]:
        return [index for index in self.order[1:] if self.p_values.get(index, 1.0) >= SIGNIFICANT]


class ShapeComparison(Stage):
    """Trains the incumbent Settings at several Shapes, each at its own best ELR of a small grid, on the same tokens.

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
        return offsets if offsets == (0.0,) else sweep.checked_grid(offsets)

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

    def counts(self, context: Context, state: State) -> tuple[int, int]:
        first = len(self.propose(context, state, {}))
        a_round = first // len(self.elr_offsets)
        return first, first + (self.extend * a_round if len(self.elr_offsets) > 1 else 0)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        contenders, incumbent = self.contenders(asked.context), state.incumbent
        for each in contenders:
            role_table(each.shape, incumbent)  # an incumbent that cannot be carried to a Shape is told before training
        curves = [Curve("elr", incumbent, shape=each.shape) for each in contenders]
        extend = self.extend if len(self.elr_offsets) > 1 else 0
        sweep.train_grid(asked, curves, self.elr_offsets, sweep.chosen_seeds(asked.context, self.n_seeds), extend)
        losses = [_tuned(curve) for curve in curves]
        # Between Shapes, init draws differ even at one seed: only points of different Shapes tell that noise.
        sigma = stats.sigma_delta([kept for point in losses if (kept := stats.usable(point)) is not None])
        points = self._points(asked, contenders, curves, losses, sigma)
        ranking = ranked(losses, sigma)
        finding = self.finding(
            before=incumbent,
            after=incumbent,
            shapes=points,
            headline=self._headline(points, ranking),
            sigma_delta=None if sigma is None else sigma.value,
            summary=(*self._result(points, ranking), *self._caveats(asked.context, points)),
        )
        return Conclusion(state, finding)

    def _points(
        self,
        asked: Asked,
        contenders: Sequence[Contender],
        curves: Sequence[Curve],
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
                gain=sweep.as_interval(gains[index]),
                tokens_per_s=speeds[index][0],
                members=speeds[index][1],
                on_front=on_front[index],
            )
            for index, each in enumerate(contenders)
        )

    def _headline(self, points: Sequence[ShapePoint], ranking: Ranking) -> str:
        if not ranking.order:
            return f"Nothing to compare: all {len(points)} Shapes diverged"
        best, others = points[ranking.order[0]], ranking.order[1:]
        if not others:
            return f"{self.prefix}{best.label} is the only one of {len(points)} Shapes that trained"
        if not ranking.p_values:
            return f"No {self.noun} stands out: one seed cannot tell {best.label}, the lowest loss, from the others"
        if close := len(ranking.within_noise):
            if len(others) == 1:
                return f"No {self.noun} stands out: {best.label} and {points[others[0]].label} cannot be told apart"
            share = f"{close} of {len(others)} others"
            return f"No {self.noun} stands out: {share} cannot be told from the best, {best.label}"
        after = points[others[0]]
        lead = 1e3 * (_mean(after) - _mean(best))
        return (
            f"{self.prefix}{best.label} trains best at equal parameters: "
            f"{lead:.1f} mnat/token below {after.label}, the next"
        )

    def _result(self, points: Sequence[ShapePoint], ranking: Ranking) -> list[str]:
        if not ranking.order:
            return ["Every Shape diverged at every ELR."]
        best, proxy = points[ranking.order[0]], points[0]
        said = [f"Best: {best.label}, {_mean(best):.4f} nats/token"]
        if best is proxy:
            said[0] += "; it is the proxy itself."
        else:
            said[0] += f"; over the proxy, {proxy.label}: {sweep.spoken(best.gain)}."
            said[0] += f" Picked as the best of {len(points)} on these seeds, it looks a little better than it is."
        if ranking.p_values:
            close = [points[index].label for index in ranking.within_noise]
            said.append(
                f"Within noise of it (paired over seeds, p ≥ {SIGNIFICANT} after Holm over all pairs, for the data "
                f"picked the best): {', '.join(close) or 'none'}."
            )
        elif len(ranking.order) > 1:
            said.append("With one seed nothing tells noise from gain between Shapes.")
        on_front = sorted((point for point in points if point.on_front), key=lambda point: point.tokens_per_s)
        shown = ", ".join(f"{point.label} at {point.tokens_per_s:,.0f} tokens/s" for point in on_front)
        said.append(f"No other Shape is both better and faster than: {shown}.")
        return said

    def _caveats(self, context: Context, points: Sequence[ShapePoint]) -> list[str]:
        fewest, most = (choose(point.members for point in points) for choose in (min, max))
        sizes = [point.parameters for point in points]
        flops = [point.flops_per_token / points[0].flops_per_token for point in points]
        said = [
            "Speeds are of whole packs as they ran on this machine, and comparable only where members are equal; "
            f"here packs had {fewest if fewest == most else f'{fewest} to {most}, so the front is but a hint'}.",
            f"Every Shape trains on the same {context.budget.total_tokens:,} tokens. Parameters differ by "
            f"{100 * (max(sizes) / min(sizes) - 1):.2g} % at most, for sizes are whole; FLOPs are not made equal: "
            f"{min(flops):.2f} to {max(flops):.2f} times the proxy's.",
            "Each loss is the lowest of its Shape's ELR points, which flatters all Shapes alike by a little."
            if len(self.elr_offsets) > 1
            else "ELR was not re-tuned: a gap may be a Shape's own, or its distance from its best ELR.",
        ]
        if edge := [point.label for point in points if point.at_edge]:
            said.append(f"Best at the edge of the ELR grid, so it may train better still: {', '.join(edge)}.")
        if lost := [point.label for point in points if stats.usable(point.losses) is None]:
            said.append(f"Diverged on a seed at every ELR: {', '.join(lost)}.")
        return said


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
    return Ranking(order, {worse: p for (better, worse), p in adjusted.items() if better == order[0]})


def front(points: Sequence[tuple[float | None, float]]) -> list[bool]:
    """Which (mean loss, tokens/s) no other point beats in one and matches in the other; a diverged one never is."""
    there = [(loss, speed) for loss, speed in points if loss is not None]
    return [
        loss is not None
        and not any(other <= loss and faster >= speed and (other, faster) != (loss, speed) for other, faster in there)
        for loss, speed in points
    ]


def _tuned(curve: Curve) -> Losses:
    """Losses at the best offset; None for every seed where every offset diverged on one."""
    return dict.fromkeys(curve.losses[0.0], None) if curve.best is None else dict(curve.losses[curve.best])


def _speed(rows: Sequence[TrialResult]) -> tuple[float, int]:
    """Tokens/s of a Shape's packs and their members, medians over its trials; a row holds one member's share."""
    members = [int(row.metrics["members"]) for row in rows]
    speeds = [row.metrics["tokens_per_s"] * size for row, size in zip(rows, members, strict=True)]
    return median(speeds), median_low(members)


def _mean(point: ShapePoint) -> float:
    ended = stats.usable(point.losses)
    assert ended is not None
    return fmean(ended.values())

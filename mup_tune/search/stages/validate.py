"""The ``validate`` stage: does what was tuned at the proxy hold at larger Shapes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import log2
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from mup_tune import stats
from mup_tune.errors import UserError, as_value_error, located
from mup_tune.findings import Comparison, State
from mup_tune.findings.basins import Basin
from mup_tune.findings.multipliers import Prediction
from mup_tune.findings.validation import AtShape, Retuned, Trend, Validation
from mup_tune.search import horizons, swept_axis
from mup_tune.search.axes import acting, most_sensitive
from mup_tune.search.basins import at_size, basin_of
from mup_tune.search.horizons import Horizons, Longer
from mup_tune.search.joint_move import identifiable, predicted, shifted
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once, losses
from mup_tune.search.stages.confirm import FIRST_SEED, compared
from mup_tune.search.swept_axis import Grid, SweptAxis
from mup_tune.settings import AXES, check_axis
from mup_tune.shape import Shape, scaled
from mup_tune.stats import Losses
from mup_tune.trial import Trial, TrialResult

AXIS_OFFSETS = (-1.0, 0.0, 1.0)  # log2, of what is re-tuned beside ELR
EXTEND = 1
FOR_A_TREND = 4  # sizes


LARGEST = 1024


def _larger(factors: tuple[float, ...]) -> tuple[float, ...]:
    if any(factor <= 0 or factor == 1 for factor in factors):
        raise ValueError(f"{list(factors)} is not allowed: give factors on the proxy's size, without 1 itself")
    if any(factor > LARGEST for factor in factors):
        raise ValueError(f"{list(factors)} is not allowed: a Shape is at most {LARGEST} times the proxy's size")
    return tuple(sorted(factors))


def _swept(given: object) -> int | list[str]:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    if not isinstance(given, list | tuple):
        raise ValueError(f"{given!r} is not allowed: give a number of axes, or a list of them")
    for axis in given:
        with as_value_error():
            check_axis(axis)
    if "elr" in given or len(set(given)) < len(given):
        raise ValueError(f"{list(given)} is not allowed: name each axis once, and not elr, which is swept anyway")
    return list(given)


Factors = Annotated[tuple[float, ...], AfterValidator(_larger), each_once("size")]
Swept = Annotated[int | list[str], PlainValidator(_swept)]


class Validate(Stage):
    """Carries the incumbent and the references to larger Shapes and measures what is left of the gain there.

    The Shapes are the proxy, ``widths`` times its width and ``depths`` times its depth, head dims and d_state
    kept. At each of them:
    (1) ELR is swept around the incumbent and around the first of ``against``, which tells how far the best
    ELR drifts, and re-tunes that reference: a handicapped one would flatter;
    (2) the incumbent, carried unchanged, meets every reference on ``n_seeds`` seeds that chose nothing;
    (3) with ``horizons`` the first reference trains for longer as well, and the gain is told in tokens;
    (4) with ``retune`` the incumbent's most sensitive axes, so many of them or those named, are swept beside
    ELR, and the joint move that they ask for is tested. What it gains is the regret of carrying the Settings.

    From four sizes in one direction on, the slope of the gain against size is fitted too. The incumbent does
    not change.
    """

    kind: Literal["validate"] = "validate"
    against: Annotated[list[str], Field(min_length=1), each_once("reference")]
    widths: Factors = (2.0,)
    depths: Factors = (2.0,)
    n_seeds: Annotated[int, Field(ge=2, le=100)] = 8
    horizons: Horizons = ()
    elr_offsets: Grid = (-1.0, -0.5, 0.0, 0.5, 1.0)
    retune: Swept = 0

    @model_validator(mode="after")
    def _somewhere(self) -> Validate:
        if not self.widths and not self.depths:
            raise ValueError("widths and depths are both empty: name a size to validate at")
        return self

    @property
    def title(self) -> str:
        wider = [f"{factor:g} × the width" for factor in self.widths]
        deeper = [f"{factor:g} × the depth" for factor in self.depths]
        return f"Does it hold at {', '.join(wider + deeper)}?"

    @property
    def requires(self) -> Sequence[str]:
        return tuple(self.against)

    @property
    def on_path(self) -> bool:
        return False

    @property
    def decides(self) -> tuple[int, int]:
        return self.n_seeds, 1

    def seeds(self, context: Context) -> tuple[int, ...]:
        """Those of ``confirm``, so that its trials at the proxy are shared."""
        return swept_axis.fresh_seeds(context, FIRST_SEED, self.n_seeds)

    def expected(self, trials: int, context: Context, state: State) -> int:
        """And the test of a joint move at every Shape, which a quiet landscape gives no reason for."""
        return trials + (self.n_seeds * self._sizes if self.retune else 0)

    def most(self, expected: int, context: Context, state: State) -> int:
        """And every ELR line extended."""
        longest = horizons.extensions(context, self._sizes) if self.horizons else 0
        return expected + 2 * EXTEND * self._sizes * len(context.seeds) + longest

    @property
    def _sizes(self) -> int:
        return 1 + len(self.widths) + len(self.depths)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context = asked.context
        axes = self.axes(context, state, refuse=asked.rehearsed)
        sites = [Site(self, context, state, axes, *place) for place in self._places(context.shape)]
        self._sweep(asked, sites)
        if self.horizons:
            horizons.train_lines(asked, [site.longer for site in sites])
        wanted = [site.trials for site in sites]
        rows = iter(asked.rows([trials for each in wanted for trials in each]))
        shapes = tuple(site.concluded([next(rows) for _ in each]) for site, each in zip(sites, wanted, strict=True))
        result = Validation(
            shapes=shapes,
            elr=_basin("tuned", [site.elr for site in sites]),
            reference_elr=_basin(self.against[0], [site.reference_elr for site in sites]),
            axes=axes,
            trends=tuple(_trends(shapes)),
        )
        return Conclusion(state, self.finding(state.incumbent, state.incumbent, result))

    def axes(self, context: Context, state: State, refuse: bool) -> tuple[str, ...]:
        """What is re-tuned beside ELR."""
        if not isinstance(self.retune, int):
            return acting(self.retune, context.shape)
        measured = [axis for axis in acting(AXES, context.shape) if axis not in ("elr", "rope_base")]
        known = [axis for axis in measured if refuse or identifiable(state.incumbent, axis, context)]
        return most_sensitive(known, state.sensitivity, self.retune, refuse, field="retune")

    def _places(self, proxy: Shape) -> Iterator[tuple[Shape, float, float]]:
        """The Shapes with their width and depth over the proxy's, which comes first.

        Raises:
            UserError: a size at which a count of heads, channels or layers would have to be rounded.
        """
        yield proxy, 1.0, 1.0
        for index, factor in enumerate(self.widths):
            yield _sized(proxy, f"widths[{index}]", proxy.d_model * factor, proxy.n_layers), factor, 1.0
        for index, factor in enumerate(self.depths):
            yield _sized(proxy, f"depths[{index}]", proxy.d_model, proxy.n_layers * factor), 1.0, factor

    def _sweep(self, asked: Asked, sites: Sequence[Site]) -> None:
        """All curves at once; then the ELR lines whose edge is best go on."""
        seeds = asked.context.seeds
        lines = [line for site in sites for line in (site.elr, site.reference_elr)]
        axes = [curve for site in sites for curve in site.axes]
        wanted = [self.elr_offsets] * len(lines) + [AXIS_OFFSETS] * len(axes)
        swept_axis.train(asked, [*lines, *axes], wanted, seeds)
        swept_axis.train_grid(asked, lines, self.elr_offsets, seeds, EXTEND)


class Site:
    """One Shape: the curves that are swept there, the trials on fresh seeds, and what they come to."""

    def __init__(
        self,
        stage: Validate,
        context: Context,
        state: State,
        axes: Sequence[str],
        shape: Shape,
        width: float,
        depth: float,
    ) -> None:
        self.stage, self.context, self.state = stage, context, state
        self.shape, self.width, self.depth = shape, width, depth
        self.elr = SweptAxis("elr", state.incumbent, shape=shape)
        self.reference_elr = SweptAxis("elr", state.references[stage.against[0]], shape=shape)
        self.axes = [SweptAxis(axis, state.incumbent, shape=shape) for axis in axes]

    @cached_property
    def longer(self) -> Longer:
        """The first reference, at its best ELR here, at every horizon. At the proxy it is tuned already."""
        at_proxy = self.width == self.depth == 1
        best = self.reference_elr.at(0.0 if at_proxy else self.reference_elr.optimum)
        return Longer.of(self.stage.against[0], best, self.context.budget, self.stage.horizons, self.shape)

    @cached_property
    def prediction(self) -> Prediction | None:
        """The joint move of the incumbent that its curves ask for."""
        if not self.axes:
            return None
        curves = (self.elr, *self.axes)
        return predicted(curves, swept_axis.noise(curves), self.stage.n_seeds)

    @property
    def trials(self) -> list[list[Trial]]:
        """On fresh seeds: the incumbent, the other references, the first at every horizon, the joint move."""
        seeds, others = self.stage.seeds(self.context), self.stage.against[1:]
        carried = [self.state.incumbent, *(self.state.references[name] for name in others)]
        wanted = [self.context.trials(each, seeds, self.shape) for each in carried]
        wanted += self.longer.trials(self.context, seeds)
        if self.prediction is not None and self.prediction.joint:
            moved = shifted(self.state.incumbent, self.prediction)
            wanted.append(self.context.trials(moved, seeds, self.shape))
        return wanted

    def concluded(self, rows: Sequence[Sequence[TrialResult]]) -> AtShape:
        """From the rows of :attr:`trials`."""
        n_others, n_horizons = len(self.stage.against) - 1, len(self.longer.budgets)
        ours, rest = rows[0], rows[1:]
        theirs, moved = rest[n_others : n_others + n_horizons], rest[n_others + n_horizons :]
        references = zip(self.stage.against, [theirs[0], *rest[:n_others]], strict=True)
        return AtShape(
            shape=self.shape,
            width=self.width,
            depth=self.depth,
            parameters=self.shape.parameters(),
            comparisons=tuple(compared(name, ours, against) for name, against in references),
            tokens=self.longer.gain(ours, theirs) if self.stage.horizons else None,
            retuned=self._retuned(losses(ours), moved) if self.axes else None,
        )

    def _retuned(self, ours: Losses, moved: Sequence[Sequence[TrialResult]]) -> Retuned:
        """``moved``: the rows of the joint move, if there is one."""
        comparison = None
        for rows in moved:
            theirs = losses(rows)
            comparison = Comparison(
                candidate="re-tuned",
                reference="incumbent",
                candidate_losses=theirs,
                reference_losses=ours,
                gain=stats.paired_gain(theirs, ours),
            )
        return Retuned(prediction=self.prediction, comparison=comparison)


def _basin(name: str, lines: Sequence[SweptAxis]) -> Basin:
    """The ELR lines of all Shapes, in their order."""
    return basin_of(name, "elr", [at_size(line.shape.size, line.shape, line) for line in lines if line.shape])


def _sized(proxy: Shape, field: str, width: float, depth: float) -> Shape:
    with located(field=field):
        for what, size in (("d_model", width), ("n_layers", depth)):
            if size != int(size) or size < 1:
                raise UserError(f"makes {what} {size:g}, which is no whole number", fix="Use another factor")
        if width == proxy.d_model:
            return proxy.model_copy(update={"n_layers": int(depth), "name": f"{proxy.name}-L{int(depth)}"})
        return scaled(proxy, int(width))


def _trends(shapes: Sequence[AtShape]) -> Iterator[Trend]:
    """The slope of the gain over the sizes in one direction, where there are enough of them."""
    for along in ("width", "depth"):
        there = [each for each in shapes if each.width * each.depth == getattr(each, along)]
        if len(there) < FOR_A_TREND:
            continue
        doublings = [log2(getattr(each, along)) for each in there]
        slope = stats.paired_slope(
            doublings,
            [each.claim.candidate_losses for each in there],
            [each.claim.reference_losses for each in there],
        )
        if slope is not None:
            yield Trend(along=along, slope=slope, sizes=len(there))

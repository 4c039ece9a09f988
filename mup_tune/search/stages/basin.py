"""The ``basin`` stage: does a hyperparameter's optimum stay where it is across a family's sizes?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mup_tune import stats
from mup_tune.errors import UserError, as_value_error, located
from mup_tune.findings import Comparison, State
from mup_tune.findings.basins import Basins
from mup_tune.multipliers import MULTIPLIERS
from mup_tune.search import swept_axis
from mup_tune.search.basins import AtSize, at_size, basin_of
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once
from mup_tune.search.swept_axis import Grid, SweptAxis
from mup_tune.settings import Settings, check_axis, standard
from mup_tune.shape import Positive, Shape, scaled

Param = Literal["mup", "sp"]


class BasinCheck(Stage):
    """Sweeps one hyperparameter at every width × depth of the proxy's family, on the same tokens at each.

    ``mup``: the incumbent, its base Shape fixed, carried to each size by the role table (``init`` overrides
    its init rule). ``sp``: at each size all multipliers 1, σ = fan_in^-½, and the incumbent's ELR, EWD and
    RoPE base. A parametrisation passes only if the whole 95 % CI of the drift of the optimum, largest against
    smallest size, lies inside ±0.5 log2; it fails if the CI lies wholly outside. An optimum at the edge
    extends that size's grid alone. The incumbent never changes.
    """

    kind: Literal["basin"] = "basin"
    hp: str = "elr"
    widths: Annotated[tuple[Positive, ...], Field(min_length=1), each_once("value")]
    depths: Annotated[tuple[Positive, ...], each_once("value")] = ()
    params: Annotated[tuple[Param, ...], Field(min_length=1), each_once("value")] = ("mup", "sp")
    offsets: Grid = (-2.0, -1.0, 0.0, 1.0, 2.0)
    init: Literal["fan_in", "constant"] | None = None
    extend: Annotated[int, Field(ge=0, le=4)] = 2
    n_seeds: Annotated[int, Field(ge=1)] | None = None

    @field_validator("hp")
    @classmethod
    def _known_axis(cls, hp: str) -> str:
        with as_value_error():
            return check_axis(hp)

    @model_validator(mode="after")
    def _several_sizes(self) -> BasinCheck:
        if len(self.widths) * max(1, len(self.depths)) < 2:
            raise ValueError(f"widths {list(self.widths)} are one size: a check across sizes needs two or more")
        return self

    @property
    def title(self) -> str:
        depths = f" × depths {', '.join(map(str, self.depths))}" if self.depths else ""
        return f"Basin of {self.hp} at widths {', '.join(map(str, sorted(self.widths)))}{depths}"

    @property
    def on_path(self) -> bool:
        return False

    def sizes(self, context: Context) -> list[tuple[str, Shape]]:
        """(label, Shape), fewest parameters first; a :class:`UserError` where a size has to be rounded."""
        with located(field="widths"):
            found = [
                (f"d{width}" + (f" L{depth}" if depth else ""), scaled(context.shape, width, depth))
                for width in self.widths
                for depth in self.depths or (None,)
            ]
        return sorted(found, key=lambda size: size[1].parameters())

    def most(self, expected: int, context: Context, state: State) -> int:
        """Every curve extended, also those that coincide, as mup and sp do at the base Shape."""
        curves = len(self.sizes(context)) * len(self.params)
        return curves * (len(self.offsets) + self.extend) * len(swept_axis.chosen_seeds(context, self.n_seeds))

    def walk(self, asked: Asked, state: State) -> Conclusion:
        context = asked.context
        if self.hp in MULTIPLIERS and MULTIPLIERS[self.hp].needs_ssm and not context.shape.d_ssm:
            raise UserError(f"{self.hp!r} does nothing without an SSM branch (d_ssm = 0)", field="hp")
        sizes = self.sizes(context)
        curves = {
            param: [SweptAxis(self.hp, self._centre(param, state.incumbent, shape), shape=shape) for _, shape in sizes]
            for param in self.params
        }
        every, seeds = (
            [curve for each in curves.values() for curve in each],
            swept_axis.chosen_seeds(context, self.n_seeds),
        )
        swept_axis.train_grid(asked, every, self.offsets, seeds, self.extend)
        found = {
            param: [at_size(label, shape, curve) for (label, shape), curve in zip(sizes, each, strict=True)]
            for param, each in curves.items()
        }
        basins = tuple(basin_of(param, self.hp, each) for param, each in found.items())
        comparisons: tuple[Comparison, ...] = ()
        if "mup" in found and "sp" in found:
            comparisons = tuple(_compared(*pair) for pair in zip(found["mup"], found["sp"], strict=True))
        budget = context.budget
        result = Basins(basins=basins, comparisons=comparisons, total_tokens=budget.total_tokens, steps=budget.steps)
        return Conclusion(state, self.finding(state.incumbent, state.incumbent, result))

    def _centre(self, param: Param, incumbent: Settings, shape: Shape) -> Settings:
        if param == "mup":
            init = incumbent.init.model_copy(update={"rule": self.init} if self.init else {})
            return incumbent.model_copy(update={"init": init})
        return standard(shape, incumbent)


def _compared(mup: AtSize, sp: AtSize) -> Comparison:
    """Each side at its own best trained point; the CI is Student's t on the paired differences' own SD."""
    ours, theirs = (each.curve.losses[each.curve.best] if each.curve.best is not None else {} for each in (mup, sp))
    same = mup.curve.centre.content_hash() == sp.curve.centre.content_hash()
    gain = None if same else stats.paired_gain(ours, theirs)
    return Comparison(
        candidate=f"mup at {mup.label}",
        reference=f"sp at {sp.label}",
        candidate_losses=ours,
        reference_losses=theirs,
        gain=gain,
        same=same,
    )

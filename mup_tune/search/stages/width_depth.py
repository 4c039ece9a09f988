"""The ``width_depth`` stage: wide against deep at equal parameters (arXiv 2507.22448)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mup_tune.channels import at_depth
from mup_tune.errors import UserError
from mup_tune.search.shape_comparison import Contender, ShapeComparison
from mup_tune.search.stage import Context, each_once
from mup_tune.shape import Positive


class WidthDepth(ShapeComparison):
    """Trains the proxy at each of ``depths``, its width chosen so that the parameters stay equal."""

    kind: Literal["width_depth"] = "width_depth"
    depths: Annotated[tuple[Positive, ...], Field(min_length=1), each_once("depth")]

    @property
    def title(self) -> str:
        return (
            f"Width against depth at equal parameters: the proxy and {', '.join(map(str, sorted(self.depths)))} layers"
        )

    @property
    def noun(self) -> str:
        return "depth"

    @property
    def prefix(self) -> str:
        return "Width and depth "

    def contenders(self, context: Context) -> list[Contender]:
        proxy = context.shape
        others = [at_depth(proxy, depth) for depth in sorted(self.depths) if depth != proxy.n_layers]
        if not others:
            raise UserError(
                f"{list(self.depths)} is the proxy's own depth, and one depth is nothing to compare",
                field="depths",
                fix="Name another one",
            )
        return [Contender(shape.size, shape) for shape in (proxy, *others)]

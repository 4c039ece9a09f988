"""The ``channels`` stage: how SSM, attention and MLP share the inner channels, and the order of the block."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mup_tune.channels import Ratio, split
from mup_tune.errors import UserError, as_value_error
from mup_tune.search.shape_comparison import Contender, ShapeComparison
from mup_tune.search.stage import Context
from mup_tune.shape import BlockOrder, Shape


class Channels(ShapeComparison):
    """Trains every SSM:attention:MLP ratio in eighths in every block order, at the proxy's parameter count.

    After Falcon-H1's ablation of channels (arXiv 2507.22448). The winner is for ``transfer --channels``, not
    for the stages that follow: they train the proxy.
    """

    kind: Literal["channels"] = "channels"
    ratios: tuple[str, ...]
    block_orders: Annotated[tuple[BlockOrder, ...], Field(min_length=1)] = ("SA_M",)

    @field_validator("ratios", mode="before")
    @classmethod
    def _base_60(cls, given: Any) -> Any:
        """YAML 1.1 reads an unquoted 2:1:5 as 2·3600 + 1·60 + 5: read it back."""
        if not isinstance(given, list | tuple):
            return given
        return [
            f"{each // 3600}:{each // 60 % 60}:{each % 60}" if type(each) is int and each >= 3600 else each
            for each in given
        ]

    @field_validator("ratios")
    @classmethod
    def _parsed(cls, ratios: tuple[str, ...]) -> tuple[str, ...]:
        with as_value_error():
            parsed = tuple(str(Ratio.parse(ratio)) for ratio in ratios)
        if len(set(parsed)) != len(parsed):
            raise ValueError(f"{list(ratios)} names a ratio twice")
        return parsed

    @model_validator(mode="after")
    def _several_points(self) -> Channels:
        if len(set(self.block_orders)) != len(self.block_orders):
            raise ValueError(f"block_orders {list(self.block_orders)} names an order twice")
        if len(self.ratios) * len(self.block_orders) < 2:
            given = f"ratios {list(self.ratios)} in block_orders {list(self.block_orders)}"
            raise ValueError(f"{given} are fewer than two points: name another ratio or order")
        return self

    @property
    def title(self) -> str:
        return f"Channels: {len(self.ratios)} ratios SSM:attention:MLP in block order {', '.join(self.block_orders)}"

    @property
    def noun(self) -> str:
        return "channel ratio" if len(self.block_orders) == 1 else "channel ratio and block order"

    @property
    def prefix(self) -> str:
        return "SSM:attention:MLP "

    def contenders(self, context: Context) -> list[Contender]:
        proxy, own = context.shape, Ratio.of(context.shape)
        first = Contender(f"{own or 'proxy'} ({proxy.block_order})", proxy, str(own or ""))
        others = [
            Contender(f"{ratio} ({order})", _split(proxy, ratio, order), ratio)
            for ratio in self.ratios
            for order in self.block_orders
        ]
        # The proxy's own ratio and order would be trained once and shown twice.
        return [first, *(each for each in others if each.shape.content_hash() != proxy.content_hash())]


def _split(proxy: Shape, ratio: str, order: BlockOrder) -> Shape:
    try:
        return split(proxy, Ratio.parse(ratio), order)
    except UserError as error:
        raise UserError(f"{ratio}: {error.problem}", field="ratios", fix=error.fix) from None

"""Whether a gain found at the proxy holds at larger Shapes."""

from __future__ import annotations

from typing import Literal

from mup_tune.files import FrozenModel
from mup_tune.findings.basins import Basin
from mup_tune.findings.confirmation import TokenGain
from mup_tune.findings.multipliers import Prediction
from mup_tune.findings.result import Comparison, Result, Verdict, hardest
from mup_tune.shape import Shape
from mup_tune.stats import Interval


class Retuned(FrozenModel):
    """What re-tuning the most sensitive axes at a Shape brings there.

    ``prediction``: the joint move that their curves ask for; None where nothing tells the noise.
    ``comparison``: the moved Settings over the carried ones on fresh seeds, so that its gain is the regret of
    carrying them; None where nothing wants to move.
    """

    prediction: Prediction | None
    comparison: Comparison | None


class AtShape(FrozenModel):
    """What was measured at one Shape, which is ``width`` and ``depth`` times the proxy.

    ``comparisons``: the incumbent, carried by its µP base, over each reference. The first reference has its
    ELR re-tuned at this Shape (not at the proxy, where it was tuned), the others are carried as well.
    """

    shape: Shape
    width: float
    depth: float
    parameters: int
    comparisons: tuple[Comparison, ...]
    tokens: TokenGain | None = None
    retuned: Retuned | None = None

    @property
    def claim(self) -> Comparison:
        return self.comparisons[0]

    @property
    def is_proxy(self) -> bool:
        return self.width == self.depth == 1


class Trend(FrozenModel):
    """Nats/token that the gain changes by with every doubling of ``along``, over ``sizes`` Shapes."""

    along: Literal["width", "depth"]
    slope: Interval
    sizes: int


class Validation(Result):
    """The proxy first. ``axes``: those that were re-tuned at every Shape, beside ELR.

    ``elr`` and ``reference_elr``: loss against the ELR of the incumbent and of the first reference at every
    Shape, in the order of ``shapes``.
    """

    type: Literal["validation"] = "validation"
    shapes: tuple[AtShape, ...]
    elr: Basin
    reference_elr: Basin
    axes: tuple[str, ...] = ()
    trends: tuple[Trend, ...] = ()

    @property
    def reference(self) -> str:
        return self.shapes[0].claim.reference

    @property
    def larger(self) -> tuple[AtShape, ...]:
        return self.shapes[1:]

    @property
    def gained(self) -> Comparison | None:
        """At the larger Shape where the least is left of the gain over the first reference."""
        return hardest(each.claim for each in self.larger)

    @property
    def verdict(self) -> Verdict:
        """pass: the gain over the first reference is shown at every larger Shape; fail: one shows a loss."""
        outcomes = {each.claim.outcome for each in self.larger}
        if "worse" in outcomes:
            return "fail"
        return "pass" if outcomes == {"better"} else "inconclusive"

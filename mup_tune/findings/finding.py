"""What one stage learned, and what stages hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from mup_tune.files import FrozenModel
from mup_tune.findings.result import AxisFinding, Comparison, Result, typed
from mup_tune.settings import Settings


@dataclass(frozen=True)
class State:
    """What stages hand on: the best Settings so far, named ones to compare with, and what was learned.

    ``sensitivity``: curvature of the loss along an axis, in nats/token per (log2)², of the last stage that
    fitted it. ``flops``: spent so far by the stages that search for the incumbent, trials of other references
    left out.
    """

    incumbent: Settings
    references: Mapping[str, Settings] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0

    def to_json(self) -> dict[str, Any]:
        references = {name: settings.model_dump(mode="json") for name, settings in self.references.items()}
        return {
            "incumbent": self.incumbent.model_dump(mode="json"),
            "references": references,
            "sensitivity": dict(self.sensitivity),
            "flops": self.flops,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        references = {name: Settings.model_validate(each) for name, each in data["references"].items()}
        incumbent = Settings.model_validate(data["incumbent"])
        return cls(incumbent, references, dict(data["sensitivity"]), float(data["flops"]))


class Finding(FrozenModel):
    """All that one stage learned, as data. Sentences and figures are made of it by ``report/parts``.

    ``on_path`` is false where ``after`` was tuned only to be compared with: the incumbent did not change.
    """

    stage: str
    kind: str
    title: str
    before: Settings
    after: Settings
    on_path: bool = True
    sigma_delta: float | None = None
    result: Annotated[SerializeAsAny[Result], BeforeValidator(typed)]

    @property
    def axes(self) -> tuple[AxisFinding, ...]:
        return self.result.swept

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return self.result.compared

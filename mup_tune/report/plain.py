"""What references are, in words that need no glossary: told from their Settings, never from their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mup_tune.findings import Finding
from mup_tune.findings.baselines import BaselineSet
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.settings import AXES, Settings, falcon_h1_published, untuned
from mup_tune.shape import Shape

RATES = {"elr": ("learning rate", "LR"), "ewd": ("weight decay", "WD")}


@dataclass(frozen=True)
class Plain:
    """A reference in a sentence, and in the row of a figure."""

    long: str
    short: str


@dataclass(frozen=True)
class Names:
    """The plain words of references by their names. A name that is not known speaks for itself."""

    known: Mapping[str, Plain] = field(default_factory=dict)

    def long(self, name: str) -> str:
        return self.known[name].long if name in self.known else name

    def short(self, name: str) -> str:
        return self.known[name].short if name in self.known else name

    def term(self, name: str) -> str:
        """The plain words with the run's own name behind them, for the first time it is met."""
        return f"{self.long(name)} ({name})" if name in self.known else name

    def tell(self, text: str, short: bool = False) -> str:
        """A text with plain words for the names that are terms of ours, ``X-tuned Y``, the longest first."""
        terms = sorted((name for name in self.known if "-tuned " in name), key=len, reverse=True)
        if not terms:
            return text
        pattern = "|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in terms)
        return re.sub(pattern, lambda found: (self.short if short else self.long)(found[0]), text)


def names_of(findings: Sequence[Finding], references: Mapping[str, Settings], proxy: Shape) -> Names:
    """The references of a run that its Settings and stages explain."""
    tuned = list(_tuned(findings))
    found: dict[str, Plain] = {}
    for name, settings in references.items():
        swept = next((axes for each, axes in tuned if same(each, settings)), None)
        if swept and all(settings.value(each) == 1.0 for each in MULTIPLIER_NAMES):
            long, short = (" and ".join(RATES[axis][form] for axis in RATES if axis in swept) for form in (0, 1))
            found[name] = Plain(f"the best that {long} alone can do", f"{short} alone")
        elif same(settings, untuned(proxy)):
            found[name] = Plain("all multipliers at 1 and nothing tuned", "nothing tuned")
        elif same(settings, falcon_h1_published()):
            found[name] = Plain("Falcon-H1's published multipliers", "published")
        elif name == "random search" and any(flops for flops in _drawn(findings)):
            found[name] = Plain("random search for the same FLOPs", "random search")
    return Names(found)


def same(one: Settings, other: Settings) -> bool:
    """Whether two Settings train alike, whatever they are called."""
    return one.base == other.base and all(one.value(axis) == other.value(axis) for axis in AXES)


def _tuned(findings: Sequence[Finding]) -> Iterator[tuple[Settings, set[str]]]:
    """Settings that came out of a sweep of global axes alone, with the axes swept."""
    for finding in findings:
        if isinstance(finding.result, GlobalAxes):
            yield finding.after, {axis.axis for axis in finding.result.axes} & set(RATES)
        if isinstance(finding.result, BaselineSet):
            for each in finding.result.tuned:
                yield each.settings, {axis.axis for axis in each.result.axes} & set(RATES)


def _drawn(findings: Sequence[Finding]) -> Iterator[float | None]:
    for finding in findings:
        if isinstance(finding.result, BaselineSet) and finding.result.random:
            yield finding.result.random.flops

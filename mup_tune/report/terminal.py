"""A run for a terminal: what each stage found, the answer, the gains as numbers and as bars.

No line is wider than the terminal, or than :data:`WIDEST`. Sentences break between words, and never inside a
number with its unit or a confidence interval.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from mup_tune.findings import Finding
from mup_tune.report import formats, words
from mup_tune.report.gains import gains_of, headline_of
from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

if TYPE_CHECKING:  # `status` needs no pandas
    from mup_tune.run.view import RunView

WIDEST, NARROWEST = 80, 40
BOUND = "\ue000"  # a space that does not break
LEAST = 12  # columns of a bar

Row = tuple[str, Interval, str]  # the place of a gain, the gain in nats/token, and what it is worth in tokens


class Ink(NamedTuple):
    """The characters of a bar: what is gained at least, its CI, the value itself, and zero."""

    sure: str
    ci: str
    value: str
    zero: str


BLOCKS, ASCII = Ink("█", "░", "◆", "│"), Ink("#", "-", "o", "|")


def told(run: RunView, console: Console) -> list[Text]:
    """Everything on a run: its stages in order, and the answer last, where a terminal is read."""
    width = width_of(console)
    lines = [line for finding in run.findings for line in stage(finding, width)]
    title, below = headline_of(run)
    return [*lines, *([Text()] if lines else []), *answer(title, below, width), *_gains(run, width, ink_of(console))]


def width_of(console: Console) -> int:
    return max(NARROWEST, min(WIDEST, console.width))


def ink_of(console: Console) -> Ink:
    """Blocks where the terminal's encoding has them."""
    try:
        "".join(BLOCKS).encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def answer(title: str, below: str, width: int) -> list[Text]:
    """The verdict, and the sentences below it, each from a line's start."""
    lines = [*_wrapped(title, width, style="bold")]
    for sentence in _sentences(below):
        lines += _wrapped(sentence, width)
    return lines


def stage(finding: Finding, width: int) -> Iterator[Text]:
    """Its name and title, and what it found, a sentence an entry."""
    yield from _wrapped(f"{finding.stage} {finding.title}", width, "    ", style="bold")
    for sentence in words.summary(finding):
        yield from _wrapped(sentence, width, "    ", "  ")


def _gains(run: RunView, width: int, ink: Ink) -> Iterator[Text]:
    """Every gain on fresh seeds: under its reference, a row a place, with its numbers and its bar."""
    rows: dict[str, list[Row]] = {}
    for (place, reference), gained in gains_of(run).items():
        if gained.comparison.gain is not None:
            rows.setdefault(reference, []).append((place, gained.comparison.gain, factor(gained.saved)))
    if not rows:
        return
    drawn = iter(chart([row for each in rows.values() for row in each], width, ink))
    for reference, each in rows.items():
        yield Text()
        yield from _wrapped(f"Gain over {reference} in mnat/token, with its 95 % CI", width, style="bold")
        yield from (_text(next(drawn)) for _ in each)
    yield _text(f"  {ink.sure} at least  {ink.ci} 95 % CI  {ink.value} mean  {ink.zero} zero")


def factor(saved: TokensSaved | None) -> str:
    """How many times the tokens the reference needs; empty where that was not measured."""
    return "" if saved is None else f"{'> ' if saved.beyond else ''}{formats.times(saved.factor.value)} tokens"


def chart(rows: Sequence[Row], width: int, ink: Ink) -> list[str]:
    """A line a gain: its place, its numbers in millinats, and a bar from zero. All bars have one scale."""
    numbers = [(formats.mnat(gain.value), formats.mnat_ci(gain), tokens) for _, gain, tokens in rows]
    sizes = [max(map(cell_len, column)) for column in zip(*numbers, strict=True)]
    sizes = sizes if sizes[-1] else sizes[:-1]
    label = max(cell_len(place) for place, _, _ in rows)
    cells = width - label - sum(sizes) - 2 * (len(sizes) + 2)
    while sizes and cells < LEAST:  # the bar matters more than what its sentence says as well
        cells += sizes.pop() + 2
    low, high = min(0.0, *(gain.low for _, gain, _ in rows)), max(0.0, *(gain.high for _, gain, _ in rows))
    scale = _Scale(low, high if high > low else 1e-6, cells)
    return [
        "  ".join(["", fitted(place, label), *map(_right, told, sizes), scale.bar(gain, ink)]).rstrip()
        for (place, gain, _), told in zip(rows, numbers, strict=True)
    ]


def _right(text: str, size: int) -> str:
    return " " * (size - cell_len(text)) + text


class _Scale(NamedTuple):
    """Values to columns; the ends of the scale are the centres of the first column and of the last."""

    low: float
    high: float
    cells: int

    def column(self, value: float) -> int:
        return round((value - self.low) / (self.high - self.low) * (self.cells - 1))

    def bar(self, gain: Interval, ink: Ink) -> str:
        zero, least, most = (self.column(each) for each in (0.0, gain.low, gain.high))
        line = [" "] * self.cells
        sure = range(zero, least) if gain.above_0 else range(most + 1, zero + 1) if gain.below_0 else range(0)
        for column in sure:
            line[column] = ink.sure
        for column in range(least, most + 1):
            line[column] = ink.ci
        line[zero] = ink.zero
        line[self.column(gain.value)] = ink.value
        return "".join(line)


def fitted(text: str, width: int) -> str:
    """``text`` in exactly so many columns: filled up, or cut with an ellipsis."""
    clean = " ".join(text.split())
    return set_cell_size(clean, width) if cell_len(clean) <= width else set_cell_size(clean, width - 1) + "…"


def _sentences(text: str) -> list[str]:
    """Split after full stops that end a sentence: a capital follows, and no digit stands before it alone."""
    return [each for each in re.split(r"(?<=[^\W\d_)][.!?])\s+(?=[A-Z])|(?<=[)\d]\.)\s+(?=[A-Z])", text) if each]


def _wrapped(text: str, width: int, later: str = "  ", first: str = "", style: str = "") -> Iterator[Text]:
    """Lines of at most ``width`` columns; those after the first begin with ``later``."""
    bound = re.sub(r"\(95 % CI [^()]*\)", lambda found: found[0].replace(" ", BOUND), " ".join(text.split()))
    bound = re.sub(r"(?<=\d) (?=[×%]|L\d|m?nats?\b|log2\b|[kMGT]\b)|(?<=×) (?=\()", BOUND, bound)
    room = width - max(len(first), len(later))
    for place, line in enumerate(_filled(bound.split(" "), room)):
        yield Text((later if place else first) + line.replace(BOUND, " "), style=style)


def _filled(parts: Iterable[str], room: int) -> Iterator[str]:
    """As many words a line as fit; what is wider than a line is broken, at its bound spaces if it has any."""
    line = ""
    for part in parts:
        joined = f"{line} {part}" if line else part
        if cell_len(joined) <= room:
            line = joined
            continue
        if line:
            yield line
        line = part
        while cell_len(line) > room:
            cut = set_cell_size(line, room).rstrip()
            at = cut.rfind(BOUND) + 1 or len(cut)
            yield line[:at].rstrip(BOUND)
            line = line[at:]
    if line:
        yield line


def _text(line: str) -> Text:
    return Text(line.rstrip())

"""Draws tokens-saved.svg: how many times the tokens the baseline needs, by run and size, with 95 % CIs.

    python docs/figures/tokens_saved.py

Every number is a quotation from docs/experiments.md, and one that does not stand there is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from style import ACCENT, INK, MUTED, new_figure, plain, save

HERE = Path(__file__).resolve().parent
SOURCE, OUT = HERE.parent / "experiments.md", HERE / "tokens-saved.svg"

# A run, and its rows: what trained, its size, and the quotation.
RUNS = (
    (
        "7 M parameters tuned on one H100",
        (
            ("where it was tuned", "7.1 M", "**1.42 ×** (1.38 … 1.45)"),
            ("carried to twice the width", "19.7 M", "**1.24 ×** (1.19 … 1.29)"),
            ("carried to twice the depth", "10.0 M", "**1.28 ×** (1.24 … 1.32)"),
        ),
    ),
    (
        "42 thousand parameters tuned on two CPU cores",
        (
            ("where it was tuned", "42 k", "**1.25 ×** its tokens (1.22 … 1.28)"),
            ("carried to twice the width", "126 k", "**1.20 ×** (1.16 … 1.23)"),
            ("carried to four times the width", "426 k", "**1.17 ×** (1.15 … 1.20)"),
            ("carried to twice the depth", "66 k", "**1.38 ×** (1.33 … 1.44)"),
        ),
    ),
)


def quoted(quotation: str, size: str, source: str) -> tuple[float, float, float]:
    """Value, low and high of a quotation.

    Raises:
        ValueError: the source does not hold it, or not this size.
    """
    plain = " ".join(source.split())
    for text in (quotation, size):
        if text not in plain:
            raise ValueError(f"{SOURCE.name} does not say {text!r}")
    value, low, high = (float(each) for each in re.findall(r"\d\.\d+", quotation))
    return value, low, high


def draw(out: Path, source: str) -> None:
    """The forest plot as SVG, its words as text."""
    figure = new_figure(8.6, 3.7)
    axes = figure.subplots()
    place, ticks = 0.0, []
    for title, rows in RUNS:
        axes.text(1.01, place, title, weight="bold", color=INK, va="center")
        for what, size, quotation in rows:
            place += 1
            value, low, high = quoted(quotation, size, source)
            axes.plot([low, high], [place, place], color=ACCENT, linewidth=2.5, solid_capstyle="round")
            axes.plot([value], [place], "o", color=ACCENT, markersize=7)
            axes.text(1.555, place, f"{value:.2f} × ({low:.2f} … {high:.2f})", va="center", color=INK)
            ticks.append((place, f"{what}, {size}"))
        place += 1.4
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.text(1, -0.95, "no gain", ha="center", va="center", color=MUTED)
    axes.set_yticks(*zip(*ticks, strict=True), color=INK)
    axes.set_ylim(place - 0.8, -1.3)
    axes.set_xlim(0.98, 1.78)
    axes.set_xticks([1, 1.1, 1.2, 1.3, 1.4, 1.5])
    axes.set_xlabel("times the tokens that the baseline needs for the same loss, with 95 % CIs", color=INK, loc="left")
    plain(axes, axis="x")
    save(figure, out)


def main(given: Sequence[str]) -> None:
    draw(Path(given[0]) if given else OUT, SOURCE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Draws small-proxies.svg: tokens/s of small proxies by population, and of ``transformers`` one at a time.

    python docs/figures/small_proxies.py

Every number is read from the table "Small proxies" of docs/performance.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from style import ACCENT, INK, MUTED, new_figure, plain, save

HERE = Path(__file__).resolve().parent
SOURCE, OUT = HERE.parent / "performance.md", HERE / "small-proxies.svg"
HEADER = "| Shape | tokens | side | P | k tokens/s |"
EAGER, REPLAYED, OURS = "transformers", "transformers, replayed", "ours"
WORDS = {EAGER: "transformers, one at a time", REPLAYED: "transformers, compiled,\none CUDA graph"}
WIDTHS = {"cpu-32": 32, "cpu-64": 64, "cpu-128": 128, "gpu-8k-256": 256}  # d_model


@dataclass
class Size:
    """Tokens/s of one Shape: baselines by side, ours by members."""

    baselines: dict[str, float] = field(default_factory=dict)
    ours: dict[int, float] = field(default_factory=dict)


def sizes_of(source: str) -> dict[str, Size]:
    """Sizes by Shape.

    Raises:
        ValueError: the table is not there, or a Shape lacks a side.
    """
    _, header, table = source.partition(HEADER)
    if not header:
        raise ValueError(f"{SOURCE.name} has no table {HEADER!r}")
    found: dict[str, Size] = {}
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        shape, _, side, members, speed = (cell.strip(" `*") for cell in line.strip("|").split("|")[:5])
        size, tokens_s = found.setdefault(shape, Size()), 1e3 * float(speed.replace(",", ""))
        if side == OURS:
            size.ours[int(members)] = tokens_s
        elif side in (EAGER, REPLAYED):
            size.baselines[side] = tokens_s
    for shape, size in found.items():
        if size.baselines.keys() != {EAGER, REPLAYED} or len(size.ours) < 2:
            raise ValueError(f"{SOURCE.name}: the table lacks a side of {shape}")
    return found


def draw(out: Path, source: str) -> None:
    """A panel a Shape, all on one scale, its words as text."""
    sizes = sizes_of(source)
    figure = new_figure(8.6, 3.3)
    panels = figure.subplots(1, len(sizes), sharey=True)
    for index, (axes, (shape, size)) in enumerate(zip(panels, sizes.items(), strict=True)):
        for side, dashes in ((REPLAYED, "-"), (EAGER, (0, (2, 2)))):
            axes.axhline(size.baselines[side], color=MUTED, linewidth=1.3, linestyle=dashes)
            if not index:
                axes.text(1, 0.82 * size.baselines[side], WORDS[side], color=MUTED, fontsize=8, va="top")
        members, speeds = zip(*sorted(size.ours.items()), strict=True)
        axes.plot(members, speeds, "o-", color=ACCENT, linewidth=2, markersize=4.5)
        best = max(speeds)
        times = best / size.baselines[REPLAYED]
        axes.text(members[-1], 1.3 * best, f"{times:.2g} ×", color=ACCENT, weight="bold", ha="right")
        axes.set_title(f"d = {WIDTHS[shape]}", color=INK, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(3e3, 1.5e8)
        axes.set_xticks([1, 8, 64], ["1", "8", "64"])
        axes.minorticks_off()
        plain(axes, axis="y")
    panels[0].set_yticks([1e4, 1e5, 1e6, 1e7, 1e8], ["10 k", "100 k", "1 M", "10 M", "100 M"])
    panels[0].set_ylabel("tokens/s, one H100", color=INK)
    figure.supxlabel("proxies that train side by side (P)", color=INK, fontsize=10)
    save(figure, out)


def main(given: Sequence[str]) -> None:
    draw(Path(given[0]) if given else OUT, SOURCE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])

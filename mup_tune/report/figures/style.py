"""The inks and the style of all figures, and how one becomes SVG.

Inks are CSS variables of the page (``--c1`` …) and ``currentColor``, so one figure reads on light and dark;
text stays text. Nothing is told by colour alone: seeds, means, fits and optima differ in shape as well.
Names that users chose stand in figures as they are, so nothing in a text is taken for mathematics.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-in colours that matplotlib writes into the SVG, and what the page paints instead.
INK, SOFT, BLUE, RED, GREEN, PURPLE, PAPER = (f"#{number:02x}0b0c" for number in range(1, 8))
PAINT = {
    INK: "currentColor",
    SOFT: "var(--soft, #8a8f98)",
    BLUE: "var(--c1, #0072b2)",
    RED: "var(--c2, #d55e00)",
    GREEN: "var(--c3, #009e73)",
    PURPLE: "var(--c4, #cc79a7)",
    PAPER: "var(--paper, #ffffff)",
}
LINES = ((BLUE, "-"), (RED, "--"), (GREEN, "-."), (PURPLE, ":"))
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mup-tune",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "axes.unicode_minus": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "path.simplify": True,
    "text.parse_math": False,
    "text.usetex": False,
}
LINE = 10  # points between stacked labels
SCALE = 1.42  # CSS pixels a point at most, so that all figures have one size of text


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` × ``height`` points, in the page's style as long as it is drawn."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an HTML-ready ``<svg>``: no prolog, no fixed size, ids made unique by ``name``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    body = re.sub(r"<[^>]*>", lambda tag: _painted(tag[0], prefix), body)  # in tags alone: texts are not ours
    body = re.sub(r"\n +", "\n", body)
    label, view = html.escape(description, quote=True), box.group(1) if box else "0 0 1 1"
    widest = SCALE * float(view.split()[2])
    return Markup(
        f'<svg viewBox="{view}" role="img" aria-label="{label}" style="max-width:{widest:.0f}px">{body.strip()}'
    )


def _painted(tag: str, prefix: str) -> str:
    """One tag of the SVG with the page's inks, and with ids that no other figure has."""
    tag = re.sub(r'^<g id="(?!figure_)[\w.]+_\d+"', "<g", tag)  # matplotlib numbers every group, and nobody asks
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', tag)
    tag = re.sub(r"url\(#", f"url(#{prefix}-", tag)
    tag = re.sub(r'xlink:href="#', f'href="#{prefix}-', tag)
    for colour, paint in PAINT.items():
        tag = tag.replace(colour, paint)
    return re.sub(r"(\b[1-9]\d*\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is not seen


def legend_label(text: str, width: int = 34) -> str:
    """``text`` for a legend, cut at ``width`` characters. Matplotlib leaves out what begins with ``_``."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    return f" {short}" if short.startswith("_") else short


def crosses(axes: Axes, xs: Sequence[float], y: float, size: float, width: float, **style: Any) -> None:
    """A red cross at ``y`` for each place where a seed diverged."""
    if not xs:  # an empty line would still claim room at the figure's corner
        return
    axes.plot(xs, [y] * len(xs), "x", color=RED, markersize=size, markeredgewidth=width, **style)

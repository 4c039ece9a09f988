"""What the documentation's figures share: colours, and SVG whose words are text and whose bytes repeat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT = "#1f2328", "#59636e", "#d1d9e0", "#0969da"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mup-tune", "font.family": "sans-serif"})
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(axes: Axes, **grid: Any) -> None:
    """No frame, no tick marks, a light grid behind everything."""
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", length=0, labelcolor=INK)
    axes.grid(color=LINE, linewidth=0.6, **grid)
    axes.set_axisbelow(True)


def save(figure: Figure, out: Path) -> None:
    figure.savefig(out, format="svg", metadata={"Date": None})

"""The documentation's drawn figures say what its tables say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


def words(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["small_proxies", "tokens_saved"])
def test_a_figure_is_drawn_from_the_tables_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FIGURES))
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "drawn.svg")])
    with matplotlib.rc_context():
        runpy.run_path(str(FIGURES / f"{name}.py"), run_name="__main__")
    drawn = words(tmp_path / "drawn.svg")
    assert drawn == words(FIGURES / f"{name.replace('_', '-')}.svg")
    assert any("×" in each for each in drawn)


def test_a_table_that_lacks_a_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIGURES))
    sizes_of = runpy.run_path(str(FIGURES / "small_proxies.py"))["sizes_of"]
    table = (FIGURES.parent / "performance.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if "| `cpu-64` | 4 × 256 | transformers, replayed" not in line]
    with pytest.raises(ValueError, match="cpu-64"):
        sizes_of("\n".join(lines))
    with pytest.raises(ValueError, match="no table"):
        sizes_of("nothing")

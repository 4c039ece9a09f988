"""The figures of a page as SVG files of their own: the page's inks become colours that any program knows."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

FIGURE = re.compile(r'<svg\b(?=[^>]*\brole="img")[^>]*>.*?</svg>', re.DOTALL)
INK = "#1d2025"
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"{box} font-family="sans-serif">'
    '<title>{title}</title><rect{place} width="100%" height="100%" fill="#ffffff"/>'
)


@dataclass(frozen=True)
class Drawn:
    """One figure: its file's stem, what it shows, and the file's text."""

    name: str
    description: str
    svg: str


def figures(page: str) -> list[Drawn]:
    """Every figure of a page that tells what it shows, in the page's order; no two names are alike."""
    found: dict[str, Drawn] = {}
    for place, match in enumerate(FIGURE.finditer(page), 1):
        head, body = match[0].split(">", 1)
        named = re.search(r'\bid="([A-Za-z0-9-]+)-figure_1"', body)
        name = named[1] if named else f"figure-{place:03d}"
        name = name if name not in found else f"{name}-{place}"
        label = re.search(r'\baria-label="([^"]*)"', head)
        description = html.unescape(label[1]) if label else name
        found[name] = Drawn(name, description, _file(head, body, description))
    return list(found.values())


def _file(head: str, body: str, description: str) -> str:
    box = re.search(r'viewBox="([^"]+)"', head)
    size = place = ""
    if box and len(numbers := box[1].split()) == 4:
        x, y, width, height = numbers
        size = f' viewBox="{box[1]}" width="{width}pt" height="{height}pt"'
        place = f' x="{x}" y="{y}"'
    # In tags alone: a name in a text may look like an ink.
    body = re.sub(r"<[^>]*>", lambda tag: _painted(tag[0]), body)
    return HEAD.format(box=size, place=place, title=html.escape(description)) + body + "\n"


def _painted(tag: str) -> str:
    tag = re.sub(r"var\(--[\w-]+,\s*([^()]+)\)", r"\1", tag).replace("currentColor", INK)
    return re.sub(r'(?<![:\w])href="#', 'xlink:href="#', tag)

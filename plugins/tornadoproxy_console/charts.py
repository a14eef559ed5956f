"""Charts as inline SVG. Each is an image with a title; the page has its figures in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.escape import xhtml_escape

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT, FOOT = 720, 160, 24
MOST_LABELS = 8


def bars(title: str, values: Sequence[tuple[str, float, str]]) -> str:
    """Return a chart with a bar for each value.

    :param values: each with its label below the bar, and as text.
    """
    highest = max((value for _, value, _ in values), default=0) or 1
    step = WIDTH / max(len(values), 1)
    every = -(-len(values) // MOST_LABELS) or 1
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT + FOOT}">',
        f"<title>{xhtml_escape(title)}</title>",
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"></line>',
    ]
    for at, (label, value, text) in enumerate(values):
        height = round((HEIGHT - 8) * value / highest, 1)
        left = round(at * step + step * 0.15, 1)
        parts.append(
            f'<rect class="bar" x="{left}" y="{HEIGHT - height}" width="{round(step * 0.7, 1)}"'
            f' height="{height}" rx="2"><title>{xhtml_escape(label)}: {xhtml_escape(text)}'
            "</title></rect>"
        )
        if at % every == 0:
            parts.append(
                f'<text x="{round(at * step + step / 2, 1)}" y="{HEIGHT + 17}"'
                f' text-anchor="middle">{xhtml_escape(label)}</text>'
            )
    return "".join([*parts, "</svg>"])

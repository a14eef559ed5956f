"""The results as SVG: a panel for each column of the table, a row in it for each peer."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from statistics import median
from typing import TYPE_CHECKING

from bench.figures import FIGURES
from bench.report import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.figures import Column
    from bench.rounds import Results

# in pixels
PANEL_WIDTH = 310
PANELS_ABREAST = 3
NAME_WIDTH = 135
SCALE_WIDTH = 110
ROW = 18
HEAD = 46
FOOT = 18
MARGIN = 16

OURS = "#c2410c"
OTHERS = "#475569"
LINES = "#e2e8f0"


def plot(results: Results, ours: Sequence[str]) -> str:
    """The drawing: a dot for each median, a line from the least to the most of all rounds.

    :param ours: names of the peers that stand out.
    """
    columns = [each for figure in FIGURES for each in figure.columns if results.get(each.key)]
    # a panel is as high as the one with most rows, so that they stand in order
    height = HEAD + FOOT + ROW * max(len(results[column.key]) for column in columns)
    lines = -(-len(columns) // PANELS_ABREAST)
    width = 2 * MARGIN + PANEL_WIDTH * min(len(columns), PANELS_ABREAST)
    whole = 2 * MARGIN + height * lines
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole}" '
        f'viewBox="0 0 {width} {whole}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{whole}" fill="white"/>',
    ]
    for place, column in enumerate(columns):
        x = MARGIN + PANEL_WIDTH * (place % PANELS_ABREAST)
        y = MARGIN + height * (place // PANELS_ABREAST)
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel(column, results[column.key], ours)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(column: Column, rows: Mapping[str, list[float]], ours: Sequence[str]) -> list[str]:
    scale = _Scale([value for values in rows.values() for value in values])
    parts = [
        f'<text y="14" font-weight="bold">{escape(column.title)}</text>',
        f'<text y="30" fill="{OTHERS}">{escape(column.unit)}</text>',
    ]
    bottom = HEAD + ROW * len(rows)
    for power in scale.powers():
        x = scale.x(10.0**power)
        parts.append(f'<path d="M{x:.1f} {HEAD - 6}V{bottom}" stroke="{LINES}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 11}" font-size="9" fill="{OTHERS}" '
            f'text-anchor="middle">{10.0**power:,g}</text>'
        )
    for row, (name, values) in enumerate(sorted(rows.items(), key=lambda each: median(each[1]))):
        y = HEAD + ROW * row + ROW / 2
        colour = OURS if name in ours else OTHERS
        least, middle, most = (scale.x(each(values)) for each in (min, median, max))
        parts += [
            f'<text y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>',
            f'<path d="M{least:.1f} {y}H{most:.1f}" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{middle:.1f}" cy="{y}" r="4" fill="{colour}"/>',
            f'<text x="{most + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">'
            f"{number(median(values))}</text>",
        ]
    return parts


class _Scale:
    """A logarithmic one, since peers are orders of magnitude apart."""

    def __init__(self, values: Sequence[float]) -> None:
        least = min((value for value in values if value > 0), default=1)
        self._low = floor(log10(least))
        self._high = max(ceil(log10(max(*values, least))), self._low + 1)

    def powers(self) -> range:
        """Of ten: those that are written below it, at most four or five."""
        return range(self._low, self._high + 1, 1 if self._high - self._low < 4 else 2)

    def x(self, value: float) -> float:
        """Where `value` is; zero and less are at the left edge."""
        if value <= 0:
            return NAME_WIDTH
        part = (log10(value) - self._low) / (self._high - self._low)
        return NAME_WIDTH + SCALE_WIDTH * part

"""Charts as inline SVG. Each is an image with a title; the page has its figures in a table.

Widths are percentages, heights pixels, so that texts keep their size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tornado.escape import xhtml_escape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEIGHT = 160  # of the highest bar that the scale allows, in pixels
TOP, FOOT = 10, 24  # above and below the bars
MOST_LABELS, MOST_LABELS_NARROW = 16, 5
STEPS = 3  # of the scale, at least one of which is reached


def bars(
    title: str, values: Sequence[tuple[str, float, str]], scale: Callable[[float], str]
) -> str:
    """Return a chart with a bar for each value.

    :param values: each with its label below the bar, and as text.
    :param scale: returns a value of the scale as text.
    """
    highest = max((value for _, value, _ in values), default=0)
    step = _nice(highest / STEPS)
    lines = max(math.ceil(highest / step), 1)

    def y(value: float) -> float:
        return round(TOP + HEIGHT * (1 - value / (lines * step)), 1)

    parts = ['<div class="chart"><svg class="scale" aria-hidden="true">']
    for line in range(lines + 1):
        text = xhtml_escape(scale(line * step).removesuffix(".00"))
        parts.append(f'<text x="100%" y="{y(line * step) + 4}" text-anchor="end">{text}</text>')
    parts.append(f'</svg><svg class="plot" role="img"><title>{xhtml_escape(title)}</title>')
    for line in range(lines + 1):
        at = y(line * step)
        parts.append(f'<line x1="0" x2="100%" y1="{at}" y2="{at}"></line>')
    width = 100 / max(len(values), 1)
    every, every_narrow = (
        max(math.ceil(len(values) / most), 1) for most in (MOST_LABELS, MOST_LABELS_NARROW)
    )
    for number, (label, value, text) in enumerate(values):
        left, top = number * width, y(value)
        parts.append(
            f'<rect x="{left + width * 0.2:.2f}%" width="{width * 0.6:.2f}%" y="{top}"'
            f' height="{TOP + HEIGHT - top:.1f}" rx="2"><title>{xhtml_escape(label)}:'
            f" {xhtml_escape(text)}</title></rect>"
        )
        if number % every == 0:
            rare = "" if number % every_narrow == 0 else ' class="rare"'
            parts.append(
                f'<text{rare} x="{left + width / 2:.2f}%" y="{TOP + HEIGHT + 18}"'
                f' text-anchor="middle">{xhtml_escape(label)}</text>'
            )
    return "".join([*parts, "</svg></div>"])


def _nice(value: float) -> float:
    """Return the lowest of 1, 2, 5, 10, 20 … that is not below a value; at least 1."""
    if value <= 1:
        return 1
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(each * magnitude for each in (1, 2, 5, 10) if each * magnitude >= value)

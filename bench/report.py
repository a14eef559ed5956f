"""The results as text: a table of medians, and the ratios beside their targets."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.figures import FIGURES
from bench.peers import DIRECT
from bench.plugins import BARE, PRICES, SHARED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.rounds import Results


@dataclass(frozen=True)
class Target:
    """What the proxy is to reach.

    :param numbers: of a row in the table, in each round.
    :param limit: that their median is not to exceed.
    """

    title: str
    unit: str
    limit: float
    numbers: Callable[[Results, str], list[float]]


@dataclass(frozen=True)
class Verdict:
    """What the row `name` of the table reached."""

    target: Target
    name: str
    value: float

    @property
    def passed(self) -> bool:
        return self.value <= self.target.limit


def _plain(key: str) -> Callable[[Results, str], list[float]]:
    return lambda results, name: results[key][name]


def _ratio(key: str, other: str, other_key: str) -> Callable[[Results, str], list[float]]:
    # within a round, since a busy machine slows both
    return lambda results, name: [
        one / two for one, two in zip(results[key][name], results[other_key][other], strict=True)
    ]


def _of_own(key: str, other_key: str) -> Callable[[Results, str], list[float]]:
    """What the row takes for one figure, of what it takes for another."""
    return lambda results, name: _ratio(key, name, other_key)(results, name)


def _added(key: str) -> Callable[[Results, str], list[float]]:
    return lambda results, name: [
        one - two for one, two in zip(results[key][name], results[key][DIRECT.name], strict=True)
    ]


def _added_by(row: str, key: str, other: str) -> Callable[[Results, str], list[float]]:
    """What the plugins of the row `row`, and of no other, take more than those of `other`."""

    def numbers(results: Results, name: str) -> list[float]:
        if name != row:
            raise KeyError(name)
        return [one - two for one, two in zip(results[key][name], results[key][other], strict=True)]

    return numbers


TARGETS = (
    Target("JSON relayed, CPU added", "µs", 15, _added_by(PRICES, "json", BARE)),
    Target("SSE relayed, CPU added", "µs/event", 3, _added_by(PRICES, "sse", BARE)),
    Target("SSE translated, CPU added", "µs/event", 3, _added_by(PRICES, "chat-sse", BARE)),
    Target("JSON relayed, CPU added", "µs", 40, _added_by("keys+ledger", "json", PRICES)),
    Target("JSON relayed, CPU added", "µs", 120, _added_by(SHARED, "json", PRICES)),
    Target("Latency added, p50", "ms", 1, _added_by(SHARED, "p50", PRICES)),
    Target("JSON relayed, CPU", "of hello's", 1.6, _ratio("json", "hello", "json")),
    Target("OpenAI chat JSON, CPU", "of hello's JSON", 2.1, _ratio("chat", "hello", "json")),
    Target("JSON relayed, CPU", "of LiteLLM's", 1 / 40, _ratio("json", "litellm", "json")),
    Target("OpenAI chat JSON, CPU", "of LiteLLM's", 1 / 40, _ratio("chat", "litellm", "chat")),
    Target("OpenAI response JSON, CPU", "of chat's", 1.3, _of_own("responses", "chat")),
    Target(
        "SSE translated, response, CPU", "of chat's", 1.25, _of_own("responses-sse", "chat-sse")
    ),
    Target("SSE relayed, CPU", "of nginx's", 2, _ratio("sse", "nginx", "sse")),
    Target("SSE translated, CPU", "of nginx's relay", 4, _ratio("chat-sse", "nginx", "sse")),
    Target("Latency added, p50", "ms", 0.5, _added("p50")),
    Target("Latency added, p99", "ms", 2, _added("p99")),
    Target("1,000 open streams", "KB each", 18, _plain("streams-1000")),
    Target("5,000 open streams", "KB each", 18, _plain("streams-5000")),
    Target("Idle RSS", "of hello's", 1.2, _ratio("idle", "hello", "idle")),
    Target("First response after start", "of hello's", 1.25, _ratio("cold", "hello", "cold")),
    Target("64 MB request body", "MB more", 8, _plain("body")),
)


def verdicts(results: Results, names: Sequence[str]) -> list[Verdict]:
    """What the rows `names` reached of each target for which there are numbers."""
    return [Verdict(*each) for each in _reached(results, names)]


def _reached(results: Results, names: Sequence[str]) -> Iterator[tuple[Target, str, float]]:
    for target in TARGETS:
        for name in names:
            try:
                numbers = target.numbers(results, name)
            except KeyError:
                continue  # not measured
            yield target, name, median(numbers)


def tables(results: Results, names: Sequence[str]) -> str:
    """Both tables, in Markdown.

    :param names: of the rows that are judged.
    """
    columns = [each for figure in FIGURES for each in figure.columns if results.get(each.key)]
    peers = {name: None for column in columns for name in results[column.key]}
    measured = [
        ["", *peers],
        *(
            [
                f"{column.title}, {column.unit}",
                *(_cell(results[column.key].get(name)) for name in peers),
            ]
            for column in columns
        ),
    ]
    judged = [
        ["", "", "median", "at most", ""],
        *(
            [
                f"{each.target.title}, {each.target.unit}",
                each.name,
                number(each.value),
                number(each.target.limit),
                "reached" if each.passed else "MISSED",
            ]
            for each in verdicts(results, names)
        ),
    ]
    return "\n".join([*_markdown(measured), "", *_markdown(judged)])


def _cell(numbers: list[float] | None) -> str:
    return number(median(numbers)) if numbers else ""


def number(value: float) -> str:
    """`value` in three digits or so."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]

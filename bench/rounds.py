"""The rounds: every figure of every peer is measured in turn, round after round."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench import prompts
from bench.figures import Bench, warm_up
from bench.peers import DIRECT, Running
from bench.processes import pinned
from bench.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.figures import Figure, Sizes
    from bench.peers import Peer

T = TypeVar("T")

SLICES = 10
"""How many short rounds make one of those that compare processes of the same program."""

# by the key of a column and the name of a peer: a number for each round
Results = dict[str, dict[str, list[float]]]


def measure(
    peers: Sequence[Peer],
    figures: Sequence[Figure],
    sizes: Sizes,
    tell: Callable[[str], None],
) -> Results:
    """Measure, and tell what is done meanwhile.

    The peers are on one processor, the upstream and the client on the others, where there are two.

    :raises BenchError: a peer does not serve, or gave a wrong response.
    """
    cpus = os.sched_getaffinity(0)
    ours = {min(cpus)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        # nginx gives up its rights, and then writes its log
        folder.chmod(0o755)
        programs = Programs(folder)
        stack.enter_context(pinned(cpus - ours or cpus))
        upstream = stack.enter_context(programs.upstream())
        request = prompts.message(DIRECT.messages, "hello")
        response = programs.load(upstream, request, connections=1, count=1).bytes
        bench = Bench(programs, upstream, response, folder, ours, sizes)
        steady = [figure for figure in figures if figure.steady]
        processes = [Running(DIRECT, os.getpid(), upstream, 0.0)]
        for peer in peers:
            if any(figure.fits(peer) for figure in steady):
                tell(f"starting {peer.name}")
                process = stack.enter_context(bench.start(peer))
                warm_up(bench, process)
                processes.append(process)
        results: Results = {column.key: {} for each in figures for column in each.columns}
        for number in range(sizes.rounds):
            for figure in figures:
                if figure.steady or number < sizes.fresh_rounds:
                    tell(f"round {number + 1} of {sizes.rounds}: {figure.name}")
                    # another one is the first in each round: it comes after a pause, or after
                    # the slowest, with nothing of its own in the processor's caches
                    _round(
                        bench,
                        figure,
                        _turned(peers, number),
                        _turned(processes, number),
                        results,
                    )
        return results


def measure_anew(
    peers: Sequence[Peer],
    figures: Sequence[Figure],
    sizes: Sizes,
    tell: Callable[[str], None],
) -> Results:
    """`measure`, with new processes in each round, and each round in `SLICES` short ones.

    Two processes of the same program differ by more than what a plugin adds, all their life long;
    and so does a machine that others use from one second to the next.
    """
    slices = replace(
        sizes,
        rounds=SLICES,
        requests=max(sizes.requests // SLICES, 1),
        seconds=sizes.seconds / SLICES,
    )
    results: Results = {}
    for number in range(sizes.rounds):
        tell(f"round {number + 1} of {sizes.rounds}, with new processes")
        once = measure(_turned(peers, number), figures, slices, tell)
        for key, rows in once.items():
            for name, numbers in rows.items():
                results.setdefault(key, {}).setdefault(name, []).extend(numbers)
    return results


def _turned(sequence: Sequence[T], by: int) -> list[T]:
    by %= max(len(sequence), 1)
    return [*sequence[by:], *sequence[:by]]


def _round(
    bench: Bench,
    figure: Figure,
    peers: Sequence[Peer],
    processes: Sequence[Running],
    results: Results,
) -> None:
    values: dict[str, list[float]] = {}
    if figure.steady:
        for process in processes:
            if figure.fits(process.peer):
                values[process.peer.name] = figure.steady(bench, process)
    if figure.fresh:
        for peer in peers:
            if figure.fits(peer):
                values[peer.name] = figure.fresh(bench, peer)
    for name, numbers in values.items():
        for column, number in zip(figure.columns, numbers, strict=True):
            results[column.key].setdefault(name, []).append(number)

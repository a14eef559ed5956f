"""The figures: each is one function from a peer to its numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import processes, prompts
from bench.peers import running
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bench.peers import Peer, Running
    from bench.programs import Load, Programs

CONNECTIONS = 16
STREAMS = 50
STREAM_RATE = 100  # events a second in each
OTHER_EVENTS = 6  # of a stream, besides its text
RATE = 500.0  # requests a second where latency is measured
BODY = 64 << 20
SETTLE = 0.15  # seconds for what comes after a response: log lines, closed connections


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    :param requests: for the processor time of one.
    :param seconds: that streams, and a fixed rate of requests, last.
    :param fresh_rounds: in so many of the rounds what takes a process of its own is measured.
    """

    requests: int
    seconds: float
    rounds: int
    fresh_rounds: int


@dataclass(frozen=True)
class Bench:
    """What the measurements share.

    :param upstream: its port.
    :param response: the length of its JSON response.
    :param folder: for configurations and logs.
    :param cpus: on which the peers run.
    """

    programs: Programs
    upstream: int
    response: int
    folder: Path
    cpus: set[int]
    sizes: Sizes

    def start(self, peer: Peer) -> AbstractContextManager[Running]:
        return running(peer, self.upstream, self.folder, self.cpus)


def warm_up(bench: Bench, peer: Running) -> None:
    """So that nothing is measured that happens once."""
    count = max(int(500 * peer.peer.share), 32)
    bench.programs.load(peer.port, _hello(peer), connections=CONNECTIONS, count=count)
    time.sleep(SETTLE)


def _hello(peer: Running) -> bytes:
    return prompts.message(peer.peer.messages, "hello", token=peer.token)


def json_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for a JSON request that is relayed."""
    response = bench.response if peer.peer.relays else None
    return [_request_cpu(bench, peer, _hello(peer), response)]


def chat_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for an OpenAI chat completion, translated."""
    request = prompts.chat(str(peer.peer.chat), "hello", token=peer.token)
    return [_request_cpu(bench, peer, request, None)]


def response_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for a response of OpenAI's, translated."""
    request = prompts.response(str(peer.peer.responses), "hello", token=peer.token)
    return [_request_cpu(bench, peer, request, None)]


def _request_cpu(bench: Bench, peer: Running, request: bytes, response: int | None) -> float:
    count = max(int(bench.sizes.requests * peer.peer.share), 1)
    used, _ = _cpu(
        peer,
        lambda: bench.programs.load(
            peer.port, request, connections=CONNECTIONS, count=count, expected_bytes=response
        ),
    )
    return used / count * 1e6


def event_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for an event that is relayed, beginning and end included."""
    deltas, prompt = _stream(bench)
    request = prompts.message(peer.peer.messages, prompt, stream=True, token=peer.token)
    return [_event_cpu(bench, peer, request, deltas + OTHER_EVENTS)]


def chat_event_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for an event of the upstream's that is translated."""
    deltas, prompt = _stream(bench)
    request = prompts.chat(str(peer.peer.chat), prompt, stream=True, token=peer.token)
    return [_event_cpu(bench, peer, request, deltas)]


def response_event_cpu(bench: Bench, peer: Running) -> list[float]:
    """Microseconds of processor time for an event of the upstream's that is translated."""
    deltas, prompt = _stream(bench)
    request = prompts.response(str(peer.peer.responses), prompt, stream=True, token=peer.token)
    return [_event_cpu(bench, peer, request, deltas)]


def _stream(bench: Bench) -> tuple[int, str]:
    deltas = int(STREAM_RATE * bench.sizes.seconds)
    return deltas, f"events={deltas} rate={STREAM_RATE}"


def _event_cpu(bench: Bench, peer: Running, request: bytes, least: int) -> float:
    streams = max(int(STREAMS * peer.peer.share), 5)
    used, load = _cpu(
        peer,
        lambda: bench.programs.load(peer.port, request, connections=streams, count=streams),
    )
    if load.events < least * streams:
        raise BenchError(f"{peer.peer.name} lost events: {load.events} of {least * streams}")
    sent = int(STREAM_RATE * bench.sizes.seconds) + OTHER_EVENTS
    return used / (sent * streams) * 1e6


def _cpu(peer: Running, load: Callable[[], Load]) -> tuple[float, Load]:
    before = processes.cpu_seconds(peer.pid)
    done = load()
    time.sleep(SETTLE)
    return processes.cpu_seconds(peer.pid) - before, done


def latency(bench: Bench, peer: Running) -> list[float]:
    """Milliseconds that half, and 99 of 100, requests at a fixed rate stayed below."""
    rate = RATE * peer.peer.share
    load = bench.programs.load(
        peer.port,
        _hello(peer),
        connections=CONNECTIONS,
        count=max(int(rate * bench.sizes.seconds), 1),
        rate=rate,
    )
    return [load.p50 / 1e3, load.p99 / 1e3]


def start(bench: Bench, peer: Peer) -> list[float]:
    """Milliseconds from its start to its first response, and MB in which it then resides."""
    with bench.start(peer) as process:
        time.sleep(SETTLE)
        return [process.started * 1e3, processes.resident(process.pid) / (1 << 20)]


def stream_memory(bench: Bench, peer: Peer, streams: int) -> list[float]:
    """KB of memory for each of so many streams that are open, and silent."""
    with bench.start(peer) as process:
        request = prompts.message(peer.messages, "events=1 idle", stream=True, token=process.token)
        warm_up(bench, process)
        before = processes.own(process.pid)
        with bench.programs.held(process.port, request, streams=streams):
            time.sleep(SETTLE)
            grown = processes.own(process.pid) - before
    return [grown / streams / 1024]


def body_memory(bench: Bench, peer: Peer) -> list[float]:
    """MB by which its memory grew at most while a request body of 64 MB went through."""
    with bench.start(peer) as process:
        warm_up(bench, process)
        processes.reset_peak(process.pid)
        before = processes.peak(process.pid)
        request = prompts.message(peer.messages, "x" * BODY, token=process.token)
        bench.programs.load(process.port, request, connections=1, count=1)
        return [(processes.peak(process.pid) - before) / (1 << 20)]


@dataclass(frozen=True)
class Column:
    """One number of a figure: its key in the results, its heading, its unit."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True)
class Figure:
    """What can be measured.

    :param name: for the command line.
    :param fits: whether a peer can be measured so.
    :param steady: measures one that has been running all the time; or `fresh`, which starts one.
    """

    name: str
    columns: tuple[Column, ...]
    fits: Callable[[Peer], bool]
    steady: Callable[[Bench, Running], list[float]] | None = None
    fresh: Callable[[Bench, Peer], list[float]] | None = None


FIGURES = (
    Figure(
        "json",
        (Column("json", "JSON relayed", "µs CPU/request"),),
        lambda peer: not peer.direct,
        steady=json_cpu,
    ),
    Figure(
        "chat",
        (Column("chat", "OpenAI chat JSON", "µs CPU/request"),),
        lambda peer: peer.chat is not None,
        steady=chat_cpu,
    ),
    Figure(
        "responses",
        (Column("responses", "OpenAI response JSON", "µs CPU/request"),),
        lambda peer: peer.responses is not None,
        steady=response_cpu,
    ),
    Figure(
        "sse",
        (Column("sse", "SSE relayed", "µs CPU/event"),),
        lambda peer: peer.relays,
        steady=event_cpu,
    ),
    Figure(
        "chat-sse",
        (Column("chat-sse", "SSE translated", "µs CPU/event"),),
        lambda peer: peer.chat is not None,
        steady=chat_event_cpu,
    ),
    Figure(
        "responses-sse",
        (Column("responses-sse", "SSE translated, response", "µs CPU/event"),),
        lambda peer: peer.responses is not None,
        steady=response_event_cpu,
    ),
    Figure(
        "latency",
        (
            Column("p50", "Latency p50", "ms"),
            Column("p99", "Latency p99", "ms"),
        ),
        lambda peer: True,
        steady=latency,
    ),
    Figure(
        "start",
        (
            Column("cold", "First response", "ms"),
            Column("idle", "Idle RSS", "MB"),
        ),
        lambda peer: not peer.direct,
        fresh=start,
    ),
    Figure(
        "streams-1000",
        (Column("streams-1000", "1,000 open streams", "KB each"),),
        lambda peer: peer.relays,
        fresh=lambda bench, peer: stream_memory(bench, peer, 1_000),
    ),
    Figure(
        "streams-5000",
        (Column("streams-5000", "5,000 open streams", "KB each"),),
        lambda peer: peer.relays and peer.most_streams >= 5_000,
        fresh=lambda bench, peer: stream_memory(bench, peer, 5_000),
    ),
    Figure(
        "body",
        (Column("body", "64 MB request body", "MB more"),),
        lambda peer: peer.relays,
        fresh=body_memory,
    ),
)

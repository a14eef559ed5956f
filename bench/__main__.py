"""The command line: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import FIGURES, Sizes
from bench.peers import ROOT, found, proxy
from bench.plot import plot
from bench.plugins import JUDGED, with_plugins
from bench.programs import BenchError
from bench.report import tables, verdicts
from bench.rounds import measure, measure_anew
from bench.servers import shared_servers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peers import Peer
    from bench.rounds import Results

OURS = "tornadoproxy"
FULL = Sizes(requests=5_000, seconds=4, rounds=5, fresh_rounds=5)
QUICK = Sizes(requests=1_000, seconds=1, rounds=2, fresh_rounds=1)
LONG = ("streams-5000",)  # not with --quick
LARGE = ("body",)  # not with --plugins: those that read a request refuse 64 MB


def main() -> int:
    options = _arguments()
    if not options.plugins:
        return _measure(options, None)
    with shared_servers() as shared:
        return _measure(options, shared)


def _measure(options: argparse.Namespace, shared: Mapping[str, str] | None) -> int:
    peers, absent = found(options.python, options.checkout.resolve(), options.venvs.resolve())
    if options.against:
        against = options.against.resolve()
        peers.insert(0, proxy(f"{OURS} against", options.python, against, uvloop=False))
    if options.plugins:
        peers = with_plugins(options.python, options.checkout.resolve(), shared)
        absent = [] if shared else ["shared (PostgreSQL, Redis)"]
    if options.quick:
        peers = [peer for peer in peers if peer.share == 1]
    if options.peers:
        unknown = set(options.peers) - {peer.name for peer in peers}
        if unknown:
            return _stop(f"not here: {', '.join(sorted(unknown))}", absent)
        peers = [peer for peer in peers if peer.name in options.peers]
    left_out = (LONG if options.quick else ()) + (LARGE if options.plugins else ())
    names = options.only or [each.name for each in FIGURES if each.name not in left_out]
    figures = [each for each in FIGURES if each.name in names]
    for line in absent:
        _tell(f"not here: {line}")
    _many_descriptors()
    # so that what has been started is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        measured = measure_anew if options.plugins else measure
        results = measured(peers, figures, _sizes(options), _tell)
    except BenchError as error:
        return _stop(str(error), [])
    judged = JUDGED if options.plugins else (OURS,)
    ours = [peer.name for peer in peers if peer.name.startswith(judged)]
    text = tables(results, ours)
    sys.stdout.write(text + "\n")
    if options.output:
        _save(options.output, results, peers, ours, text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the proxy beside its peers."
    )
    figures = [figure.name for figure in FIGURES]
    parser.add_argument(
        "--quick", action="store_true", help="two short rounds, without the slow peers"
    )
    parser.add_argument(
        "--plugins", action="store_true", help="the proxy with one plugin more at a time, no peers"
    )
    parser.add_argument("--rounds", type=int, help=f"{FULL.rounds}, or {QUICK.rounds}, unless told")
    parser.add_argument("--requests", type=int, help="for the processor time of one")
    parser.add_argument("--seconds", type=float, help="of streams, and where latency is measured")
    parser.add_argument(
        "--only", type=_words, help=f"some figures, separated by commas: {', '.join(figures)}"
    )
    parser.add_argument("--peers", type=_words, help="some peers, separated by commas")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the interpreter that has the proxy installed, and runs it and Tornado's handler",
    )
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="the proxy's source; this one unless told"
    )
    parser.add_argument(
        "--against", type=Path, help="another checkout, measured as 'tornadoproxy against'"
    )
    parser.add_argument(
        "--venvs",
        type=Path,
        default=Path(__file__).parent / ".venvs",
        help="the folder of the virtual environments of LiteLLM and others",
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for results.json, results.md and results.svg"
    )
    options = parser.parse_args()
    for name in options.only or ():
        if name not in figures:
            parser.error(f"there is no figure {name}: {', '.join(figures)}")
    return options


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else FULL
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds, fresh_rounds=options.rounds)
    if options.requests:
        sizes = replace(sizes, requests=options.requests)
    if options.seconds:
        sizes = replace(sizes, seconds=options.seconds)
    return sizes


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _stop(reason: str, absent: list[str]) -> int:
    for line in (reason, *absent):
        _tell(f"bench: {line}")
    return 1


def _many_descriptors() -> None:
    """A proxy with 5,000 streams holds 10,000 connections."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _save(folder: Path, results: Results, peers: list[Peer], ours: list[str], text: str) -> None:
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {platform.system()} {platform.release()}",
        "versions": {peer.name: peer.version() for peer in peers},
        "results": results,
        "targets": [
            {
                "target": f"{each.target.title}, {each.target.unit}",
                "row": each.name,
                "median": each.value,
                "at most": each.target.limit,
                "reached": each.passed,
            }
            for each in verdicts(results, ours)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "results.md").write_text(text + "\n")
    (folder / "results.svg").write_text(plot(results, ours))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())

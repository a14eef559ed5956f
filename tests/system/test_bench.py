"""The benchmark runs, and counts no answer that is not whole."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from program import printed_by

import tornadoproxy
from bench.scale import fitted
from tornadoproxy.testing import Response, ScriptedUpstream, raw_response

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads Linux's /proc"),
    pytest.mark.skipif(COMPILER is None, reason="the benchmark needs a C compiler, cc"),
]


@pytest.mark.long
def test_bench_measures_proxy_and_bare_handler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--peers", "tornadoproxy,hello"]
    command += ["--rounds", "1", "--requests", "48", "--seconds", "0.1"]
    command += ["--only", "json,chat,responses,sse,chat-sse,responses-sse,latency,start"]
    command += ["--checkout", str(Path(tornadoproxy.__file__).parents[1])]
    command += ["--output", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    measured = {key: set(rows) for key, rows in results.items()}
    proxy, both = {"tornadoproxy"}, {"tornadoproxy", "hello"}
    latency = {"tornadoproxy", "hello", "direct"}
    assert measured == {
        **dict.fromkeys(("json", "cold", "idle"), both),
        **dict.fromkeys(("chat", "responses", "sse", "chat-sse", "responses-sse"), proxy),
        **dict.fromkeys(("p50", "p99"), latency),
    }
    numbers = [number for rows in results.values() for row in rows.values() for number in row]
    assert all(number > 0 for number in numbers)
    assert (tmp_path / "results.md").read_text() == done.stdout
    drawing = ElementTree.parse(tmp_path / "results.svg").getroot()
    assert "OpenAI chat JSON" in "".join(drawing.itertext())


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, compiled."""
    program = tmp_path_factory.mktemp("bench") / "load"
    command = [str(COMPILER), "-o", str(program), str(ROOT / "bench" / "load.c"), "-lm"]
    subprocess.run(command, check=True)
    return program


def test_fit_finds_what_replicas_and_requests_add() -> None:
    def run(count: int, rate: int) -> tuple[int, int, dict[str, float]]:
        return count, rate, {"commits": count * (5 + 2 * rate) if rate else count * 3}

    runs = [run(*each) for each in ((1, 0), (4, 0), (1, 10), (2, 40), (4, 20))]
    assert fitted("commits", runs) == pytest.approx((3, 5, 2))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (raw_response(HEAD + b"0123456789"), None),
        (raw_response(CHUNKED + b"a\r\n01234567", b"89\r\n0\r\n\r\n"), None),
        (raw_response(HEAD + b"012345678", end="close"), "the other side closed"),
        (raw_response(HEAD + b"0123456789more"), "bytes after a response"),
        (raw_response(HEAD.replace(b"10", b"9") + b"012345678"), "another length"),
        (raw_response(HEAD.replace(b"200", b"500") + b"0123456789"), "not 200"),
        (raw_response(CHUNKED + b"no\r\n"), "not HTTP"),
    ],
)
async def test_bench_counts_only_whole_200_responses(
    load: Path,
    tmp_path: Path,
    upstream: ScriptedUpstream,
    response: Response,
    complaint: str | None,
) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"GET /v1/models HTTP/1.1\r\nhost: upstream\r\n\r\n")
    upstream.script(response)
    options = ["-p", str(upstream.port), "-f", str(request), "-c", "1", "-n", "1", "-b", "10"]

    process = await asyncio.create_subprocess_exec(
        load, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await printed_by(process)

    if complaint is None:
        assert process.returncode == 0, errors
        assert json.loads(output)["bytes"] == 10
    else:
        assert process.returncode == 1
        assert complaint in errors.decode()

"""Many requests to three upstreams, one of which flaps: no client sees anything of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest
from several import MESSAGE, Several

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    error_response,
    raw_response,
    request_bytes,
)

pytestmark = pytest.mark.alone

REQUESTS = 10_000
CLIENTS = 32
SESSIONS = 1_000
SILENCE = 5.0  # seconds
FIRST_BYTE_TIMEOUT = 0.25


async def silence(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    await asyncio.sleep(SILENCE)


# they ask for a short rest, so that it flaps often
SHORT = {"retry-after-ms": "20"}
FAILURES: tuple[Response, ...] = (
    error_response(429, "rate_limit_error", "Not now", headers=SHORT),
    error_response(529, "overloaded_error", "Not now", headers=SHORT),
    raw_response(end="reset"),
    silence,
)


class Flapping:
    """An upstream that fails every other request, at random."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._well = upstream.default_response
        self._random = random.Random(1)
        upstream.default_response = self.respond  # type: ignore[method-assign]  # a script of ours

    async def respond(self, exchange: UpstreamExchange) -> None:
        chosen = self._random.choice((self._well, self._random.choice(FAILURES)))
        await chosen(exchange)


@pytest.mark.gen_test(timeout=400)
@pytest.mark.timeout(420)
async def test_no_error_reaches_a_client_while_one_upstream_is_well(several: Several) -> None:
    proxy = await several.start(a=f"first_byte_timeout = {FIRST_BYTE_TIMEOUT}")
    Flapping(several["a"])
    numbers = iter(range(REQUESTS))
    seen: Counter[tuple[int, str | None]] = Counter()

    async def client() -> None:
        connection = await RawConnection.open(proxy.port)
        for number in numbers:
            message = {
                **MESSAGE,
                "max_tokens": 1000,
                "stream": number % 2 == 0,
                "messages": [{"role": "user", "content": f"number {number}"}],
            }
            lines = [("x-claude-code-session-id", f"s{number % 997}")]
            body = json.dumps(message).encode()
            asked = request_bytes("POST", "/v1/messages", lines, body, token=TEST_TOKEN)
            response = await connection.ask(asked)
            seen[response.status, response.header("x-tornadoproxy-upstream")] += 1
            assert str(number).encode() in response.body
            assert b"Not now" not in response.body
        await connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    await several.records.finished(REQUESTS)
    assert {status for status, _ in seen} == {200}
    records = several.records.all
    moved = [record for record in records if record.failed_attempts]
    status = proxy.server.status().upstreams[0]
    print(seen, len(moved), status)  # noqa: T201  # the figures of docs/upstreams.md
    assert moved
    assert len(records) == REQUESTS, "each is counted once"


@pytest.mark.gen_test(timeout=120)
@pytest.mark.timeout(150)
async def test_sessions_move_only_while_their_upstream_rests(several: Several) -> None:
    proxy = await several.start(before="", a="weight = 2")
    body = json.dumps(MESSAGE).encode()

    async def places() -> dict[int, str | None]:
        """Ask once in each session; return the upstreams that responded."""
        connection = await RawConnection.open(proxy.port)
        found = {}
        for session in range(SESSIONS):
            lines = [("x-claude-code-session-id", f"s{session}")]
            asked = request_bytes("POST", "/v1/messages", lines, body, token=TEST_TOKEN)
            response = await connection.ask(asked)
            found[session] = response.header("x-tornadoproxy-upstream")
        await connection.close()
        return found

    at_first = await places()
    shares = Counter(at_first.values())
    assert 430 < shares["a"] < 570, "half, by its weight"
    assert min(shares["b"], shares["c"]) > 200
    assert await places() == at_first
    several["a"].script(error_response(529, "overloaded_error", "x", headers={"retry-after": "60"}))
    while_it_rests = await places()
    assert "a" not in while_it_rests.values()
    stayed = {session: name for session, name in at_first.items() if name != "a"}
    assert {session: while_it_rests[session] for session in stayed} == stayed

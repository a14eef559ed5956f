"""Usage and cost in records, whatever form a response has and however it ends."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from people import CHAT, MESSAGES, MODEL, message
from tornadoproxy_prices import PRICES_FILE, Pricer

from tornadoproxy import Settings, Usage, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    bytes_response,
    error_response,
    json_response,
    message_document,
    message_events,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        Ask,
        OpenRaw,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

USAGE = {
    "input_tokens": 3,
    "output_tokens": 15,
    "cache_creation_input_tokens": 5000,
    "cache_read_input_tokens": 20_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 3000, "ephemeral_1h_input_tokens": 2000},
    "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2},
}
READ = Usage(3, 15, 20_000, 5000, 2000, 3, 2)
DOCUMENT = message_document("Grüße, 世界 😀", model=MODEL, usage=USAGE)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
@pytest.mark.parametrize("route", [MESSAGES, CHAT])
async def test_record_has_usage_and_cost_of_a_response(
    route: str,
    stream: bool,
    encoding: str,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    ask: Ask,
    records: Records,
) -> None:
    await start_proxy()
    body = b"".join(message_events(DOCUMENT)) if stream else json.dumps(DOCUMENT).encode()
    headers = {"Content-Type": "text/event-stream" if stream else "application/json"}
    if encoding == "gzip":
        body, headers["Content-Encoding"] = gzip.compress(body), encoding
    upstream.script(bytes_response(body, headers))
    assert (await ask(route, message(stream=stream))).status == 200
    record = await records.finished()
    pricer = Pricer()
    pricer.configure(Settings.defaults(PRICES_FILE))
    assert (record.model, record.outcome, record.stop_reason) == (MODEL, "completed", "end_turn")
    assert (record.usage, record.cost) == (READ, pricer.price(MODEL, READ))
    assert record.time_to_first_byte is not None
    if stream:
        assert record.time_to_first_token is not None
        assert record.time_to_first_byte <= record.time_to_first_token <= record.duration
    else:
        assert record.time_to_first_token is None


@pytest.mark.parametrize("route", [MESSAGES, CHAT])
async def test_usage_of_an_error_or_a_cut_document(
    route: str, start_proxy: StartProxy, upstream: ScriptedUpstream, ask: Ask, records: Records
) -> None:
    await start_proxy()
    body = json.dumps(DOCUMENT).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body) + 1)}

    async def cut(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, headers)
        await exchange.send(body[:-1])
        exchange.close()

    upstream.script(error_response(529, "overloaded_error", "Overloaded"), cut)
    assert (await ask(route, message())).status == 529
    record = await records.finished()
    assert (record.usage, record.cost, record.stop_reason) == (Usage(), None, None)
    with suppress(Truncated):
        await ask(route, message())
    record = await records.finished(2)
    assert (record.outcome, record.usage, record.cost) == ("failed", Usage(partial=True), None)


async def test_usage_in_an_unknown_encoding_is_partial(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ask: Ask, records: Records
) -> None:
    await start_proxy()
    headers = {"Content-Type": "application/json", "Content-Encoding": "x-of-tomorrow"}
    upstream.script(bytes_response(b"?", headers))
    assert (await ask(MESSAGES, message())).body == b"?"
    record = await records.finished()
    assert (record.outcome, record.usage) == ("completed", Usage(partial=True))


async def test_cost_comes_from_the_first_plugin_with_a_price(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ask: Ask, records: Records
) -> None:
    class Contract:
        @hookimpl
        def price(self, model: str, usage: Usage) -> int:
            return 7

    await start_proxy()
    usage = {"input_tokens": 25, "output_tokens": 15}
    upstream.script(json_response(message_document("x", model="claude-of-tomorrow", usage=usage)))
    await ask(MESSAGES, message())
    assert (await records.finished()).cost == 25 * 15_000 + 15 * 75_000, "the highest prices"
    await start_proxy(plugins=[Contract()])
    await ask(MESSAGES, message())
    assert (await records.finished(2)).cost == 7
    await start_proxy(DISABLED_PLUGINS="prices")
    await ask(MESSAGES, message())
    record = await records.finished(3)
    assert record.usage.output_tokens
    assert record.cost is None


@pytest.mark.parametrize("by", ["upstream", "client"])
@pytest.mark.parametrize("route", [MESSAGES, CHAT])
async def test_usage_of_a_stream_cut_anywhere(
    route: str,
    by: str,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    raw: OpenRaw,
    records: Records,
) -> None:
    await start_proxy()
    usage = {"input_tokens": 9, "output_tokens": 40, "cache_read_input_tokens": 7}
    events = message_events(message_document("word " * 20, model=MODEL, usage=usage))
    body = b"".join(events)
    cuts = [len(b"".join(events[:count])) for count in range(len(events) + 1)]
    cuts = [*cuts, *(cut + 5 for cut in cuts[:-1])]
    request = request_bytes(
        "POST", route, body=json.dumps(message(stream=True)).encode(), token=TEST_TOKEN
    )
    end: Any = "close" if by == "upstream" else "hang"
    for count, cut in enumerate(cuts, 1):
        upstream.script(sse_response([body[:cut]] if cut else [], end=end))
        connection = await raw()
        await connection.send(request)
        if by == "upstream":
            with suppress(ConnectionResetError):
                await connection.read_to_end()
        else:
            await connection.head()
            seen = 0
            while route == MESSAGES and seen < cut:
                seen += len(await connection.chunk())
            await connection.close()
        record = await records.finished(count)
        read, whole, begun = record.usage, cut == len(body), cut >= len(events[0])
        if by == "client" and route == CHAT:
            # the client cannot know how much of it has reached the proxy
            assert read.partial or whole
        else:
            expected = (9, 7) if begun else (None, None)
            assert (read.input_tokens, read.cache_read_input_tokens) == expected
            assert read.partial != whole
            assert not whole or read.output_tokens == 40
        if read.input_tokens is None:
            assert record.cost is None
        else:
            assert 1 <= (read.output_tokens or 0) <= 60
            assert record.cost == 9 * 2000 + (read.output_tokens or 0) * 10_000 + 7 * 100
    assert len(records.all) == len({record.request_id for record in records.all}) == len(cuts)

"""When another upstream is tried: each trigger, each that is none, and at each moment."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path

import pytest
import trustme
from several import LISTED, MESSAGE, Several

from tornadoproxy import ConfigurationError, Outcome
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawResponse,
    Response,
    ScriptedUpstream,
    Truncated,
    UpstreamExchange,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream import failover

FILE = "file_011CNha8iCJcU1wXNR6q4V8w"
FAST = "first_byte_timeout = 0.3\nconnect_timeout = 0.3"
EVENTS = message_events(message_document("Hi"))
START = EVENTS[0]


def error_event(kind: str) -> bytes:
    return event({"type": "error", "error": {"type": kind, "message": "Not now"}})


def error(status: int, kind: str = "api_error", message: str = "Not now") -> Response:
    return error_response(status, kind, message)


TRIGGERS: dict[str, Response] = {
    **{
        str(status): error(status, kind)
        for status, kind in {
            401: "authentication_error",
            403: "permission_error",
            429: "rate_limit_error",
            529: "overloaded_error",
            **dict.fromkeys((500, 502, 503, 504), "api_error"),
        }.items()
    },
    "404 of the model": error(404, "not_found_error", "model: claude-sonnet-5-5"),
    "a reset before the head": raw_response(end="reset"),
    "the end before the head": raw_response(end="close"),
    "silence": silent_response(),
    "no HTTP": raw_response(b"SSH-2.0\r\n\r\n", end="close"),
    "an error that does not end": raw_response(
        b"HTTP/1.1 529 x\r\ncontent-length: 100\r\n\r\nnot all", end="hang"
    ),
    "overloaded_error after message_start": sse_response([START, error_event("overloaded_error")]),
    "api_error at first": sse_response([error_event("api_error")]),
    "rate_limit_error after a ping": sse_response([*EVENTS[:2], error_event("rate_limit_error")]),
    "the end after message_start": sse_response([START]),
    "a reset after message_start": sse_response([START], end="reset"),
    "a reset within message_start": sse_response([START[:-20]], end="reset"),
}
"""What makes a request move on."""

OTHERS: dict[str, Response] = {
    "400": error(400, "invalid_request_error", "prompt is too long"),
    "404 of a file": error(404, "not_found_error", "no such file"),
    "413": error(413, "request_too_large"),
    "422": error(422, "invalid_request_error"),
    "an error of the request in a stream": sse_response(
        [START, error_event("invalid_request_error")]
    ),
    "overloaded_error within the content": sse_response(
        [*EVENTS[:4], error_event("overloaded_error")]
    ),
    "a reset within the content": sse_response(EVENTS[:4], end="reset"),
    "a message without content": sse_response([START, *EVENTS[-2:]]),
}
"""What is returned as it came."""

DIALECTS = {
    "/v1/messages": MESSAGE,
    "/openai/v1/chat/completions": {
        "model": "claude-sonnet-5-5",
        "max_completion_tokens": 10,
        "messages": MESSAGE["messages"],
    },
}


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_failure_before_the_content_is_not_seen_by_the_client(
    several: Several, trigger: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "ERROR_BODY_TIMEOUT", 0.3)
    await several.start(a=FAST, b=FAST)
    well = sse_response(EVENTS)
    several["a"].script(TRIGGERS[trigger])
    several["b"].script(well)
    response = await several.ask(path, {**DIALECTS[path], "stream": True})
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "b")
    if path == "/v1/messages":
        assert response.body == b"".join(EVENTS)
    else:
        assert b'"content":"Hi"' in response.body
    assert b"Not now" not in response.body
    assert several.requests() == {"a": 1, "b": 1, "c": 0}
    assert [each.header("x-api-key") for each in several["a"].requests] == ["key-a"]
    record = await several.records.finished()
    assert (record.upstream, record.attempts, record.outcome) == ("b", 2, Outcome.COMPLETED)
    (failed,) = record.failed_attempts
    assert failed.startswith("a: ")
    assert record.usage.output_tokens
    assert len(several.records.all) == 1, "an exchange is counted once"


async def whole_or_cut(several: Several, to: Proxy | ScriptedUpstream) -> RawResponse:
    token = TEST_TOKEN if isinstance(to, Proxy) else None
    try:
        return await several.ask("/v1/messages", {**MESSAGE, "stream": True}, to=to, token=token)
    except Truncated as cut:
        if cut.response is None:
            raise
        return cut.response


@pytest.mark.parametrize("other", OTHERS)
async def test_error_of_the_request_or_within_the_content_is_returned_as_it_came(
    several: Several, other: str
) -> None:
    proxy = await several.start(a=FAST)
    several["a"].script(OTHERS[other], OTHERS[other])
    direct = await whole_or_cut(several, several["a"])
    through = await whole_or_cut(several, proxy)
    assert (through.status, through.header("x-tornadoproxy-upstream")) == (direct.status, "a")
    assert through.body.startswith(direct.body)
    assert several.requests() == {"a": 2, "b": 0, "c": 0}


@pytest.mark.parametrize("path", DIALECTS)
async def test_last_error_is_returned_as_it_came_if_all_fail(several: Several, path: str) -> None:
    await several.start(c=FAST)
    for name, status in (("a", 503), ("b", 429)):
        headers = {"retry-after": "7"}
        several[name].script(error_response(status, "api_error", f"From {name}", headers=headers))
    several["c"].script(raw_response(end="reset"))
    response = await several.ask(path, DIALECTS[path])
    assert (response.status, response.header("retry-after")) == (429, "7")
    assert b"From b" in response.body
    assert response.header("x-tornadoproxy-upstream") == "b"
    record = await several.records.finished()
    assert (record.attempts, len(record.failed_attempts)) == (3, 3)


async def test_refused_key_of_all_is_502(several: Several) -> None:
    await several.start()
    for name in "abc":
        several[name].script(TRIGGERS["401"])
    response = await several.message()
    assert response.status == 502
    assert b"refused this proxy's own credential" in response.body


async def test_client_that_leaves_ends_the_attempt_and_all_others(several: Several) -> None:
    await several.start()
    several["a"].script(error(529))
    several["b"].script(silent_response())
    client = await several.raw()
    body = json.dumps(MESSAGE).encode()
    await client.send(request_bytes("POST", "/v1/messages", (), body, token=TEST_TOKEN))
    request = await several["b"].received()
    await client.reset()
    await request.disconnected()
    record = await several.records.finished()
    assert (record.outcome, record.attempts) == (Outcome.ABANDONED, 2)
    assert several.requests() == {"a": 1, "b": 1, "c": 0}


async def test_upstream_rests_as_long_as_it_asks_and_is_probed_by_one_request(
    several: Several, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tornadoproxy.upstream.target")
    proxy = await several.start()
    resting = error_response(429, "rate_limit_error", "x", headers={"retry-after-ms": "300"})
    may_respond = asyncio.Event()

    async def probed(exchange: UpstreamExchange) -> None:
        await may_respond.wait()
        await json_response(message_document("Hi"))(exchange)

    several["a"].script(resting, probed)
    for _ in range(3):
        assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert several.requests() == {"a": 1, "b": 3, "c": 0}
    state = proxy.server.status().upstreams[0]
    assert (state.state, state.rests, state.attempts) == ("resting", 1, {"429": 1})
    assert 0 < state.rests_for <= 0.3
    await asyncio.sleep(state.rests_for)  # what is waited for is the time itself
    probe = asyncio.ensure_future(several.message())
    await several["a"].received(2)
    assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert proxy.server.status().upstreams[0].state == "probing"
    may_respond.set()
    assert (await probe).header("x-tornadoproxy-upstream") == "a"
    assert (await several.message()).header("x-tornadoproxy-upstream") == "a"
    assert caplog.messages == [
        "upstream a: resting for 0.3 s: 429",
        "upstream a: probing",
        "upstream a: well again",
    ]


async def test_first_due_is_asked_alone_while_all_rest(several: Several) -> None:
    await several.start()
    for name, seconds in (("a", "50"), ("b", "20"), ("c", "90")):
        headers = {"retry-after": seconds}
        limited = error_response(429, "rate_limit_error", f"From {name}", headers=headers)
        several[name].script(limited, limited)
    assert (await several.message()).status == 429
    response = await several.message()
    assert b"From b" in response.body
    assert several.requests() == {"a": 1, "b": 2, "c": 1}


async def test_full_upstream_is_passed_over(several: Several) -> None:
    await several.start(more="max_concurrent = 1")
    for name in "abc":
        several[name].script(silent_response())
    waiting = [asyncio.ensure_future(several.message()) for _ in range(3)]
    for name in "abc":
        await several[name].received()
    response = await several.message()
    assert (response.status, response.header("retry-after")) == (529, "1")
    for each in waiting:
        each.cancel()


async def test_model_goes_to_who_serves_it_under_its_name_there(several: Several) -> None:
    await several.start(
        a='models = ["claude-opus-5-5"]',
        b='models = {"claude-*" = "eu.claude-*", "other" = "x"}',
        c='models = ["claude-haiku-4-5"]',
    )
    there = message_document("Hi", model="eu.claude-sonnet-5-5")
    several["b"].script(json_response(there))
    body = b'{"messages": [{"model": "claude-sonnet-5-5"}], "model" : "claude-sonnet-5-5" }'
    response = await several.ask("/v1/messages", body=body)
    assert json.loads(response.body)["model"] == "eu.claude-sonnet-5-5"
    (request,) = several["b"].requests
    assert request.body == body.replace(b'" : "claude', b'" : "eu.claude')
    assert (await several.records.finished()).model == "claude-sonnet-5-5", "so it has a price"
    refused = await several.message(model="nobody's")
    assert (refused.status, b"No upstream of this proxy serves" in refused.body) == (404, True)
    several["b"].script(json_response(message_document("Hi", model="x")))
    assert (await several.message(model="other")).status == 200


async def test_files_and_batches_stay_where_they_were_made(several: Several) -> None:
    await several.start()
    several["a"].script(error(529), error(529))
    assert (await several.ask("/v1/files", body=b"x")).status == 529, "may have been made"
    made = json_response({"type": "file", "id": FILE})
    several["b"].script(made)
    assert (await several.ask("/v1/files", body=b"x")).status == 200
    assert several.requests() == {"a": 1, "b": 1, "c": 0}
    for _ in range(2):
        response = await several.ask(f"/v1/files/{FILE}/content")
        assert response.header("x-tornadoproxy-upstream") == "b"
    content = [{"type": "document", "source": {"type": "file", "file_id": FILE}}]
    response = await several.message(messages=[{"role": "user", "content": content}])
    assert response.header("x-tornadoproxy-upstream") == "b"
    lost = error(404, "not_found_error", "no such batch")
    several["a"].script(lost)
    several["b"].script(lost)
    response = await several.ask("/v1/messages/batches/msgbatch_013Zva2CMHLNnXjNJJKqJ2EF")
    assert response.header("x-tornadoproxy-upstream") == "c", "it is looked for"


async def test_pinned_upstream_gets_only_what_its_kind_serves(several: Several) -> None:
    bedrock = 'kind = "bedrock"\nregion = "eu-west-1"'
    await several.start(before=f'{LISTED}\npinned = "a"', a=bedrock)
    response = await several.ask("/v1/files")
    assert response.header("x-tornadoproxy-upstream") == "b"
    assert several.requests() == {"a": 0, "b": 1, "c": 0}


async def test_pinned_upstream_keeps_files_and_batches(several: Several) -> None:
    await several.start(before='pinned = "c"')
    several["c"].script(error(503))
    for _ in range(2):
        response = await several.ask("/v1/files")
        assert response.header("x-tornadoproxy-upstream") == "c"


async def test_reload_changes_the_upstreams_of_later_requests(several: Several) -> None:
    proxy = await several.start()
    several["a"].script(silent_response())
    asking = asyncio.ensure_future(several.message())
    await several["a"].received()
    several.write(a="models = ['none']")
    proxy.reload()
    assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert not asking.done()
    asking.cancel()
    several.write(before='order = "last"')
    with pytest.raises(ConfigurationError, match="order must be one of weighted, listed"):
        proxy.reload()
    assert (await several.message()).header("x-tornadoproxy-upstream") == "b"


async def test_long_stream_that_probed_does_not_hinder_later_probes(several: Several) -> None:
    proxy = await several.start()
    may_end = asyncio.Event()

    async def stream(exchange: UpstreamExchange) -> None:
        await exchange.head(200, [("Content-Type", "text/event-stream")])
        await exchange.send(b"".join(EVENTS[:4]))
        await may_end.wait()
        exchange.close()

    resting = error_response(529, "overloaded_error", "x", headers={"retry-after-ms": "0"})
    several["a"].script(resting, stream, resting)
    await several.message()
    client = await several.raw()
    body = json.dumps({**MESSAGE, "stream": True}).encode()
    await client.send(request_bytes("POST", "/v1/messages", (), body, token=TEST_TOKEN))
    await client.head()
    assert proxy.server.status().upstreams[0].state == "well"
    assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert (await several.message()).header("x-tornadoproxy-upstream") == "a"
    assert proxy.server.status().upstreams[0].state == "well"
    may_end.set()
    await client.reset()


async def test_refusal_by_all_upstreams_is_about_the_request(several: Several) -> None:
    await several.start()
    refused = error(403, "permission_error", "This beta is not enabled.")
    for name in "abc":
        several[name].script(refused)
    assert (await several.message()).status == 403
    assert (await several.message()).header("x-tornadoproxy-upstream") == "a"
    several["a"].script(refused)
    for _ in range(2):  # b serves the model, which a has refused
        assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert several.requests() == {"a": 3, "b": 3, "c": 1}


async def test_lost_ca_file_is_a_failure_of_its_upstream(
    several: Several, authority: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authorities = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(authorities))
    proxy = await several.start(a=f'ca_file = "{authorities}"')
    text, url = several.file.read_text(), several["a"].url
    several.file.write_text(text.replace(url, url.replace("http:", "https:")))
    proxy.reload()
    authorities.unlink()
    assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert f"the CA file {authorities} cannot be loaded: No such file" in caplog.text


async def test_upstream_named_by_a_proxy_behind_this_one_is_replaced(several: Several) -> None:
    await several.start()
    headers = {"x-tornadoproxy-upstream": "inner"}
    several["a"].script(json_response(message_document("Hi"), headers=headers))
    assert (await several.message()).all("x-tornadoproxy-upstream") == ["a"]


@pytest.mark.parametrize("path", DIALECTS)
async def test_stream_does_not_keep_the_request_body(several: Several, path: str) -> None:
    await several.start()
    size = 2_000_000
    messages = [{"role": "user", "content": "x" * size}]
    body = json.dumps({**DIALECTS[path], "messages": messages, "stream": True}).encode()
    stream = sse_response(EVENTS[:4], end="hang")
    several["a"].script(stream)
    client = await several.raw()
    tracemalloc.start()
    try:
        await client.send(request_bytes("POST", path, (), body, token=TEST_TOKEN))
        await client.head()
        await client.chunk()
        several["a"].requests.clear()
        large = [each for each in tracemalloc.take_snapshot().traces if each.size > size / 2]
    finally:
        tracemalloc.stop()
    assert large == []
    await client.reset()

"""One attempt at an upstream of another form: what its wire does wrong, and its credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from several import Several

from tornadoproxy import (
    Outcome,
    OutgoingRequest,
    ResponseDecoder,
    ResponseHead,
    Upstream,
    UpstreamEntries,
    UpstreamError,
    Wire,
    hookimpl,
)
from tornadoproxy.testing import (
    Response,
    Truncated,
    error_response,
    json_response,
    message_document,
    message_events,
    raw_response,
    sse_response,
)

LARGE = b"x" * 3_000_000
EVENTS = message_events(message_document("Hi"))
OVERLOADED = error_response(529, "overloaded_error", "From a")


class Decoder:
    """Passes each piece on, or fails in a way."""

    def __init__(self, feed: Callable[[bytes], bytes], end: Callable[[], bytes]) -> None:
        self.feed, self.end = feed, end


class AcmeWire(Wire):
    """A wire whose functions a test replaces."""

    def __init__(self) -> None:
        self.key = 1
        self.change: Callable[[OutgoingRequest], OutgoingRequest] = lambda request: request
        self.decoder: Callable[[], ResponseDecoder | None] = lambda: None
        self.renews = False

    def prepare(self, request: OutgoingRequest) -> OutgoingRequest:
        headers = request.with_headers(("X-Acme-Key", str(self.key)))
        return self.change(replace(request, headers=headers))

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        return head, self.decoder()

    async def renew_credential(self) -> bool:
        self.key += self.renews
        return self.renews


class Acme:
    def __init__(self) -> None:
        self.wire = AcmeWire()

    @hookimpl
    def upstreams(self, entries: UpstreamEntries) -> Iterator[Upstream]:
        for entry in entries.of_kind("acme"):
            yield entry.upstream(wire=self.wire)


@pytest.fixture
def acme() -> Acme:
    return Acme()


def fail(*_: object) -> Any:
    raise LookupError


def fail_as_upstream(*_: object) -> Any:
    raise UpstreamError("The cloud's response is odd.")


KIND = 'kind = "acme"'


@pytest.mark.parametrize("how", [fail, fail_as_upstream])
@pytest.mark.parametrize("when", ["read", "feed", "end"])
async def test_wire_that_fails_before_the_content_is_a_failure_of_its_upstream(
    several: Several, acme: Acme, when: str, how: Callable[..., Any]
) -> None:
    made = Decoder(how if when == "feed" else lambda piece: b"", how)
    acme.wire.decoder = how if when == "read" else lambda: made
    await several.start(plugins=[acme], a=KIND)
    several["a"].script(sse_response(EVENTS))
    response = await several.message(stream=True)
    assert (response.status, response.header("x-tornadoproxy-upstream")) == (200, "b")
    assert several.requests() == {"a": 1, "b": 1, "c": 0}


@pytest.mark.parametrize("has_cloud", [False, True])
async def test_clouds_get_no_system_message_among_the_others(
    several: Several, acme: Acme, has_cloud: bool
) -> None:
    await several.start(plugins=[acme], b=KIND if has_cloud else "")
    model = {"id": "claude-opus-5-5", "capabilities": {"batch": {"supported": True}}}
    several["a"].script(json_response({"data": [model]}))
    items = [{"role": role, "content": "Hi"} for role in ("user", "developer")]
    await several.ask("/openai/v1/responses", {"model": model["id"], "input": items})
    sent = several["a"].requests[-1].json()
    assert [each["role"] for each in sent["messages"]] == ["user", *["system"] * (not has_cloud)]
    assert sent.get("system") == ("Hi" if has_cloud else None)


async def test_decoder_that_fails_within_the_content_cuts_the_response(
    several: Several, acme: Acme
) -> None:
    acme.wire.decoder = lambda: Decoder(lambda piece: piece, fail)
    await several.start(plugins=[acme], a=KIND)
    several["a"].script(sse_response(EVENTS))
    with pytest.raises(Truncated):
        await several.message(stream=True)
    assert (await several.records.finished()).outcome is Outcome.FAILED


async def test_decoder_of_a_failed_attempt_does_not_read_another_response(
    several: Several, acme: Acme
) -> None:
    acme.wire.decoder = lambda: Decoder(lambda piece: piece, fail)
    await several.start(plugins=[acme], b=KIND)
    several["a"].script(OVERLOADED)
    several["b"].script(sse_response(EVENTS[:1], end="reset"))
    several["c"].script(raw_response(end="reset"))
    response = await several.message(stream=True)
    assert (response.status, b"From a" in response.body) == (529, True)
    assert (await several.records.finished()).attempts == 3


@pytest.mark.parametrize(
    "change",
    [
        fail,
        lambda request: replace(request, body=None),
        lambda request: replace(request, target="/a b"),
        lambda request: replace(request, headers=(("X-A", "1\r\nX-B: 2"),)),
    ],
)
async def test_request_that_a_wire_makes_wrong_is_not_sent(
    several: Several, acme: Acme, change: Callable[[OutgoingRequest], OutgoingRequest]
) -> None:
    acme.wire.change = change
    await several.start(plugins=[acme], a=KIND)
    assert (await several.message()).status == (500 if change is fail else 503)
    assert several.requests() == {"a": 0, "b": 0, "c": 0}


REFUSED: dict[str, Response] = {
    "at once": error_response(401, "authentication_error", "expired"),
    "in two pieces": raw_response(
        b"HTTP/1.1 401 x\r\ncontent-length: 4\r\n\r\n", b"late", end="close"
    ),
    "cut": raw_response(b"HTTP/1.1 403 x\r\ncontent-length: 4\r\n\r\n", b"x", end="reset"),
}


@pytest.mark.parametrize("renews", [False, True])
@pytest.mark.parametrize("refused", REFUSED)
async def test_refused_credential_is_renewed_once(
    several: Several, acme: Acme, refused: str, *, renews: bool
) -> None:
    acme.wire.renews = renews
    await several.start(plugins=[acme], a=KIND)
    several["a"].script(REFUSED[refused], json_response(message_document("Hi")))
    response = await several.message()
    assert response.status == 200
    assert response.header("x-tornadoproxy-upstream") == ("a" if renews else "b")
    keys = [each.header("x-acme-key") for each in several["a"].requests]
    assert keys == (["1", "2"] if renews else ["1"])
    record = await several.records.finished()
    assert (record.attempts, len(record.failed_attempts)) == ((1, 0) if renews else (2, 1))


async def test_streamed_body_is_not_begun_again_with_another_credential(
    several: Several, acme: Acme
) -> None:
    acme.wire.renews = True
    await several.start(plugins=[acme], a=KIND)
    several["a"].script(REFUSED["at once"])
    assert (await several.ask("/v1/files", body=LARGE)).status == 502
    assert several.requests() == {"a": 1, "b": 0, "c": 0}
    assert acme.wire.key == 2, "for the next request"


@pytest.mark.parametrize("fault", ["nothing listens", "no TLS"])
async def test_connection_that_fails_is_not_seen_by_the_client(
    several: Several, fault: str
) -> None:
    proxy = await several.start("connect_timeout = 0.5")
    if fault == "nothing listens":
        await several["a"].stop()
    else:
        plain = several["a"].url
        several.file.write_text(several.file.read_text().replace(plain, f"https{plain[4:]}"))
        proxy.reload()
    for attempts in (2, 1):  # it rests then
        assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
        assert (await several.records.finished(3 - attempts)).attempts == attempts

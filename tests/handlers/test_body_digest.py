"""An identity that is valid for one body only: ``Identity.body_sha256``."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from scene import Scene
from served import CHAT_BODY, CHAT_PATH, CHUNKED, MESSAGE_BODY, Authorizer, in_chunks, request

from tornadoproxy import Identity, IncomingRequest, Page, PageResponse, hookimpl

LARGE = b"x" * 3_000_000


class Signed:
    """Accepts the digest in ``x-digest``, which stands for a signature; has a page."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        digest = request.headers.get("X-Digest")
        return None if digest is None else Identity("signer", body_sha256=digest)

    @hookimpl
    def pages(self) -> list[Page]:
        return [Page("/page", lambda page: PageResponse(page.body), methods=("POST", "GET"))]


BODIES = {
    ("POST", "/v1/messages"): MESSAGE_BODY,
    ("POST", CHAT_PATH): CHAT_BODY,
    ("POST", "/v1/messages/count_tokens"): MESSAGE_BODY,
    ("POST", "/page"): b"page",
    ("POST", "/v1/files"): LARGE,
    ("GET", "/v1/models"): b"",
    ("GET", "/openai/v1/models"): b"",
    ("GET", "/page"): b"",
}
CASES = [
    *((*to, body, False) for to, body in BODIES.items()),
    *((*to, body, True) for to, body in BODIES.items() if to[0] == "POST"),
    ("POST", "/v1/files", b"", True),
    ("POST", "/v1/files", b"small", True),
]


def signed(method: str, path: str, body: bytes, digest: str, *, chunked: bool) -> bytes:
    if chunked:
        head = request(method, path, CHUNKED, ("X-Digest", digest))
        return head + in_chunks(body, 100_000)
    return request(method, path, ("X-Digest", digest), body=body)


@pytest.mark.parametrize("plugins", [[], [Authorizer()]], ids=["", "authorized"])
@pytest.mark.parametrize(("method", "path", "body", "chunked"), CASES)
async def test_body_with_its_digest_is_served(
    scene: Scene, method: str, path: str, body: bytes, plugins: list[object], *, chunked: bool
) -> None:
    await scene.start(plugins=[Signed(), *plugins])
    digest = hashlib.sha256(body).hexdigest().upper()
    client = await scene.raw()
    response = await client.ask(signed(method, path, body, digest, chunked=chunked))
    assert response.status not in (401, 500, 503)
    if method == "POST" and path not in ("/page", CHAT_PATH):
        (received,) = scene.upstream.requests
        assert received.body_sha256 == digest.lower()
    record = await scene.records.finished()
    assert (record.principal, record.bytes_in) == ("signer", len(body))


@pytest.mark.parametrize(("method", "path", "body", "chunked"), CASES)
async def test_other_body_is_never_sent_whole(
    scene: Scene, method: str, path: str, body: bytes, *, chunked: bool
) -> None:
    await scene.start(plugins=[Signed()])
    digest = hashlib.sha256(b"another").hexdigest()
    client = await scene.raw()
    response = await client.ask(signed(method, path, body, digest, chunked=chunked))
    assert response.status == 401
    message = json.loads(response.body)["error"]["message"]
    assert message.startswith("The body is not the one that the credential was made for")
    record = await scene.records.finished()
    assert (record.principal, record.outcome) == ("signer", "denied")
    if path == "/v1/files" and (chunked or body):
        for received in scene.upstream.requests:  # none, if the response came first
            await received.disconnected()
            assert received.body_length < max(len(body), 1)
            with pytest.raises(ConnectionError):
                await received.complete()
    else:
        assert scene.upstream.connections == 0


async def test_upload_is_cut_before_its_last_piece(scene: Scene) -> None:
    await scene.start(plugins=[Signed()])
    digest = hashlib.sha256(b"another").hexdigest()
    whole = signed("POST", "/v1/files", LARGE, digest, chunked=False)
    client = await scene.send(whole[:-10])
    received = await scene.upstream.received()
    while received.body_length < len(LARGE) // 2:
        await asyncio.sleep(0)
    await client.send(whole[-10:])
    assert (await client.response()).status == 401
    await received.disconnected()
    assert received.body_length < len(LARGE)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64])
async def test_digest_that_is_none_fails_closed(scene: Scene, digest: str) -> None:
    await scene.start(plugins=[Signed()])
    response = await scene.ask("/v1/messages", body=MESSAGE_BODY, headers={"X-Digest": digest})
    assert response.status == 503
    assert scene.upstream.connections == 0

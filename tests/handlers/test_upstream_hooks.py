"""The hooks of the way to an upstream, in a served proxy: choose_upstream and prepare_request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from scene import Scene
from served import (
    CHAT_BODY,
    CHAT_PATH,
    CHUNKED,
    MESSAGE_FIELDS,
    RESPONSES,
    RESPONSES_BODY,
    RESPONSES_FIELDS,
    RESPONSES_PATH,
    Authorizer,
    in_chunks,
    request,
)
from several import LISTED, Several

from tornadoproxy import Denied, InvalidRequest, OutgoingRequest, Permit, RequestRecord, hookimpl
from tornadoproxy.testing import ScriptedUpstream, error_response, json_response, message_document

BODY = json.dumps(MESSAGE_FIELDS, indent=1).encode()
COUNT = "/v1/messages/count_tokens"
FILES = "/v1/files"
LARGE = b"x" * 3_000_000

sync_and_async = pytest.mark.parametrize("awaited", [False, True])


def refuse(*_: object) -> None:
    raise Denied("Not today.", status=429, retry_after=7)


def break_down(*_: object) -> None:
    raise LookupError


class Hooks:
    """Decides by these functions, and records what it is asked."""

    def __init__(
        self,
        *,
        choose: Callable[[tuple[str, ...]], object] = lambda _: None,
        prepare: Callable[[OutgoingRequest], object] = lambda _: None,
        awaited: bool = False,
    ) -> None:
        self._choose, self._prepare, self._awaited = choose, prepare, awaited
        self.asked: list[tuple[Any, ...]] = []
        self.sent: list[OutgoingRequest] = []

    @hookimpl
    def choose_upstream(self, request: Any, model_request: Any, upstreams: tuple[str, ...]) -> Any:
        self.asked.append((request.path, model_request and model_request.model, upstreams))
        return self._decide(self._choose, upstreams)

    @hookimpl
    def prepare_request(self, identity: Any, outgoing: OutgoingRequest) -> Any:
        assert identity.principal == "token"
        self.sent.append(outgoing)
        return self._decide(self._prepare, outgoing)

    def _decide(self, decide: Callable[[Any], object], what: object) -> object:
        async def later() -> object:
            await asyncio.sleep(0)
            return decide(what)

        return later() if self._awaited else decide(what)


class Waits:
    """Waits in one of the hooks until it is cancelled."""

    def __init__(self, hook: str) -> None:
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        setattr(self, hook, hookimpl(wait))


async def refused(
    scene: Scene, upstreams: list[ScriptedUpstream], path: str, body: bytes
) -> tuple[int, str | None]:
    """Send a request that a plugin refuses; return its status and ``retry-after``."""
    count = len(scene.records.all) + 1
    response = await scene.ask(path, body=body)
    assert [each.connections for each in upstreams] == [0] * len(upstreams)
    record = await scene.records.finished(count)
    assert (len(scene.records.all), record.attempts, record.upstream) == (count, 0, None)
    return response.status, response.header("retry-after")


# -- choose_upstream


@sync_and_async
@pytest.mark.parametrize(
    ("result", "tried"), [(None, "ab"), (["c"], "c"), (("c", "a"), "ca"), (["b", "c", "b"], "bc")]
)
async def test_chosen_upstreams_are_tried_in_their_order(
    several: Several, result: object, tried: str, *, awaited: bool
) -> None:
    await several.start(plugins=[Hooks(choose=lambda _: result, awaited=awaited)])
    overloaded = error_response(529, "overloaded_error", "x")
    for name in tried[:-1]:
        several[name].script(overloaded)
    response = await several.message()
    assert response.header("x-tornadoproxy-upstream") == tried[-1]
    assert (await several.records.finished()).attempts == len(tried)
    assert "".join(name for name, count in several.requests().items() if count) == "".join(
        sorted(tried)
    )


async def test_first_choice_counts_and_a_resting_one_comes_last(several: Several) -> None:
    plugins = {
        "a": Hooks(),
        "b": Hooks(choose=lambda _: ["c", "b"]),
        "c": (last := Hooks(choose=lambda _: ["a"])),
    }
    await several.start(plugins=plugins)
    several["c"].script(error_response(529, "x", "x", headers={"retry-after": "9"}))
    for _ in range(2):
        assert (await several.message()).header("x-tornadoproxy-upstream") == "b"
    assert last.asked == []
    assert several.requests() == {"a": 0, "b": 2, "c": 1}


async def test_choice_is_among_those_that_can_serve_it_perhaps_one(several: Several) -> None:
    hooks = Hooks()
    a, c = 'models = ["m"]', 'models = ["m", "n"]'
    await several.start(before=f'{LISTED}\npinned = "b"', plugins=[hooks], a=a, c=c)
    for path, body in (
        ("/v1/messages", {**MESSAGE_FIELDS, "model": "m"}),
        (CHAT_PATH, {**MESSAGE_FIELDS, "model": "other"}),
        (COUNT, {**MESSAGE_FIELDS, "model": "n"}),
        (f"{RESPONSES_PATH}/input_tokens", {**RESPONSES_FIELDS, "model": "n"}),
        ("/v1/files", {}),
    ):
        await several.ask(path, body)
    assert hooks.asked == [
        ("/v1/messages", "m", ("a", "b", "c")),
        (CHAT_PATH, "other", ("b",)),
        (COUNT, None, ("b", "c")),
        (f"{RESPONSES_PATH}/input_tokens", None, ("b", "c")),
        (FILES, None, ("b",)),
    ]


@sync_and_async
@pytest.mark.parametrize(
    "choose",
    [refuse, break_down, *(lambda _, it=it: it for it in ([], "a", ["d"], [["a"]], {"a": 1}, 7))],
)
async def test_refused_choice_asks_no_upstream(
    several: Several,
    scene: Scene,
    choose: Callable[[tuple[str, ...]], object],
    *,
    awaited: bool,
) -> None:
    hooks = Hooks(choose=choose, awaited=awaited)
    await several.start(plugins=[hooks])
    upstreams = [*several.upstreams.values()]
    for path, body in (("/v1/messages", BODY), (RESPONSES_PATH, RESPONSES_BODY)):
        answer = await refused(scene, upstreams, path, body)
        assert answer == ((429, "7") if choose is refuse else (503, "1")), path


# -- prepare_request

REQUESTS: dict[str, tuple[bytes, bytes]] = {
    "a message": (request("POST", "/v1/messages?beta=true", body=BODY), BODY),
    "a chunked message": (
        request("POST", "/v1/messages", CHUNKED) + in_chunks(BODY, 50),
        BODY,
    ),
    "an empty chunked message": (request("POST", "/v1/messages", CHUNKED) + b"0\r\n\r\n", b""),
    "a count": (request("POST", COUNT, body=BODY), BODY),
    "a chat completion": (request("POST", CHAT_PATH, body=CHAT_BODY), b""),
    "a response": (RESPONSES, b""),
    "a count of a response": (
        request("POST", f"{RESPONSES_PATH}/input_tokens", body=RESPONSES_BODY),
        b"",
    ),
    "a small upload": (request("POST", FILES, body=b"%PDF"), b"%PDF"),
    "a large upload": (request("POST", FILES, body=LARGE), LARGE),
    "a chunked upload": (request("POST", FILES, CHUNKED) + in_chunks(LARGE, 100_000), LARGE),
    "HEAD": (request("HEAD", "/v1/models"), b""),
    "DELETE": (request("DELETE", "/v1/files/x", ("Content-Length", "0")), b""),
}


async def sent_upstream(scene: Scene, which: str) -> tuple[bytes, str]:
    """Return the head, but for Via and the length of a chat completion, and the body's digest."""
    client = await scene.raw()
    response = await client.ask(REQUESTS[which][0], to_head=which == "HEAD")
    assert response.status < 500
    received = scene.upstream.requests[-1]
    await received.complete()
    return received.raw_head.partition(b"\r\nVia: ")[0], received.body_sha256


@sync_and_async
@pytest.mark.parametrize("which", REQUESTS)
async def test_request_left_alone_is_the_same_byte_for_byte(
    scene: Scene, which: str, *, awaited: bool
) -> None:
    # with a plugin that authorizes, no empty message would go upstream
    await scene.start(MODELS="x=y")
    without = await sent_upstream(scene, which)
    hooks = Hooks(awaited=awaited)
    await scene.start(plugins=[hooks], MODELS="x=y")
    assert await sent_upstream(scene, which) == without
    assert [each.upstream for each in hooks.sent] == ["default"]
    assert (hooks.sent[0].body is None) == (REQUESTS[which][1] == LARGE)
    assert not {name for name, _ in hooks.sent[0].headers} & {"X-Api-Key", "Authorization"}


@sync_and_async
@pytest.mark.parametrize("which", REQUESTS)
async def test_changed_request_is_framed_by_the_core(
    scene: Scene, which: str, *, awaited: bool
) -> None:
    def change(outgoing: OutgoingRequest) -> OutgoingRequest:
        body = outgoing.body if outgoing.body is None else outgoing.body + b" " * 7
        wrong = (("content-length", "1"), ("Host", "elsewhere"), ("X-Own", "é"))
        return replace(outgoing, body=body, headers=wrong, target=outgoing.target + "#1")

    def see(outgoing: OutgoingRequest) -> None:
        assert outgoing.header("x-own") == "é"

    plugins = {"a": Hooks(prepare=change, awaited=awaited), "b": Hooks(prepare=see)}
    await scene.start(plugins=plugins)
    await sent_upstream(scene, which)
    received = scene.upstream.requests[-1]
    streamed, chunked = REQUESTS[which][1] == LARGE, which == "a chunked upload"
    assert received.target.endswith("#1")
    assert [received.all(name) for name in ("host", "x-own")] == [
        [f"127.0.0.1:{scene.upstream.port}"],
        ["é"],
    ]
    lengths = [] if chunked else [str(received.body_length)]
    assert received.all("content-length") == lengths
    assert received.all("transfer-encoding") == ["chunked"] * chunked
    if streamed:
        assert received.body_length == len(LARGE)
    else:
        assert received.body.endswith(b" " * 7)


def changed(**fields: object) -> Callable[[OutgoingRequest], object]:
    return lambda outgoing: replace(outgoing, **fields)


@sync_and_async
@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        (refuse, 429),
        (lambda _: (_ for _ in ()).throw(InvalidRequest("No secrets.")), 400),
        *(
            (prepare, 503)
            for prepare in (
                break_down,
                lambda _: b"a body",
                changed(body=None),
                changed(body=bytearray(b"x")),
                changed(headers=(("X-A", "1\r\nX-B: 2"),)),
                changed(headers=(("X A", "1"),)),
                changed(headers=(("X-A", "\u0153"),)),
                changed(headers=(("X-A",),)),
                changed(headers=(("X-A", 1),)),
                changed(headers=None),
                changed(target="v1/messages"),
                changed(target="/v1/ messages"),
                changed(method="P\u00d6ST"),
                changed(ignored=(1,)),
            )
        ),
    ],
)
async def test_request_that_is_not_prepared_stays_here(
    scene: Scene,
    prepare: Callable[[OutgoingRequest], object],
    status: int,
    *,
    awaited: bool,
) -> None:
    settled: list[RequestRecord] = []
    hooks = Hooks(prepare=prepare, awaited=awaited)
    permits = Authorizer(lambda _: Permit(settle=settled.append))
    await scene.start(plugins=[hooks, permits])
    for path in ("/v1/messages", CHAT_PATH):
        answer = await refused(scene, [scene.upstream], path, BODY)
        assert answer == (status, {429: "7", 400: None, 503: "1"}[status]), path
    assert settled == scene.records.all


@sync_and_async
@pytest.mark.parametrize("prepare", [refuse, changed(body=b"another")])
async def test_streamed_upload_that_is_not_prepared_stays_here(
    scene: Scene, prepare: Callable[[OutgoingRequest], object], *, awaited: bool
) -> None:
    await scene.start(plugins=[Hooks(prepare=prepare, awaited=awaited)])
    answer = await refused(scene, [scene.upstream], FILES, LARGE)
    assert answer == ((429, "7") if prepare is refuse else (503, "1"))


@pytest.mark.parametrize("hook", ["choose_upstream", "prepare_request"])
@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize(
    "sent", [request("POST", "/v1/messages", body=BODY), request("POST", FILES, body=LARGE)]
)
async def test_plugin_that_is_awaited_is_cancelled(
    several: Several, hook: str, sent: bytes, *, leaves: bool
) -> None:
    """Either the client leaves, or PLUGIN_TIMEOUT passes."""
    waits = Waits(hook)
    await several.start(plugins=[waits], PLUGIN_TIMEOUT=60 if leaves else 0.05)
    client = await several.raw()
    sending = asyncio.ensure_future(client.send(sent))
    await waits.begun.wait()
    if leaves:
        sending.cancel()
        await client.reset()
    else:
        await sending
        assert (await client.response()).status == 503
    await waits.cancelled.wait()
    record = await several.records.finished()
    assert record.outcome == ("abandoned" if leaves else "failed")
    assert [each.connections for each in several.upstreams.values()] == [0, 0, 0]


async def test_plugin_that_blocks_is_too_late(scene: Scene) -> None:
    slow = Hooks(prepare=lambda _: time.sleep(0.11))
    await scene.start(plugins=[slow], PLUGIN_TIMEOUT=0.1)
    assert (await scene.ask("/v1/messages", MESSAGE_FIELDS)).status == 503
    assert scene.upstream.connections == 0


@sync_and_async
@pytest.mark.parametrize("last", ["answers", "refused"])
async def test_each_attempt_is_prepared(several: Several, last: str, *, awaited: bool) -> None:
    def name(outgoing: OutgoingRequest) -> OutgoingRequest:
        if last == "refused" and outgoing.upstream == "b":
            raise Denied("Not b.")
        return replace(outgoing, headers=outgoing.with_headers(("X-To", outgoing.upstream)))

    hooks = Hooks(prepare=name, awaited=awaited)
    await several.start(plugins=[hooks], b='models = {"claude-*" = "there-*"}')
    several["a"].script(error_response(529, "overloaded_error", "x"))
    several["b"].script(json_response(message_document("Hi")))
    response = await several.message()
    assert response.status == (200 if last == "answers" else 403)
    assert [each.upstream for each in hooks.sent] == ["a", "b"]
    assert hooks.sent[1].body == (hooks.sent[0].body or b"").replace(b"claude-", b"there-")
    assert [each.all("x-to") for each in several["a"].requests] == [["a"]]
    assert several.requests() == {"a": 1, "b": int(last == "answers"), "c": 0}
    record = await several.records.finished()
    assert (record.attempts, len(record.failed_attempts)) == (1 + (last == "answers"), 1)


async def test_ignored_names_cannot_forge_a_header(scene: Scene) -> None:
    ignored = ("top_k", "a\r\nSet-Cookie: b=c", "é", "with, comma", "ok-2")
    await scene.start(plugins=[Hooks(prepare=changed(ignored=ignored))])
    response = await scene.ask("/v1/messages", MESSAGE_FIELDS)
    assert response.header("x-tornadoproxy-ignored") == "top_k, ok-2"
    assert response.header("set-cookie") is None

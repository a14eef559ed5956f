"""Pages of plugins: which paths are theirs, who gets in, what is answered, and how they fail."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    Denied,
    InvalidRequest,
    Page,
    PageRequest,
    PageResponse,
    ProxyError,
    Secret,
    Status,
    hookimpl,
)
from tornadoproxy.errors import Overloaded
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY
from tornadoproxy.plugin.pages import MAX_PAGE_BODY, MAX_PUBLIC_BODY
from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy import Identity, IncomingRequest, ModelRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

DIALECTS = {"/page": "anthropic", "/openai/page": "openai"}


class Pages:
    """A plugin with these pages, which takes note of what they are asked."""

    def __init__(self, *pages: Page) -> None:
        self._pages = pages

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return self._pages


class Recorder:
    """A page that answers what it was made with, and keeps what it was asked."""

    def __init__(self, response: PageResponse | None = None) -> None:
        self.requests: list[PageRequest] = []
        self._response = response or PageResponse(b"{}")

    def __call__(self, request: PageRequest) -> PageResponse:
        self.requests.append(request)
        return self._response


class Gate:
    """A page that waits until it may answer."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.answered = False

    async def __call__(self, request: PageRequest) -> PageResponse:
        self.asked.set()
        await self.may_answer.wait()
        self.answered = True
        return PageResponse(b"late")


async def ask(
    raw: OpenRaw,
    target: str,
    method: str = "GET",
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"",
    token: str | None = TEST_TOKEN,
) -> RawResponse:
    client = await raw()
    await client.send(request_bytes(method, target, headers or [], body, token=token))
    return await client.response(to_head=method == "HEAD")


def error_of(response: RawResponse, target: str) -> dict[str, Any]:
    """The error's members, out of the shape of the path's dialect."""
    assert response.header("content-type") == "application/json"
    document = json.loads(response.body)
    if target.startswith("/openai/"):
        assert document.keys() == {"error"}
        assert response.header("x-request-id")
    else:
        assert document.keys() == {"type", "error", "request_id"}
        assert document["request_id"] == response.header("request-id")
    error: dict[str, Any] = document["error"]
    return error


# -- what is served


async def test_a_page_is_served(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    scripted = PageResponse(b"up 1\n", "text/plain; charset=utf-8", 201, {"X-Own": "yes"})
    page = Recorder(scripted)
    await start_proxy(plugins=[Pages(Page("/figures", page))])
    response = await ask(raw, "/figures?a=1&b=%C3%A9&a=2+3&empty=")
    assert (response.status, response.body) == (201, b"up 1\n")
    assert response.header("content-type") == "text/plain; charset=utf-8"
    assert response.header("x-own") == "yes"
    assert response.header("cache-control") == "no-store"
    assert response.header("content-length") == "5"
    (asked,) = page.requests
    assert asked.incoming.path == "/figures"
    assert asked.identity is not None
    assert asked.identity.principal == "token"
    assert asked.query == {"a": ("1", "2 3"), "b": ("é",), "empty": ("",)}
    assert (asked.arguments, asked.body) == ((), b"")
    record = await records.finished()
    assert response.header("request-id") == record.request_id
    assert (record.principal, record.route, record.status) == ("token", "/figures", 201)
    assert (record.outcome, record.error, record.bytes_out) == ("completed", None, 5)
    assert upstream.requests == []


async def test_page_may_say_that_it_is_cached(start_proxy: StartProxy, raw: OpenRaw) -> None:
    response = PageResponse(b"logo", headers={"cache-control": "max-age=60"})
    await start_proxy(plugins=[Pages(Page("/logo", Recorder(response)))])
    assert (await ask(raw, "/logo")).all("cache-control") == ["max-age=60"]


@pytest.mark.parametrize("path", DIALECTS)
async def test_an_answer_has_the_request_id_of_its_dialect(
    path: str, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(plugins=[Pages(Page(path, Recorder()))])
    response = await ask(raw, path)
    name = "x-request-id" if DIALECTS[path] == "openai" else "request-id"
    assert response.header(name) == (await records.finished()).request_id


async def test_a_path_may_be_a_pattern_with_groups(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    page = Recorder()
    pattern = r"/people/([^/]+)/limits(?:/(\d+))?"
    await start_proxy(plugins=[Pages(Page(pattern, page, ("GET", "POST")))])
    assert (await ask(raw, "/people/zo%C3%AB%20x/limits/7")).status == 200
    assert (await ask(raw, "/people/ann/limits", "POST", body=b'{"a": 1}')).status == 200
    assert (await ask(raw, "/people/ann/limits/x")).status == 404
    assert [each.arguments for each in page.requests] == [("zoë x", "7"), ("ann", "")]
    assert [each.body for each in page.requests] == [b"", b'{"a": 1}']
    assert (await records.finished(2)).bytes_in == 8


async def test_an_asynchronous_page_is_awaited(start_proxy: StartProxy, raw: OpenRaw) -> None:
    async def serve(request: PageRequest) -> PageResponse:
        await asyncio.sleep(0)
        return PageResponse(request.body[::-1])

    await start_proxy(plugins=[Pages(Page("/page", serve, ("PUT",)))])
    assert (await ask(raw, "/page", "PUT", body=b"abc")).body == b"cba"


async def test_page_that_overrides_takes_no_more_than_its_path(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/v1/organizations/limits", page, overrides=True))])
    assert (await ask(raw, "/v1/organizations/limits?x=/")).status == 200
    assert upstream.requests == []
    others = [
        "/v1/organizations/limits/",
        "/v1/organizations/limit%73",
        "/v1/Organizations/limits",
        "/v1/organizations/limits/1",
        "/v1/organizations",
    ]
    for each in others:
        upstream.script(json_response({}, 418))
        assert (await ask(raw, each)).status == 418
    assert [each.target for each in upstream.requests] == others
    assert len(page.requests) == 1


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/ready", "/api/hello", "/v1/messages", "/v1/unheard/of"),
        *("/openai/v1/chat/completions", "/openai/models", "/.*", "/(health|figures)", "/v1/a/.+"),
    ],
)
async def test_page_that_hides_the_proxys_own_is_refused(
    path: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    with pytest.raises(ConfigurationError, match="hides a path of the proxy's own") as caught:
        await start_proxy(plugins={"bold": Pages(Page(path, Recorder()))})
    assert "plugin 'bold'" in str(caught.value)

    own = Recorder(PageResponse(b"mine"))
    await start_proxy(plugins={"bold": Pages(Page(path, own, ("GET", "POST"), overrides=True))})
    taken = path.replace("(health|figures)", "health").replace(".*", "health").replace(".+", "b")
    assert (await ask(raw, taken)).body == b"mine"


async def test_page_pattern_matches_none_of_the_proxys_own(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(plugins=[Pages(Page("/[^/]*/figures", Recorder()))])
    assert (await ask(raw, "/team/figures")).status == 200
    await ask(raw, "/v1/figures")
    assert [each.target for each in upstream.requests] == ["/v1/figures"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("/figures", "/figures"), ("/fig.*", "/figures"), ("/figures", "/fig.*"), ("/f.*", "/f.*")],
)
async def test_page_of_two_plugins_is_refused_unless_one_overrides(
    first: str, second: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    one, two = Recorder(PageResponse(b"1")), Recorder(PageResponse(b"2"))
    for overrides in (False, True):
        pages = [Page(first, one, overrides=overrides), Page(second, two, overrides=overrides)]
        with pytest.raises(ConfigurationError, match="of 'a' are for the same path"):
            await start_proxy(plugins={"a": Pages(pages[0]), "b": Pages(pages[1])})

    overriding = Pages(Page(second, two, overrides=True))
    await start_proxy(plugins={"a": Pages(Page(first, one)), "b": overriding})
    assert (await ask(raw, "/figures")).body == b"2"


async def test_page_beside_a_pattern_of_its_plugin_is_the_exception(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    pages = [Page("/people/([^/]+)", Recorder()), Page("/people/me", Recorder(PageResponse(b"me")))]
    await start_proxy(plugins=[Pages(*pages)])
    assert (await ask(raw, "/people/me")).body == b"me"
    with pytest.raises(ConfigurationError, match="are for the same path"):
        await start_proxy(plugins=[Pages(pages[1], pages[1])])


async def test_each_proxy_has_its_own_pages(start_proxy: StartProxy, raw: OpenRaw) -> None:
    first = await start_proxy(plugins=[Pages(Page("/one", Recorder(PageResponse(b"1"))))])
    second = await start_proxy(plugins=[Pages(Page("/two", Recorder(PageResponse(b"2"))))])
    seen = {}
    for proxy in (first, second):
        for path in ("/one", "/two"):
            client = await raw(proxy)
            await client.send(request_bytes("GET", path, token=TEST_TOKEN))
            seen[proxy.port, path] = (await client.response()).status
    assert list(seen.values()) == [200, 404, 404, 200]


async def test_a_connection_serves_on_after_a_page(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(plugins=[Pages(Page("/page", Recorder(), ("GET", "POST")))])
    client = await raw()
    request = request_bytes("POST", "/page", body=b"x" * 10, token=TEST_TOKEN)
    await client.send(request + request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await client.response()).body == b"{}"
    assert json.loads((await client.response()).body)["data"]


# -- who gets in


class Judge:
    """Keeps what `authorize` is asked, and refuses, if told to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.asked: list[tuple[str, str, ModelRequest | None]] = []
        self._refusal = refusal

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        self.asked.append((request.path, identity.principal, model_request))
        if self._refusal is not None:
            raise self._refusal


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_page_is_behind_authentication(
    path: str, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    page, judge = Recorder(), Judge()
    await start_proxy(plugins=[Pages(Page(path, page)), judge])
    for token in (None, "not-the-token"):
        response = await ask(raw, path, token=token)
        assert response.status == 401
        assert response.header("www-authenticate") == "Bearer"
        error_of(response, path)
    assert (page.requests, judge.asked) == ([], [])
    assert (await records.finished()).principal is None
    assert (await ask(raw, path)).status == 200
    assert judge.asked == [(path, "token", None)]


async def test_a_page_is_behind_authorization(start_proxy: StartProxy, raw: OpenRaw) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/page", page)), Judge(Denied("not for you"))])
    response = await ask(raw, "/page")
    assert (response.status, error_of(response, "/page")["message"]) == (403, "not for you")
    assert page.requests == []


async def test_nobody_is_asked_about_a_public_page(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    page, judge = Recorder(), Judge(Denied("not for you"))
    await start_proxy(plugins=[Pages(Page("/page", page, public=True)), judge])
    for token in (None, "not-the-token", TEST_TOKEN):
        assert (await ask(raw, "/page", token=token)).status == 200
    assert judge.asked == []
    assert [each.identity for each in page.requests] == [None] * 3
    assert page.requests[1].incoming.candidates()[0].matches(Secret(b"not-the-token"))
    assert (await records.finished(3)).principal is None


async def test_a_public_page_may_refuse_by_itself(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    def serve(request: PageRequest) -> PageResponse:
        raise AuthenticationFailed("Send the admin key.")

    proxy = await start_proxy(plugins=[Pages(Page("/page", serve, public=True))])
    response = await ask(raw, "/page")
    assert (response.status, response.header("www-authenticate")) == (401, "Bearer")
    assert error_of(response, "/page") == {
        "type": "authentication_error",
        "message": "Send the admin key.",
    }
    assert (await records.finished()).outcome == "denied"
    assert not any(proxy.server.status().plugin_failures.values())


@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_public_page_body_is_small(
    coding: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    page = Recorder()
    proxy = await start_proxy(plugins=[Pages(Page("/page", page, ("POST",), public=True))])
    for excess, status in ((0, 200), (1, 413)):
        body = b"x" * (MAX_PUBLIC_BODY + excess)
        client = await raw()
        if coding == "length":
            await client.send(request_bytes("POST", "/page", body=body))
        else:
            await client.send(request_bytes("POST", "/page", {"Transfer-Encoding": "chunked"}))
            await client.send(chunked(body, 10_000))
        response = await client.response()
        assert response.status == status
    assert [len(each.body) for each in page.requests] == [MAX_PUBLIC_BODY]
    assert proxy.server.status().held_bytes == 0


async def test_oldest_public_body_gives_way(start_proxy: StartProxy, raw: OpenRaw) -> None:
    """Clients that are not authenticated share a sixteenth of the room."""
    page = Recorder()
    proxy = await start_proxy(
        plugins=[Pages(Page("/page", page, ("POST",), public=True))], MAX_HELD_BODIES=1600
    )
    whole = request_bytes("POST", "/page", body=b"x" * 41)
    clients = []
    for held in (40, 80):
        clients.append(await raw())
        await clients[-1].send(whole[:-1])
        while proxy.server.status().held_bytes < held:
            await asyncio.sleep(0)
    third = await raw()
    await third.send(whole)
    assert (await third.response()).status == 200
    assert (await clients[0].response()).status == 529
    await clients[1].send(b"x")
    assert (await clients[1].response()).status == 200
    assert proxy.server.status().held_bytes == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("header", [("Content-Length", "9"), ("Transfer-Encoding", "chunked")])
async def test_get_of_page_takes_no_body(
    method: str, header: tuple[str, str], start_proxy: StartProxy, raw: OpenRaw, *, public: bool
) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/page", page, public=public))])
    response = await ask(raw, "/page", method, [header])
    assert (response.status, response.header("connection")) == (413, "close")
    assert page.requests == []


# -- what looks at the head first


def refuse(_: IncomingRequest) -> None:
    raise AuthenticationFailed("Send the admin key.")


async def refuse_later(request: IncomingRequest) -> None:
    refuse(request)


def fail(_: IncomingRequest) -> None:
    raise KeyError


async def hang(_: IncomingRequest) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize(
    ("admit", "status"),
    [(refuse, 401), (refuse_later, 401), (fail, 500), (lambda _: True, 500), (hang, 503)],
)
async def test_admit_of_page_precedes_its_body(
    admit: Any,  # Any: that is what is tested
    status: int,
    start_proxy: StartProxy,
    raw: OpenRaw,
    *,
    public: bool,
) -> None:
    page = Recorder()
    pages = Pages(Page("/page", page, ("POST",), public=public, admit=admit))
    await start_proxy(plugins=[pages], PLUGIN_TIMEOUT=0.05)
    response = await ask(raw, "/page", "POST", [("Content-Length", "1000000")])
    assert response.status == status
    assert page.requests == []


@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_admitted_body_of_public_page_may_be_large(
    coding: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    asked: list[IncomingRequest] = []
    page = Recorder()
    pages = Pages(Page("/page", page, ("POST",), public=True, admit=asked.append))
    proxy = await start_proxy(plugins=[pages])
    body = b"x" * MAX_PAGE_BODY
    client = await raw()
    if coding == "length":
        await client.send(request_bytes("POST", "/page", body=body))
    else:
        await client.send(request_bytes("POST", "/page", {"Transfer-Encoding": "chunked"}))
        await client.send(chunked(body, 100_000))
    assert (await client.response()).status == 200
    assert [request.body for request in page.requests] == [body]
    assert [request.path for request in asked] == ["/page"]
    assert proxy.server.status().held_bytes == 0


async def test_a_public_page_is_no_way_around_the_strictness_about_paths(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/public/.*", page, public=True))])
    for target in ("/public/../v1/models", "/public//x", "/public/%2e%2e/v1", "/public/a%2Fb"):
        response = await ask(raw, target, token=None)
        assert (response.status, error_of(response, target)["type"]) == (
            400,
            "invalid_request_error",
        )
    assert page.requests == []


# -- methods


@pytest.mark.parametrize(
    ("methods", "method", "allow"),
    [
        (("GET",), "POST", "GET, HEAD"),
        (("GET",), "OPTIONS", "GET, HEAD"),
        (("GET", "POST"), "DELETE", "GET, POST, HEAD"),
        (("POST",), "GET", "POST"),
        (("POST",), "HEAD", "POST"),
    ],
)
async def test_another_method_is_refused(
    methods: tuple[str, ...], method: str, allow: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/page", page, methods))])
    response = await ask(raw, "/page", method)
    assert (response.status, response.header("allow")) == (405, allow)
    assert page.requests == []


async def test_head_is_get_without_the_body(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(plugins=[Pages(Page("/page", Recorder(PageResponse(b"12345"))))])
    response = await ask(raw, "/page", "HEAD")
    assert (response.status, response.header("content-length")) == (200, "5")
    assert response.body == b""
    assert (await records.finished()).bytes_out == 0


async def test_a_status_may_have_no_body(start_proxy: StartProxy, raw: OpenRaw) -> None:
    scripted = PageResponse(b"", status=204)
    await start_proxy(plugins=[Pages(Page("/page", Recorder(scripted), ("DELETE",)))])
    client = await raw()
    request = request_bytes("DELETE", "/page", token=TEST_TOKEN)
    for _ in range(2):
        await client.send(request)
        response = await client.response()
        assert (response.status, response.body, response.all("content-length")) == (204, b"", [])


async def test_a_preflight_is_answered_as_everywhere(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    origin = "https://app.example.com"
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/page", page))], ALLOWED_ORIGINS=origin)
    asked = [("Origin", origin), ("Access-Control-Request-Method", "GET")]
    response = await ask(raw, "/page", "OPTIONS", asked, token=None)
    assert response.status == 204
    assert response.header("access-control-allow-origin") == origin
    assert (page.requests, records.all) == ([], [])
    response = await ask(raw, "/page", headers=[("Origin", origin)])
    assert response.header("access-control-allow-origin") == origin
    assert len(page.requests) == 1


# -- bodies


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_a_body_is_whole_or_refused(
    excess: int, coding: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    page = Recorder()
    proxy = await start_proxy(plugins=[Pages(Page("/page", page, ("POST",)))])
    body = b"x" * (MAX_PAGE_BODY + excess)
    if coding == "length":
        response = await ask(raw, "/page", "POST", body=body)
    else:
        client = await raw()
        headers = [("Transfer-Encoding", "chunked")]
        await client.send(request_bytes("POST", "/page", headers, token=TEST_TOKEN))
        await client.send(chunked(body, 100_000))
        response = await client.response()
    if excess:
        assert response.status == 413
        assert error_of(response, "/page")["type"] == "request_too_large"
        assert page.requests == []
    else:
        assert response.status == 200
        assert page.requests[0].body == body
    assert proxy.server.status().held_bytes == 0


async def test_a_body_that_is_told_to_be_too_large_is_not_read(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(plugins=[Pages(Page("/page", Recorder(), ("POST",)))])
    length = [("Content-Length", str(MAX_PAGE_BODY + 1))]
    assert (await ask(raw, "/page", "POST", length)).status == 413
    assert (await records.finished()).bytes_in == 0


async def test_an_encoded_body_is_refused(start_proxy: StartProxy, raw: OpenRaw) -> None:
    page = Recorder()
    await start_proxy(plugins=[Pages(Page("/page", page, ("POST",)))])
    response = await ask(raw, "/page", "POST", [("Content-Encoding", "gzip")], b"\x1f\x8b")
    assert response.status == 400
    assert "Content-Encoding" in error_of(response, "/page")["message"]
    assert page.requests == []


async def test_what_is_held_counts_with_all_that_is_held(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    page = Page("/page", Recorder(), ("POST",))
    proxy = await start_proxy(plugins=[Pages(page)], MAX_HELD_BODIES=2000)
    first = await raw()
    await first.send(
        request_bytes("POST", "/page", {"Content-Length": "1000"}, b"x" * 999, token=TEST_TOKEN)
    )
    while proxy.server.status().held_bytes < 999:
        await asyncio.sleep(0)
    response = await ask(raw, "/page", "POST", body=b"xx")
    assert (response.status, response.header("retry-after")) == (529, "1")
    await first.send(b"x")
    assert (await first.response()).status == 200
    assert proxy.server.status().held_bytes == 0


# -- failing


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("no", param="limit"), 400),
        (Denied("no", status=429, error_type="billing_error", retry_after=7), 429),
        (ProxyError("no", status=503), 503),
        (Overloaded("no"), {"anthropic": 529, "openai": 503}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_ours_is_answered_in_the_dialect(
    path: str,
    error: ProxyError,
    status: int | dict[str, int],
    is_async: bool,
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
) -> None:
    def serve(request: PageRequest) -> PageResponse:
        raise error

    async def serve_later(request: PageRequest) -> PageResponse:
        await asyncio.sleep(0)
        return serve(request)

    page = Page(path, serve_later if is_async else serve)
    proxy = await start_proxy(plugins=[Pages(page)])
    response = await ask(raw, path)
    expected = status if isinstance(status, int) else status[DIALECTS[path]]
    assert (response.status, error_of(response, path)["message"]) == (expected, "no")
    if error.error_type is not None:
        types = {"anthropic": "billing_error", "openai": "insufficient_quota"}
        assert error_of(response, path)["type"] == types[DIALECTS[path]]
        assert response.header("retry-after") == "7"
    assert (await records.finished()).error is not None
    assert not any(proxy.server.status().plugin_failures.values())


def broken(request: PageRequest) -> PageResponse:
    (secret,) = request.incoming.candidates()
    raise KeyError(secret.reveal().decode() + request.body.decode())


def broken_from(request: PageRequest) -> PageResponse:
    try:
        return broken(request)
    except KeyError as error:
        raise RuntimeError(str(error)) from error


def leaves(request: PageRequest) -> PageResponse:
    raise SystemExit(0)


async def broken_later(request: PageRequest) -> PageResponse:
    await asyncio.sleep(0)
    return broken(request)


async def cancelled(request: PageRequest) -> PageResponse:
    raise asyncio.CancelledError


def no_error(request: PageRequest) -> PageResponse:
    raise ProxyError("a success", status=200)


def nothing(request: PageRequest) -> Any:
    return None


async def text(request: PageRequest) -> Any:
    return "text"


async def never_awaited(request: PageRequest) -> Any:
    return broken_later(request)


def impossible(request: PageRequest) -> PageResponse:
    return PageResponse(b"", headers={"X": "a\r\nSet-Cookie: stolen=1"})


FAILURES: dict[Callable[[PageRequest], PageResponse | Awaitable[PageResponse]], str] = {
    broken: "KeyError",
    broken_from: "RuntimeError",
    broken_later: "KeyError",
    leaves: "SystemExit",
    cancelled: "CancelledError",
    no_error: "ProxyError",
    nothing: "its NoneType is not a PageResponse",
    text: "its str is not a PageResponse",
    never_awaited: "its coroutine is not a PageResponse",
    impossible: "ValueError",
}


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("serve", FAILURES, ids=lambda serve: serve.__name__)
async def test_a_page_that_fails_is_an_error_that_says_nothing(
    path: str,
    serve: Callable[[PageRequest], PageResponse],
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin = Pages(Page(path, serve, ("POST",)), Page("/sound", Recorder()))
    proxy = await start_proxy(plugins={"fragile": plugin})
    response = await ask(raw, path, "POST", body=b"what-nobody-reads")
    assert response.status == 500
    expected = "server_error" if DIALECTS[path] == "openai" else "api_error"
    assert error_of(response, path)["type"] == expected
    assert b"nobody-reads" not in response.body
    record = await records.finished()
    assert (record.outcome, record.status) == ("failed", 500)
    assert "nobody-reads" not in (record.error or "")
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "'fragile'" in logged.getMessage()
    assert FAILURES[serve] in logged.getMessage()
    assert "nobody-reads" not in caplog.text
    assert proxy.server.status().plugin_failures["fragile"] == 1
    assert (await ask(raw, "/sound")).status == 200


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_page_that_takes_too_long_is_unavailable(
    path: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    proxy = await start_proxy(plugins={"slow": Pages(Page(path, gate))}, PLUGIN_TIMEOUT=0.05)
    response = await ask(raw, path)
    assert (response.status, response.header("retry-after")) == (503, "1")
    error_of(response, path)
    assert (await records.finished()).outcome == "failed"
    assert re.search("'slow' failed in pages .*no result within 0.05 s", caplog.text)
    assert proxy.server.status().plugin_failures["slow"] == 1
    assert not gate.answered


async def test_page_that_blocks_is_named_and_unavailable(
    start_proxy: StartProxy, raw: OpenRaw, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(_: PageRequest) -> PageResponse:
        time.sleep(0.1)
        return PageResponse(b"{}")

    await start_proxy(plugins={"slow": Pages(Page("/slow", serve))}, PLUGIN_TIMEOUT=0.05)
    assert (await ask(raw, "/slow")).status == 503
    assert "'slow' failed in pages" in caplog.text
    assert "PLUGIN_TIMEOUT is 0.05" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": "text"},
        {"body": bytearray(b"x")},
        {"status": 199},
        {"status": 600},
        {"status": "200"},
        {"body": b"x", "status": 204},
        {"body": b"x", "status": 304},
        {"content_type": "a\nb"},
        {"headers": {"A b": "c"}},
        {"headers": {"A": "c\r\nd"}},
        {"headers": {"A": "\N{SNOWMAN}"}},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"connection": "close"}},
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_sent_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot|does not allow"):
        PageResponse(**{"body": b"", **wrong})


def test_a_request_shows_neither_query_nor_body() -> None:
    asked = PageRequest(
        incoming=None,  # type: ignore[arg-type]  # it is not looked at
        identity=None,
        query={"key": ("hidden",)},
        arguments=("7",),
        body=b"hidden",
    )
    assert "hidden" not in repr(asked)


# -- leaving, stopping


@pytest.mark.usefixtures("no_errors_logged")
async def test_a_client_may_leave_while_its_page_waits(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    gate = Gate()
    proxy = await start_proxy(plugins=[Pages(Page("/page", gate, ("POST",)))])
    client = await raw()
    await client.send(request_bytes("POST", "/page", body=b"x" * 1000, token=TEST_TOKEN))
    await gate.asked.wait()
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (1, 1000)
    await client.close()
    record = await records.finished()
    assert (record.outcome, record.status) == ("abandoned", None)
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (0, 0)
    gate.may_answer.set()  # what it does may have to be done to the end
    while not gate.answered:
        await asyncio.sleep(0)
    assert (await ask(raw, "/nowhere")).status == 404
    assert len(records.all) == 2


async def test_a_client_may_leave_in_the_middle_of_its_body(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    page = Recorder()
    proxy = await start_proxy(plugins=[Pages(Page("/page", page, ("POST",)))])
    client = await raw()
    await client.send(
        request_bytes("POST", "/page", {"Content-Length": "10"}, b"x" * 9, token=TEST_TOKEN)
    )
    while proxy.server.status().held_bytes < 9:
        await asyncio.sleep(0)
    await client.close()
    assert (await records.finished()).outcome == "abandoned"
    assert proxy.server.status().held_bytes == 0
    assert page.requests == []


async def test_a_page_may_end_while_the_proxy_drains(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    gate = Gate()
    proxy = await start_proxy(plugins=[Pages(Page("/page", gate))], DRAIN_TIMEOUT=15)
    client = await raw()
    await client.send(request_bytes("GET", "/page", token=TEST_TOKEN))
    await gate.asked.wait()
    draining = asyncio.create_task(proxy.server.drain())
    while not proxy.server.status().draining:
        await asyncio.sleep(0)
    gate.may_answer.set()
    response = await client.response()
    assert (response.status, response.body) == (200, b"late")
    await draining
    assert (await records.finished()).outcome == "completed"


@pytest.mark.usefixtures("no_errors_logged")
async def test_a_page_that_does_not_end_is_cut_by_the_drain(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    gate = Gate()
    proxy = await start_proxy(plugins=[Pages(Page("/page", gate))], DRAIN_TIMEOUT=0.05)
    client = await raw()
    await client.send(request_bytes("GET", "/page", token=TEST_TOKEN))
    await gate.asked.wait()
    await proxy.server.drain()
    response = await client.response()
    assert (response.status, response.header("retry-after")) == (503, "1")
    assert (await records.finished()).outcome == "drained"
    gate.may_answer.set()
    for _ in range(10):  # turns of the loop, in which its answer comes to nobody
        await asyncio.sleep(0)
    assert gate.answered
    assert len(records.all) == 1


# -- the figures of the moment


class Watcher:
    """Keeps the function that gives the figures, and what it gave at the start and the end."""

    def __init__(self) -> None:
        self.seen: list[Status] = []
        self.status: Callable[[], Status] | None = None

    @hookimpl
    def startup(self, status: Callable[[], Status]) -> None:
        self.status = status
        self.seen.append(status())

    @hookimpl
    def shutdown(self) -> None:
        assert self.status is not None
        self.seen.append(self.status())


NOTHING = Status(
    in_flight=0,
    waiting=0,
    held_bytes=0,
    client_connections=0,
    upstream_connections=0,
    idle_upstream_connections=0,
    plugin_failures={},
    plugin_refusals={},
    draining=False,
)


async def test_plugins_are_given_the_figures_from_start_to_end(start_proxy: StartProxy) -> None:
    watcher = Watcher()
    proxy = await start_proxy(plugins=[watcher])
    (first,) = watcher.seen
    assert set(first.plugin_failures) == set(first.plugin_refusals) > {"token", "access_log"}
    assert not any((*first.plugin_failures.values(), *first.plugin_refusals.values()))
    assert replace(first, plugin_failures={}, plugin_refusals={}) == NOTHING
    await proxy.server.drain()
    assert watcher.seen[1].draining
    assert watcher.seen[1].client_connections == 0


async def test_the_figures_are_those_of_the_moment(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=15, CLIENT_IDLE_TIMEOUT=60)
    status = proxy.server.status
    go_on = asyncio.Event()
    upstream.script(held_back(go_on))
    first, second = await raw(), await raw()
    size = UNCHARGED_BODY + 1
    request = request_bytes("POST", "/v1/messages", body=bytes(size), token=TEST_TOKEN)
    await first.send(request)
    await upstream.received()
    assert (status().in_flight, status().waiting) == (1, 0)
    assert (status().upstream_connections, status().idle_upstream_connections) == (1, 0)
    assert status().held_bytes == size
    await second.send(request)
    while not status().waiting:
        await asyncio.sleep(0)
    assert (status().in_flight, status().waiting, status().client_connections) == (2, 1, 2)
    go_on.set()
    await first.response()
    await second.response()
    await records.finished(2)
    assert (status().in_flight, status().waiting, status().held_bytes) == (0, 0, 0)
    assert (status().upstream_connections, status().idle_upstream_connections) == (0, 1)
    await first.close()
    await second.close()
    while status().client_connections:
        await asyncio.sleep(0)


async def test_a_connection_that_is_lost_counts_no_more(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(silent_response())
    client = await raw()
    await client.send(request_bytes("POST", "/v1/messages", body=b"{}", token=TEST_TOKEN))
    await upstream.received()
    assert proxy.server.status().upstream_connections == 1
    await client.close()
    await records.finished()
    status = proxy.server.status()
    assert (status.upstream_connections, status.idle_upstream_connections) == (0, 0)


async def test_failures_and_refusals_are_told_by_plugin(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    class Forgetful:
        @hookimpl
        def request_finished(self) -> None:
            raise KeyError

    class Rude:
        @hookimpl(tryfirst=True)
        def authenticate(self, request: IncomingRequest) -> Identity:
            raise KeyError

    proxy = await start_proxy(plugins={"forgetful": Forgetful(), "rude": Rude()})
    assert (await ask(raw, "/v1/models")).status == 503
    await records.finished()
    status = proxy.server.status()
    assert (status.plugin_failures["forgetful"], status.plugin_refusals["rude"]) == (1, 1)
    assert (status.plugin_failures["rude"], status.plugin_refusals["forgetful"]) == (0, 0)


def held_back(go_on: asyncio.Event) -> Any:
    async def response(exchange: Any) -> None:
        await go_on.wait()
        await json_response({})(exchange)

    return response

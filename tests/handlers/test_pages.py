"""Pages of plugins: their paths, who may see them, their responses and their failures."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from served import CHUNKED, anthropic_error, in_chunks, openai_error, request

from tornadoproxy import (
    AuthenticationFailed,
    Denied,
    Page,
    PageRequest,
    PageResponse,
    hookimpl,
)
from tornadoproxy.plugin.pages import MAX_PAGE_BODY, MAX_PUBLIC_BODY
from tornadoproxy.testing import json_response, request_bytes

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy import Identity, IncomingRequest, ModelRequest
    from tornadoproxy.testing import (
        Proxy,
        RawResponse,
    )


class Pages:
    """A plugin with these pages."""

    def __init__(self, *pages: Page) -> None:
        self._pages = pages

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return self._pages


class Recorder:
    """A page that records its requests and returns this response."""

    def __init__(self, response: PageResponse | None = None) -> None:
        self.requests: list[PageRequest] = []
        self._response = response or PageResponse(b"{}")

    def __call__(self, request: PageRequest) -> PageResponse:
        self.requests.append(request)
        return self._response


class Gate:
    """A page that waits until it may respond."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_respond = asyncio.Event()
        self.responded = False

    async def __call__(self, request: PageRequest) -> PageResponse:
        self.asked.set()
        await self.may_respond.wait()
        self.responded = True
        return PageResponse(b"late")


async def held(proxy: Proxy, size: int) -> None:
    """Wait until the proxy holds this many bytes of bodies."""
    while proxy.server.status().held_bytes < size:
        await asyncio.sleep(0)


def message_of(response: RawResponse, path: str, status: int, *types: str) -> str:
    """Check that a response is an error in the path's API format; return its message."""
    if path.startswith("/openai/"):
        return openai_error(response, status, types[-1])
    return anthropic_error(response, status, types[0])


# -- paths and responses


async def test_page_is_served_and_recorded(scene: Scene) -> None:
    scripted = PageResponse(b"up 1\n", "text/plain; charset=utf-8", 201, {"X-Own": "yes"})
    page = Recorder(scripted)
    await scene.start(plugins=[Pages(Page("/figures", page))])
    response = await scene.ask("/figures?a=1&b=%C3%A9&a=2+3&empty=")
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
    record = await scene.records.finished()
    assert response.header("request-id") == record.request_id
    assert (record.principal, record.route, record.status) == ("token", "/figures", 201)
    assert (record.outcome, record.error, record.bytes_out) == ("completed", None, 5)
    assert scene.upstream.requests == []


async def test_page_sets_cache_control_and_openai_request_id(scene: Scene) -> None:
    response = PageResponse(b"logo", headers={"cache-control": "max-age=60"})
    await scene.start(plugins=[Pages(Page("/openai/logo", Recorder(response)))])
    served = await scene.ask("/openai/logo")
    assert served.all("cache-control") == ["max-age=60"]
    assert served.header("x-request-id") == (await scene.records.finished()).request_id


async def test_pattern_passes_decoded_groups(scene: Scene) -> None:
    page = Recorder()
    pattern = r"/people/([^/]+)/limits(?:/(\d+))?"
    await scene.start(plugins=[Pages(Page(pattern, page, ("GET", "POST")))])
    assert (await scene.ask("/people/zo%C3%AB%20x/limits/7")).status == 200
    assert (await scene.ask("/people/ann/limits", body=b'{"a": 1}')).status == 200
    assert (await scene.ask("/people/ann/limits/x")).status == 404
    assert [each.arguments for each in page.requests] == [("zoë x", "7"), ("ann", "")]
    assert [each.body for each in page.requests] == [b"", b'{"a": 1}']
    assert (await scene.records.finished(2)).bytes_in == 8


async def test_page_that_overrides_takes_only_its_path(scene: Scene) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/v1/organizations/limits", page, overrides=True))])
    assert (await scene.ask("/v1/organizations/limits?x=/")).status == 200
    assert scene.upstream.requests == []
    others = [
        *("/v1/organizations/limits/", "/v1/organizations/limit%73", "/v1/Organizations/limits"),
        *("/v1/organizations/limits/1", "/v1/organizations"),
    ]
    scene.upstream.script(*[json_response({}, 418)] * len(others))
    for each in others:
        assert (await scene.ask(each)).status == 418
    assert [each.target for each in scene.upstream.requests] == others
    assert len(page.requests) == 1


async def test_overriding_page_precedes_proxy_and_other_plugins(scene: Scene) -> None:
    one, two, me = (Recorder(PageResponse(body)) for body in (b"1", b"2", b"me"))
    first = Pages(
        Page("/figures", one),
        Page("/f.*", one),
        Page("/people/([^/]+)", one),
        Page("/people/me", me),
    )
    paths = ("/", "/(health|figures)", "/v1/a/.+", "/openai/models")
    second = Pages(*(Page(path, two, overrides=True) for path in paths))
    await scene.start(plugins={"a": first, "b": second})
    for path in ("/", "/health", "/figures", "/v1/a/b", "/openai/models"):
        assert (await scene.ask(path)).body == b"2", path
    assert (await scene.ask("/people/me")).body == b"me"
    assert (await scene.ask("/people/you")).body == b"1"


async def test_pattern_matches_none_of_the_proxys_own_paths(scene: Scene) -> None:
    await scene.start(plugins=[Pages(Page("/[^/]*/figures", Recorder()))])
    assert (await scene.ask("/team/figures")).status == 200
    await scene.ask("/v1/figures")
    assert [each.target for each in scene.upstream.requests] == ["/v1/figures"]


async def test_public_page_is_strict_about_paths(scene: Scene) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/public/.*", page, public=True))])
    for target in ("/public/../v1/models", "/public//x", "/public/%2e%2e/v1", "/public/a%2Fb"):
        anthropic_error(await scene.ask(target, token=None), 400, "invalid_request_error")
    assert page.requests == []


# -- who may see a page


class Authorizer:
    """Records what ``authorize`` is asked; refuses, if told to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.asked: list[tuple[str, str, ModelRequest | None]] = []
        self.refusal = refusal

    @hookimpl
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> None:
        self.asked.append((request.path, identity.principal, model_request))
        if self.refusal is not None:
            raise self.refusal


@pytest.mark.parametrize("path", ["/page", "/openai/page"])
async def test_page_requires_authentication_and_authorization(path: str, scene: Scene) -> None:
    page, authorizer = Recorder(), Authorizer()
    await scene.start(plugins=[Pages(Page(path, page)), authorizer])
    for token in (None, "not-the-token"):
        response = await scene.ask(path, token=token)
        assert (response.status, response.header("www-authenticate")) == (401, "Bearer")
    assert (page.requests, authorizer.asked) == ([], [])
    assert (await scene.records.finished()).principal is None
    assert (await scene.ask(path)).status == 200
    assert authorizer.asked == [(path, "token", None)]
    authorizer.refusal = Denied("This page is not for you.")
    message = message_of(await scene.ask(path), path, 403, "permission_error")
    assert message == "This page is not for you."
    assert len(page.requests) == 1


async def test_public_page_asks_no_plugin(scene: Scene) -> None:
    page, authorizer = Recorder(), Authorizer(Denied("not for you"))
    await scene.start(plugins=[Pages(Page("/page", page, public=True)), authorizer])
    for token in (None, "not-the-token"):
        assert (await scene.ask("/page", token=token)).status == 200
    assert authorizer.asked == []
    assert [each.identity for each in page.requests] == [None] * 2
    (candidate,) = page.requests[1].incoming.candidates()
    assert candidate.reveal() == b"not-the-token"
    assert (await scene.records.finished(2)).principal is None


def refuse(_: object) -> Any:
    raise AuthenticationFailed("Send the admin key.")


async def refuse_later(_: object) -> Any:
    refuse(_)


async def hang(_: object) -> Any:
    await asyncio.Event().wait()


def broken(_: object) -> Any:
    raise KeyError("what-nobody-reads")


@pytest.mark.parametrize(
    ("admit", "status", "public"),
    [
        *((refuse, 401, True), (refuse, 401, False), (refuse_later, 401, True)),
        *((broken, 500, True), (lambda _: True, 500, True), (hang, 503, True)),
    ],
)
async def test_page_admit_precedes_body(
    admit: Any, status: int, scene: Scene, *, public: bool
) -> None:
    page = Recorder()
    pages = Pages(Page("/page", page, ("POST",), public=public, admit=admit))
    await scene.start(plugins=[pages], PLUGIN_TIMEOUT=0.05)
    response = await scene.ask("/page", method="POST", headers=[("Content-Length", "1000000")])
    assert response.status == status
    assert page.requests == []


# -- methods


@pytest.mark.parametrize(
    ("methods", "method", "allow"),
    [
        (("GET",), "OPTIONS", "GET, HEAD"),
        (("GET", "POST"), "DELETE", "GET, POST, HEAD"),
        (("POST",), "HEAD", "POST"),
    ],
)
async def test_other_method_is_405(
    methods: tuple[str, ...], method: str, allow: str, scene: Scene
) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/page", page, methods))])
    response = await scene.ask("/page", method=method)
    assert (response.status, response.header("allow")) == (405, allow)
    assert page.requests == []


async def test_head_and_204_have_no_body(scene: Scene) -> None:
    pages = Pages(
        Page("/page", Recorder(PageResponse(b"12345"))),
        Page("/gone", Recorder(PageResponse(b"", status=204)), ("DELETE",)),
    )
    await scene.start(plugins=[pages])
    client = await scene.raw()
    response = await client.ask(request("HEAD", "/page"), to_head=True)
    assert (response.status, response.header("content-length"), response.body) == (200, "5", b"")
    assert (await scene.records.finished()).bytes_out == 0
    for _ in range(2):
        response = await client.ask(request("DELETE", "/gone"))
        assert (response.status, response.body, response.all("content-length")) == (204, b"", [])


async def test_preflight_of_page_is_answered_by_proxy(scene: Scene) -> None:
    origin = ("Origin", "https://app.example.com")
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/page", page))], ALLOWED_ORIGINS=origin[1])
    asked = [origin, ("Access-Control-Request-Method", "GET")]
    response = await scene.ask("/page", method="OPTIONS", headers=asked, token=None)
    assert response.status == 204
    assert response.header("access-control-allow-origin") == origin[1]
    assert (page.requests, scene.records.all) == ([], [])
    response = await scene.ask("/page", headers=[origin])
    assert response.header("access-control-allow-origin") == origin[1]
    assert len(page.requests) == 1


# -- bodies


@pytest.mark.parametrize(
    ("method", "header", "public"),
    [
        ("GET", ("Content-Length", "9"), False),
        ("GET", CHUNKED, True),
        ("HEAD", ("Content-Length", "9"), True),
        ("HEAD", CHUNKED, False),
    ],
)
async def test_get_of_page_takes_no_body(
    method: str, header: tuple[str, str], scene: Scene, *, public: bool
) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/page", page, public=public))])
    response = await scene.ask("/page", method=method, headers=[header])
    assert (response.status, response.header("connection")) == (413, "close")
    assert page.requests == []


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        (MAX_PAGE_BODY, {}),
        (MAX_PUBLIC_BODY, {"public": True}),
        (MAX_PAGE_BODY, {"public": True, "admit": lambda _: None}),
    ],
    ids=["private", "public", "admitted"],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_limit_is_413(
    limit: int, options: Any, scene: Scene, *, chunked: bool
) -> None:
    page = Recorder()
    proxy = await scene.start(plugins=[Pages(Page("/page", page, ("POST",), **options))])
    for size in (limit, limit + 1):
        body = b"x" * size
        if chunked:
            data = request("POST", "/page", CHUNKED) + in_chunks(body, 100_000)
        else:
            data = request("POST", "/page", body=body)
        response = await scene.ask(data)
        if size == limit:
            assert response.status == 200
        else:
            anthropic_error(response, 413, "request_too_large")
    assert [len(each.body) for each in page.requests] == [limit]
    assert chunked or (await scene.records.finished(2)).bytes_in == 0, "refused by its length"
    assert proxy.server.status().held_bytes == 0


async def test_encoded_body_is_400(scene: Scene) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/page", page, ("POST",)))])
    response = await scene.ask("/page", headers=[("Content-Encoding", "gzip")], body=b"\x1f\x8b")
    assert "Content-Encoding" in anthropic_error(response, 400, "invalid_request_error")
    assert page.requests == []


async def test_body_of_page_is_charged_to_its_principal(scene: Scene) -> None:
    page = Page("/page", Recorder(), ("POST",))
    proxy = await scene.start(plugins=[Pages(page)], MAX_HELD_BODIES=2000)
    first = await scene.raw()
    await first.send(request("POST", "/page", body=b"x" * 1000)[:-1])
    await held(proxy, 999)
    response = await scene.ask("/page", body=b"xx")
    assert (response.status, response.header("retry-after")) == (529, "1")
    await first.send(b"x" + request("GET", "/v1/models"))
    assert (await first.response()).status == 200
    assert proxy.server.status().held_bytes == 0
    assert json.loads((await first.response()).body)["data"], "the connection is usable"


async def test_oldest_public_body_gives_way(scene: Scene) -> None:
    """Unauthenticated clients share a sixteenth of the budget."""
    pages = Pages(Page("/page", Recorder(), ("POST",), public=True))
    proxy = await scene.start(plugins=[pages], MAX_HELD_BODIES=1600)
    whole = request_bytes("POST", "/page", body=b"x" * 41)
    clients = []
    for size in (40, 80):
        clients.append(await scene.raw())
        await clients[-1].send(whole[:-1])
        await held(proxy, size)
    third = await scene.raw()
    assert (await third.ask(whole)).status == 200
    assert (await clients[0].response()).status == 529
    await clients[1].send(b"x")
    assert (await clients[1].response()).status == 200
    assert proxy.server.status().held_bytes == 0

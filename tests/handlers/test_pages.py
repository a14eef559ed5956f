"""Pages of plugins: their paths, who may see them, their bodies, responses and failures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from scene import Scene
from served import CHUNKED, Authorizer, anthropic_error, held, in_chunks, openai_error, request

from tornadoproxy import (
    AuthenticationFailed,
    Denied,
    Identity,
    InvalidRequest,
    Page,
    PageRequest,
    PageResponse,
    ProxyError,
    hookimpl,
)
from tornadoproxy.errors import Overloaded
from tornadoproxy.plugin.web.pages import MAX_PAGE_BODY, MAX_PUBLIC_BODY, PageFinder
from tornadoproxy.testing import request_bytes


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


def raising(error: BaseException) -> Callable[[object], Any]:
    """Return a page's function that fails."""

    def function(_: object) -> Any:
        raise error

    return function


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
    assert asked.identity == Identity("token")
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


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/v1/limits", "/v1/limits"),
        *((f"/v1/{path}", None) for path in ("limits/", "limit%73", "Limits", "limits/1", "limit")),
        ("/figures", "/(r|figures)"),  # an overriding page precedes those of other plugins
        ("/flags", "/f.*"),
        ("/people/me", "/people/me"),  # a literal path precedes a pattern
        ("/people/you", "/people/([^/]+)"),
        ("/team/figures", "/[^/]*/figures"),
        ("/v1/figures", None),  # a path of the proxy's own
    ],
)
def test_path_finds_its_page(path: str, page: str | None) -> None:
    pages = [
        *(("b", Page(each, Recorder(), overrides=True)) for each in ("/v1/limits", "/(r|figures)")),
        *(("a", Page(each, Recorder())) for each in ("/figures", "/f.*", "/[^/]*/figures")),
        *(("a", Page(each, Recorder())) for each in ("/people/([^/]+)", "/people/me")),
    ]
    found = PageFinder(pages).find(path)
    assert (found and found.page.path) == page


async def test_overriding_page_precedes_the_proxys_own(scene: Scene) -> None:
    pages = [Page(path, Recorder(), overrides=True) for path in ("/(health|x)", "/openai/models")]
    other = Recorder(PageResponse(b"other"))
    await scene.start(plugins={"a": Pages(Page("/x", other)), "b": Pages(*pages)})
    for path in ("/health", "/x", "/openai/models"):
        assert (await scene.ask(path)).body == b"{}", path
    assert scene.upstream.connections == 0


async def test_public_page_is_strict_about_paths(scene: Scene) -> None:
    page = Recorder()
    await scene.start(plugins=[Pages(Page("/public/.*", page, public=True))])
    for target in ("/public/../v1/models", "/public/a%2Fb"):
        anthropic_error(await scene.ask(target, token=None), 400, "invalid_request_error")
    assert page.requests == []


@pytest.mark.parametrize(
    ("path", "method", "line", "status"),
    [
        ("/page", "DELETE", None, 405),
        ("/form", "HEAD", None, 405),
        ("/page", "GET", ("Content-Length", "9"), 413),
        ("/page", "HEAD", CHUNKED, 413),
        ("/form", "POST", ("Content-Encoding", "gzip"), 400),
    ],
)
async def test_method_or_body_that_page_does_not_take_is_refused(
    path: str, method: str, line: tuple[str, str] | None, status: int, scene: Scene
) -> None:
    methods = {"/page": ("GET", "POST"), "/form": ("POST",)}
    allow = {"/page": "GET, POST, HEAD", "/form": "POST"}[path] if status == 405 else None
    page = Recorder()
    pages = [Page(each, page, methods[each], public=True) for each in methods]
    await scene.start(plugins=[Pages(*pages)])
    response = await scene.ask(path, method=method, headers=[line] if line else [])
    assert (response.status, response.header("allow")) == (status, allow)
    assert response.header("connection") == ("close" if status == 413 else None)
    assert page.requests == []


async def test_head_and_204_have_no_body(scene: Scene) -> None:
    gone = PageResponse(b"", status=204)
    pages = [
        Page("/page", Recorder(PageResponse(b"12345"))),
        Page("/gone", Recorder(gone), ("DELETE",)),
    ]
    await scene.start(plugins=[Pages(*pages)])
    client = await scene.raw()
    response = await client.ask(request("HEAD", "/page"), to_head=True)
    assert (response.status, response.header("content-length"), response.body) == (200, "5", b"")
    assert (await scene.records.finished()).bytes_out == 0
    for _ in range(2):
        response = await client.ask(request("DELETE", "/gone"))
        assert (response.status, response.body, response.all("content-length")) == (204, b"", [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": "text"},
        {"status": 199},
        {"status": 600},
        {"body": b"x", "status": 204},
        {"body": b"x", "status": 304},
        {"content_type": "a\nb"},
        {"headers": {"A b": "c"}},
        {"headers": {"A": "\N{SNOWMAN}"}},
        {"headers": {"Content-Length": "5"}},
    ],
    ids=str,
)
def test_page_response_that_cannot_be_sent_is_invalid(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot|does not allow"):
        PageResponse(**{"body": b"", **wrong})


# -- who may see a page


async def test_page_requires_authentication_and_authorization(scene: Scene) -> None:
    page, authorizer = Recorder(), Authorizer()
    pages = Pages(Page("/page", page))
    await scene.start(plugins=[pages, authorizer])
    assert (await scene.ask("/page", token="not-the-token")).status == 401
    assert (page.requests, authorizer.asked) == ([], [])
    assert (await scene.ask("/page")).status == 200
    ((incoming, identity, model_request),) = authorizer.asked
    assert (incoming.path, identity.principal, model_request) == ("/page", "token", None)
    await scene.start(plugins=[pages, Authorizer(raising(Denied("This page is not for you.")))])
    message = anthropic_error(await scene.ask("/page"), 403, "permission_error")
    assert message == "This page is not for you."
    assert len(page.requests) == 1


async def test_public_page_asks_no_plugin(scene: Scene) -> None:
    page, authorizer = Recorder(), Authorizer(raising(Denied("not for you")))
    await scene.start(plugins=[Pages(Page("/page", page, public=True)), authorizer])
    for token in (None, "not-the-token"):
        assert (await scene.ask("/page", token=token)).status == 200
    assert authorizer.asked == []
    assert [each.identity for each in page.requests] == [None] * 2
    (candidate,) = page.requests[1].incoming.candidates()
    assert candidate.reveal() == b"not-the-token"
    assert (await scene.records.finished(2)).principal is None


REFUSED = AuthenticationFailed("Send the admin key.")


async def refuse_later(_: object) -> Any:
    raise REFUSED


async def hang(_: object) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("admit", "status", "public"),
    [
        *((raising(REFUSED), 401, public) for public in (True, False)),
        (refuse_later, 401, True),
        *((lambda _: True, 500, True), (hang, 503, True)),
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


# -- bodies


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
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = b"x" * size
        whole = request("POST", "/page", body=body)
        in_pieces = request("POST", "/page", CHUNKED) + in_chunks(body, 100_000)
        assert (await scene.ask(in_pieces if chunked else whole)).status == status
    assert [len(each.body) for each in page.requests] == [limit]
    assert chunked or (await scene.records.finished(2)).bytes_in == 0, "refused by its length"
    assert proxy.server.status().held_bytes == 0


async def test_body_of_page_is_charged_to_its_principal(scene: Scene) -> None:
    page = Page("/page", Recorder(), ("POST",))
    proxy = await scene.start(plugins=[Pages(page)], MAX_HELD_BODIES=2000)
    first = await scene.send(request("POST", "/page", body=b"x" * 1000)[:-1])
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


# -- failures


async def test_proxy_error_of_page_is_in_the_paths_api_format(scene: Scene) -> None:
    pages = Pages(
        Page("/page", raising(Overloaded("The page is busy.")), public=True),
        Page("/openai/page", raising(InvalidRequest("The page is wrong."))),
    )
    proxy = await scene.start(plugins=[pages])
    message = anthropic_error(await scene.ask("/page"), 529, "overloaded_error")
    assert message == "The page is busy."
    assert openai_error(await scene.ask("/openai/page"), 400) == "The page is wrong."
    assert (await scene.records.finished(2)).error is not None
    assert not any(proxy.server.status().plugin_failures.values())


async def broken(request: PageRequest) -> PageResponse:
    (secret,) = request.incoming.candidates()
    raise KeyError(secret.reveal().decode() + request.body.decode())


async def never_awaited(request: PageRequest) -> Any:
    return broken(request)


@pytest.mark.parametrize(
    ("serve", "fault"),
    [
        (broken, "KeyError"),
        (raising(SystemExit(0)), "SystemExit"),
        (raising(ProxyError("a success", status=200)), "ProxyError"),
        (lambda _: None, "its NoneType is not a PageResponse"),
        (never_awaited, "its coroutine is not a PageResponse"),
    ],
)
async def test_failed_page_is_500_without_details(
    serve: Any, fault: str, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Pages(Page("/page", serve, ("POST",)), Page("/sound", Recorder()))
    proxy = await scene.start(plugins={"fragile": plugin})
    response = await scene.ask("/page", body=b"what-nobody-reads")
    anthropic_error(response, 500, "api_error")
    assert b"nobody-reads" not in response.body
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("failed", 500)
    assert "nobody-reads" not in (record.error or "")
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert f"plugin 'fragile' failed in pages (1 so far): {fault}" in logged.getMessage()
    assert "nobody-reads" not in caplog.text
    assert proxy.server.status().plugin_failures["fragile"] == 1
    assert (await scene.ask("/sound")).status == 200


async def test_slow_page_is_503(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def block(_: PageRequest) -> PageResponse:
        time.sleep(0.06)
        return PageResponse(b"{}")

    pages = {"slow": Pages(Page("/openai/slow", hang)), "block": Pages(Page("/block", block))}
    proxy = await scene.start(plugins=pages, PLUGIN_TIMEOUT=0.05)
    response = await scene.ask("/openai/slow")
    assert "too long" in openai_error(response, 503, "server_error")
    assert response.header("retry-after") == "1"
    assert "too long" in anthropic_error(await scene.ask("/block"), 503, "overloaded_error")
    assert (await scene.records.finished(2)).outcome == "failed"
    assert "'slow' failed in pages (1 so far): no result within 0.05 s" in caplog.text
    assert "'block' failed in pages (1 so far): it blocked the event loop for " in caplog.text
    failures = proxy.server.status().plugin_failures
    assert (failures["slow"], failures["block"]) == (1, 1)


def test_page_request_shows_neither_query_nor_body() -> None:
    incoming: Any = None  # not used
    asked = PageRequest(incoming, None, {"key": ("hidden",)}, ("7",), b"hidden")
    assert "hidden" not in repr(asked)


@pytest.mark.usefixtures("no_errors_logged")
async def test_disconnect_releases_body_and_lets_page_finish(scene: Scene) -> None:
    asked, may_respond, responded = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(_: PageRequest) -> PageResponse:
        asked.set()
        await may_respond.wait()
        responded.set()
        return PageResponse(b"late")

    proxy = await scene.start(plugins=[Pages(Page("/page", serve, ("POST",)))])
    client = await scene.send(request("POST", "/page", body=b"x" * 1000))
    await asked.wait()
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (1, 1000)
    await client.close()
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("abandoned", None)
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (0, 0)
    may_respond.set()
    await responded.wait()
    assert (await scene.ask("/nowhere")).status == 404
    assert len(scene.records.all) == 2

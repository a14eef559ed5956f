"""Pages of plugins that fail, time out, or outlive their client or the proxy."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from served import anthropic_error, openai_error, request
from test_pages import Gate, Pages, Recorder, held, message_of

from tornadoproxy import (
    Denied,
    InvalidRequest,
    Page,
    PageRequest,
    PageResponse,
    ProxyError,
)
from tornadoproxy.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from scene import Scene


QUOTA = Denied("The page is busy.", status=429, error_type="billing_error", retry_after=7)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest("The page is busy."), ((400, "invalid_request_error"),) * 2),
        (QUOTA, ((429, "billing_error"), (429, "insufficient_quota"))),
        (
            ProxyError("The page is busy.", status=503),
            ((503, "overloaded_error"), (503, "server_error")),
        ),
        (Overloaded("The page is busy."), ((529, "overloaded_error"), (503, "server_error"))),
    ],
    ids=["invalid", "denied", "error", "overloaded"],
)
async def test_proxy_error_of_page_is_in_the_paths_api_format(
    error: ProxyError, expected: tuple[tuple[int, str], tuple[int, str]], scene: Scene
) -> None:
    def serve(_: PageRequest) -> PageResponse:
        raise error

    async def serve_later(_: PageRequest) -> PageResponse:
        await asyncio.sleep(0)
        raise error

    pages = Pages(Page("/page", serve, public=True), Page("/openai/page", serve_later))
    proxy = await scene.start(plugins=[pages])
    (status, error_type), (openai_status, openai_type) = expected
    response = await scene.ask("/page")
    assert anthropic_error(response, status, error_type) == "The page is busy."
    other = await scene.ask("/openai/page")
    code = "insufficient_quota" if error is QUOTA else None
    assert openai_error(other, openai_status, openai_type, code=code) == "The page is busy."
    assert error is not QUOTA or response.header("retry-after") == "7"
    assert (await scene.records.finished(2)).error is not None
    assert not any(proxy.server.status().plugin_failures.values())


def broken(request: PageRequest) -> PageResponse:
    (secret,) = request.incoming.candidates()
    raise KeyError(secret.reveal().decode() + request.body.decode())


def broken_from(request: PageRequest) -> PageResponse:
    try:
        return broken(request)
    except KeyError as error:
        raise RuntimeError(str(error)) from error


async def broken_later(request: PageRequest) -> PageResponse:
    await asyncio.sleep(0)
    return broken(request)


def exits(_: PageRequest) -> PageResponse:
    raise SystemExit(0)


async def cancelled(_: PageRequest) -> PageResponse:
    raise asyncio.CancelledError


def no_error(_: PageRequest) -> PageResponse:
    raise ProxyError("a success", status=200)


def nothing(_: PageRequest) -> Any:
    return None


async def never_awaited(request: PageRequest) -> Any:
    return broken_later(request)


def invalid(_: PageRequest) -> PageResponse:
    return PageResponse(b"", headers={"X": "a\r\nSet-Cookie: stolen=1"})


FAILURES: dict[Callable[[PageRequest], Any], str] = {
    broken: "KeyError",
    broken_from: "RuntimeError",
    broken_later: "KeyError",
    exits: "SystemExit",
    cancelled: "CancelledError",
    no_error: "ProxyError",
    nothing: "its NoneType is not a PageResponse",
    never_awaited: "its coroutine is not a PageResponse",
    invalid: "ValueError",
}


@pytest.mark.parametrize("serve", FAILURES, ids=lambda serve: serve.__name__)
async def test_failed_page_is_500_without_details(
    serve: Callable[[PageRequest], PageResponse], scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/openai/page" if serve is nothing else "/page"
    plugin = Pages(Page(path, serve, ("POST",)), Page("/sound", Recorder()))
    proxy = await scene.start(plugins={"fragile": plugin})
    response = await scene.ask(path, body=b"what-nobody-reads")
    message_of(response, path, 500, "api_error", "server_error")
    assert b"nobody-reads" not in response.body
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("failed", 500)
    assert "nobody-reads" not in (record.error or "")
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert f"plugin 'fragile' failed in pages (1 so far): {FAILURES[serve]}" in logged.getMessage()
    assert "nobody-reads" not in caplog.text
    assert proxy.server.status().plugin_failures["fragile"] == 1
    assert (await scene.ask("/sound")).status == 200


async def test_slow_page_is_503(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def block(_: PageRequest) -> PageResponse:
        time.sleep(0.06)
        return PageResponse(b"{}")

    gate = Gate()
    pages = {"slow": Pages(Page("/openai/slow", gate)), "block": Pages(Page("/block", block))}
    proxy = await scene.start(plugins=pages, PLUGIN_TIMEOUT=0.05)
    response = await scene.ask("/openai/slow")
    assert "too long" in openai_error(response, 503, "server_error")
    assert response.header("retry-after") == "1"
    assert "too long" in anthropic_error(await scene.ask("/block"), 503, "overloaded_error")
    await scene.records.finished(2)
    assert [record.outcome for record in scene.records.all] == ["failed"] * 2
    assert "'slow' failed in pages (1 so far): no result within 0.05 s" in caplog.text
    assert "'block' failed in pages (1 so far): it blocked the event loop for " in caplog.text
    failures = proxy.server.status().plugin_failures
    assert (failures["slow"], failures["block"]) == (1, 1)
    assert not gate.responded


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
def test_page_response_that_cannot_be_sent_is_invalid(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot|does not allow"):
        PageResponse(**{"body": b"", **wrong})


def test_page_request_shows_neither_query_nor_body() -> None:
    asked = PageRequest(
        incoming=None,  # type: ignore[arg-type]  # not used
        identity=None,
        query={"key": ("hidden",)},
        arguments=("7",),
        body=b"hidden",
    )
    assert "hidden" not in repr(asked)


# -- disconnects and the drain


@pytest.mark.usefixtures("no_errors_logged")
async def test_disconnect_releases_body_and_lets_page_finish(scene: Scene) -> None:
    gate = Gate()
    proxy = await scene.start(plugins=[Pages(Page("/page", gate, ("POST",)))])
    client = await scene.raw()
    await client.send(request("POST", "/page", body=b"x" * 1000))
    await gate.asked.wait()
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (1, 1000)
    await client.close()
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("abandoned", None)
    status = proxy.server.status()
    assert (status.in_flight, status.held_bytes) == (0, 0)
    gate.may_respond.set()
    while not gate.responded:
        await asyncio.sleep(0)
    assert (await scene.ask("/nowhere")).status == 404
    assert len(scene.records.all) == 2


async def test_disconnect_within_body_never_calls_page(scene: Scene) -> None:
    page = Recorder()
    proxy = await scene.start(plugins=[Pages(Page("/page", page, ("POST",)))])
    client = await scene.raw()
    await client.send(request("POST", "/page", body=b"x" * 10)[:-1])
    await held(proxy, 9)
    await client.close()
    assert (await scene.records.finished()).outcome == "abandoned"
    assert proxy.server.status().held_bytes == 0
    assert page.requests == []


@pytest.mark.usefixtures("no_errors_logged")
@pytest.mark.parametrize("in_time", [True, False])
async def test_drain_waits_for_page_until_its_timeout(scene: Scene, *, in_time: bool) -> None:
    gate = Gate()
    plugins = [Pages(Page("/page", gate))]
    proxy = await scene.start(plugins=plugins, DRAIN_TIMEOUT=15 if in_time else 0.05)
    client = await scene.raw()
    await client.send(request("GET", "/page"))
    await gate.asked.wait()
    draining = asyncio.create_task(proxy.server.drain())
    if in_time:
        while not proxy.server.status().draining:
            await asyncio.sleep(0)
        gate.may_respond.set()
    response = await client.response()
    await draining
    record = await scene.records.finished()
    if in_time:
        assert (response.status, response.body, record.outcome) == (200, b"late", "completed")
        return
    assert (response.status, response.header("retry-after")) == (503, "1")
    assert record.outcome == "drained"
    gate.may_respond.set()
    while not gate.responded:
        await asyncio.sleep(0)
    assert len(scene.records.all) == 1, "the late response is discarded"

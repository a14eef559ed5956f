"""The deciding hooks: who is asked, which results count, and how failures are refused."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
import traceback
from functools import partial
from typing import Any

import pytest
from doubles import (
    CANARY,
    RECORD,
    REQUEST,
    Authenticator,
    Awaited,
    Plugin,
    ask,
    plugins_of,
    with_timeout,
)

from tornadoproxy import (
    AuthenticationFailed,
    Denied,
    Identity,
    IncomingRequest,
    Permit,
    RequestRecord,
    hookimpl,
)
from tornadoproxy.errors import ClientError, Overloaded, PluginFailed
from tornadoproxy.plugin.decisions import Permits
from tornadoproxy.plugin.manager import Plugins

ME = Identity("me", groups=("x",))
sync_and_async = pytest.mark.parametrize("awaited", [False, True, "future"])


# -- results that count


@sync_and_async
async def test_first_identity_counts_unchanged(*, awaited: Awaited) -> None:
    class Employee(Identity, frozen=True):
        desk: int = 0

    me = Employee("me", desk=7)
    asked = [Authenticator(), Authenticator(awaited=awaited), Authenticator(me, awaited=awaited)]
    other = Authenticator(ME)
    plugins = plugins_of(a=asked[0], b=asked[1], c=asked[2], d=other)
    assert await ask(plugins) is me
    assert [each.asked for each in asked] == [1, 1, 1]
    assert other.asked == 0


async def test_plugin_may_return_future_and_take_no_argument() -> None:
    def authenticate() -> asyncio.Future[Identity]:
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, ME)
        return future

    assert await ask(plugins_of(a=Plugin(authenticate=authenticate))) == ME


@sync_and_async
async def test_request_without_identity_is_401(*, awaited: Awaited) -> None:
    with pytest.raises(AuthenticationFailed, match="The credential sent is not known here"):
        await ask(plugins_of(a=Authenticator(awaited=awaited)))


@sync_and_async
@pytest.mark.parametrize(
    "refused", [AuthenticationFailed("bad"), Denied("no", status=400), Denied("no", status=599)]
)
async def test_refusal_is_final(refused: ClientError, *, awaited: Awaited) -> None:
    second = Authenticator(ME)
    with pytest.raises(type(refused)) as caught:
        await ask(plugins_of(a=Authenticator(refused, awaited=awaited), b=second))
    assert caught.value is refused
    assert second.asked == 0


# -- results that fail


async def fails_closed(plugin: object, caplog: pytest.LogCaptureFixture, limit: float = 9) -> str:
    """Ask a plugin that fails, with this timeout; return the message that is logged."""
    second = Authenticator(ME)
    plugins = with_timeout(plugins_of(faulty=plugin, z=second), limit)
    with pytest.raises(PluginFailed) as caught:
        await ask(plugins)
    gc.collect(1)  # an exception that nothing retrieved is logged by now
    assert second.asked == 0
    assert plugins.refusals == {"faulty": 1}
    failure = caught.value
    assert (failure.status, failure.retry_after, failure.__context__) == (503, 1, None)
    assert failure.message == "Authentication is temporarily unavailable: try again."
    assert CANARY not in "".join(traceback.format_exception(failure))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert CANARY not in caplog.text
    message = record.getMessage()
    start = "plugin 'faulty' failed in authenticate, request refused (1 so far): "
    assert message.startswith(start)
    return message.removeprefix(start)


make: Any = Identity  # as careless as a plugin


@sync_and_async
@pytest.mark.parametrize(
    ("result", "said"),
    [
        (CANARY, "its str is neither None nor an Identity with a principal"),
        (Identity, "its StructMeta is neither None nor an Identity with a principal"),
        (make(""), "its Identity's principal must be a non-empty str"),
        (make(b"x"), "its Identity's principal must be a non-empty str"),
        (make("x", anonymous=CANARY), "its Identity's anonymous must be a bool, not a str"),
        (make("x", groups=[CANARY]), "its Identity's groups must be a tuple of str, not a list"),
        (make("x", groups=(CANARY, 7)), "its Identity's groups must be non-empty str"),
        (make("x", groups=(CANARY, "")), "its Identity's groups must be non-empty str"),
        (
            make("x", admin_access=CANARY),
            "its Identity's admin_access must be 'write', 'read' or None",
        ),
        (KeyError(CANARY), "KeyError"),
        (ExceptionGroup(CANARY, [ValueError(CANARY)]), "ExceptionGroup"),
        (Overloaded(CANARY), "Overloaded"),
        (Denied(CANARY, status=399), "Denied"),
        (Denied(CANARY, status=600), "Denied"),
        (asyncio.CancelledError(CANARY), "CancelledError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_invalid_result_or_exception_fails_closed(
    result: object, said: str, caplog: pytest.LogCaptureFixture, *, awaited: Awaited
) -> None:
    assert await fails_closed(Authenticator(result, awaited=awaited), caplog) == said


@pytest.mark.parametrize("explicit", [True, False])
async def test_exception_is_logged_with_its_place_and_cause(
    caplog: pytest.LogCaptureFixture, *, explicit: bool
) -> None:
    def authenticate(request: IncomingRequest) -> None:
        try:
            request.headers[CANARY]
        except KeyError as error:
            error.add_note(CANARY)
            raise RuntimeError(CANARY) from (error if explicit else None)

    assert await fails_closed(Plugin(authenticate=authenticate), caplog) == "RuntimeError"
    assert "raise RuntimeError(CANARY) from" in caplog.text
    assert "KeyError" in caplog.text


# -- deadlines


class Hangs:
    """Waits for ever; once it is cancelled it raises `last_words` or returns an identity."""

    def __init__(self, last_words: BaseException | None = None) -> None:
        self.last_words = last_words
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Identity:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            if self.last_words:
                raise self.last_words from None
        return ME


@pytest.mark.parametrize(
    "last_words",
    [asyncio.CancelledError(), None, ValueError(CANARY), AuthenticationFailed("late")],
    ids=["hangs", "swallows", "raises", "refuses"],
)
async def test_late_result_is_cancelled_and_fails_closed(
    last_words: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Hangs(last_words)
    assert await fails_closed(plugin, caplog, limit=0.02) == "no result within 0.02 s"
    await plugin.cancelled.wait()


async def test_late_future_is_cancelled_and_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    future = asyncio.get_running_loop().create_future()
    plugin = Plugin(authenticate=lambda: future)
    assert await fails_closed(plugin, caplog, limit=0.02) == "no result within 0.02 s"
    assert future.cancelled()


async def test_deadline_is_each_plugins_own() -> None:
    slow = Plugin(authenticate=lambda: asyncio.sleep(0.12))
    other = Plugin(authenticate=lambda: asyncio.sleep(0.12))
    plugins = plugins_of(a=slow, b=other, c=Authenticator(ME))
    assert await ask(with_timeout(plugins, 0.2)) == ME
    with pytest.raises(PluginFailed):
        await ask(with_timeout(plugins, 0.05))
    assert plugins.refusals == {"a": 1}


BLOCKED = r"it blocked the event loop for 0\.\d+ s, PLUGIN_TIMEOUT is 0\.02"


@pytest.mark.parametrize(
    ("result", "awaited", "said"),
    [
        (ME, False, BLOCKED),
        (None, False, BLOCKED),
        (Denied("no"), False, BLOCKED),
        (ME, True, r"no result within 0\.02 s"),
        (ME, "future", r"no result within 0\.02 s"),
    ],
)
async def test_blocking_plugin_fails_closed(
    result: object, said: str, caplog: pytest.LogCaptureFixture, *, awaited: Awaited
) -> None:
    plugin = Authenticator(result, awaited=awaited, seconds=0.03)
    assert re.fullmatch(said, await fails_closed(plugin, caplog, limit=0.02))


async def test_result_in_time_counts_though_another_blocked() -> None:
    plugins = with_timeout(plugins_of(quick=Authenticator(ME, awaited=True)), 0.02)
    asyncio.get_running_loop().call_soon(time.sleep, 0.03)
    assert await ask(plugins) == ME


async def test_cancelled_request_cancels_plugin() -> None:
    plugin = Hangs(asyncio.CancelledError())
    plugins = plugins_of(a=plugin)
    waiting = asyncio.ensure_future(ask(plugins))
    await plugin.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await plugin.cancelled.wait()
    assert plugins.refusals == {}


# -- permits


async def authorize(plugins: Plugins, permits: Permits) -> None:
    waiting = plugins.authorize(REQUEST, ME, None, permits)
    if waiting is not None:
        await waiting


def authorizers(*results: object, awaited: Awaited, seconds: float = 0) -> Plugins:
    """Return plugins that authorize with these results, and one that authenticates."""

    def authorizer(result: object) -> Plugin:
        plugin = Authenticator(result, awaited=awaited, seconds=seconds)
        return Plugin(authorize=lambda: plugin.authenticate(REQUEST))

    named = {f"a{number}": authorizer(result) for number, result in enumerate(results)}
    return plugins_of(z=Authenticator(), **named)


@sync_and_async
async def test_permits_of_all_authorizers_are_settled_once(*, awaited: Awaited) -> None:
    settled: list[RequestRecord] = []
    permit = Permit(settle=settled.append, withheld_headers=("x-a",))
    plugins = authorizers(permit, None, permit, Permit(withheld_headers=("x-b",)), awaited=awaited)
    permits = Permits(plugins.teller.tell)
    await authorize(plugins, permits)
    assert settled == []
    for _ in range(2):
        permits.settle(RECORD)
    assert settled == [RECORD, RECORD]
    assert permits.withheld_headers == ("x-a", "x-a", "x-b")


@sync_and_async
async def test_invalid_authorization_fails_closed(
    caplog: pytest.LogCaptureFixture, *, awaited: Awaited
) -> None:
    settled: list[RequestRecord] = []
    plugins = authorizers(Permit(settle=settled.append), True, awaited=awaited)
    permits = Permits(plugins.teller.tell)
    with pytest.raises(PluginFailed, match="Authorization is temporarily unavailable: try again"):
        await authorize(plugins, permits)
    assert "plugin 'a1' failed in authorize" in caplog.text
    assert "its bool is neither None nor a Permit" in caplog.text
    permits.settle(RECORD)
    assert settled == [RECORD]


@sync_and_async
async def test_permit_of_blocking_authorizer_is_settled(*, awaited: Awaited) -> None:
    settled: list[RequestRecord] = []
    plugins = authorizers(Permit(settle=settled.append), awaited=awaited, seconds=0.03)
    permits = Permits(plugins.teller.tell)
    with pytest.raises(PluginFailed):
        await authorize(with_timeout(plugins, 0.02), permits)
    permits.settle(RECORD)
    await asyncio.sleep(0)  # an awaited permit comes after the request's end
    assert settled == [RECORD]


async def test_permit_for_cancelled_request_is_settled() -> None:
    settled: list[RequestRecord] = []
    result: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
    plugins = plugins_of(a=Plugin(authorize=lambda: result), z=Authenticator())
    permits = Permits(plugins.teller.tell)
    waiting = asyncio.ensure_future(authorize(plugins, permits))
    await asyncio.sleep(0)  # it waits
    result.set_result(Permit(settle=settled.append))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    permits.settle(RECORD)
    assert settled == [RECORD]


@pytest.mark.parametrize("refused", [False, True])
async def test_pass_left_alone_settles_its_permits(
    caplog: pytest.LogCaptureFixture, *, refused: bool
) -> None:
    settled: list[RequestRecord] = []
    permit = Permit(settle=settled.append)
    first: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
    last = Authenticator(Denied(CANARY) if refused else permit, awaited=True)
    plugins = plugins_of(
        a=Plugin(admit=lambda: first), b=Plugin(admit=lambda: last.authenticate(REQUEST)), z=last
    )
    permits = Permits(plugins.teller.tell)
    waiting = plugins.admit(REQUEST, ME, permits)
    assert waiting is not None
    waiting.leave()
    permits.settle(RECORD)
    first.set_result(permit)
    (left,) = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait([left])
    assert last.asked == 1
    assert settled == [RECORD] * (1 if refused else 2)
    del left
    gc.collect(1)  # an exception that nothing retrieved is logged by now
    assert caplog.text == ""


class Later:
    async def settle(self, record: RequestRecord) -> None: ...


@pytest.mark.parametrize("settle", [Later().settle, partial(partial(Later().settle), RECORD)])
def test_permit_with_async_settle_is_invalid(settle: Any) -> None:
    with pytest.raises(ValueError, match="settle must not be async"):
        Permit(settle=settle)


@pytest.mark.parametrize("prefixes", [("X-Ratelimit-",), ("",), "x-", ["x-"]])
def test_permit_with_wrong_header_prefix_is_invalid(prefixes: Any) -> None:
    with pytest.raises(ValueError, match=r"lower case|tuple"):
        Permit(withheld_headers=prefixes)

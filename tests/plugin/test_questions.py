"""The deciding hooks: who is asked, which results count, and how failures are refused."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from doubles import (
    CANARY,
    RECORD,
    REQUEST,
    Authenticator,
    Plugin,
    ask,
    plugins_of,
    with_timeout,
)

from tornadoproxy import AuthenticationFailed, Denied, Identity, IncomingRequest, Permit, hookimpl
from tornadoproxy.errors import ClientError, Overloaded, PluginFailed
from tornadoproxy.plugin.authorization import Permits

if TYPE_CHECKING:
    from tornadoproxy import RequestRecord
    from tornadoproxy.plugin.manager import Plugins

ME = Identity("me", groups=("x",))
sync_and_async = pytest.mark.parametrize("awaited", [False, True])


# -- results that count


def test_first_result_counts_and_no_other_is_asked() -> None:
    decliner, decider, other = Authenticator(), Authenticator(ME), Authenticator(Identity("other"))
    plugins = plugins_of(a=decliner, b=decider, c=other)
    assert plugins.authenticate(REQUEST) is ME
    assert (decliner.asked, decider.asked, other.asked) == (1, 1, 0)


def test_sync_and_async_plugins_are_asked_in_one_order() -> None:
    plugins = plugins_of(
        a=Authenticator(),
        b=Authenticator(awaited=True),
        c=Authenticator(),
        d=Authenticator(ME, awaited=True),
        e=Authenticator(Identity("other")),
    )
    assert ask(plugins) == ME


def test_plugin_may_return_future_and_take_no_argument() -> None:
    def authenticate() -> asyncio.Future[Identity]:
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, ME)
        return future

    assert ask(plugins_of(a=Plugin(authenticate=authenticate))) == ME


@sync_and_async
def test_identity_of_subclass_is_accepted_unchanged(*, awaited: bool) -> None:
    class Employee(Identity, frozen=True):
        desk: int = 0

    identity = Employee("me", desk=7)
    assert ask(plugins_of(a=Authenticator(identity, awaited=awaited))) is identity


@sync_and_async
def test_request_without_identity_is_401(*, awaited: bool) -> None:
    with pytest.raises(AuthenticationFailed, match="The credential sent is not known here"):
        ask(plugins_of(a=Authenticator(awaited=awaited)))


@sync_and_async
@pytest.mark.parametrize(
    "refused", [AuthenticationFailed("bad"), Denied("no"), Denied("quota", status=429)]
)
def test_refusal_is_final(refused: ClientError, *, awaited: bool) -> None:
    second = Authenticator(ME)
    with pytest.raises(type(refused)) as caught:
        ask(plugins_of(a=Authenticator(refused, awaited=awaited), b=second))
    assert caught.value is refused
    assert second.asked == 0


# -- results that fail


def fails_closed(plugin: object, caplog: pytest.LogCaptureFixture, timeout: float = 9) -> str:
    """Ask a plugin that fails; return the message that is logged."""
    second = Authenticator(ME)
    plugins = with_timeout(plugins_of(faulty=plugin, z=second), timeout)
    with pytest.raises(PluginFailed) as caught:
        ask(plugins)
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


NEITHER = "its {} is neither None nor an Identity with a principal"
make: Any = Identity  # as careless as a plugin
OF_IDENTITY = "its Identity's {}"
INVALID: list[tuple[object, str]] = [
    (True, NEITHER.format("bool")),
    (CANARY, NEITHER.format("str")),
    ({"principal": "me"}, NEITHER.format("dict")),
    (Identity, NEITHER.format("StructMeta")),
    (AuthenticationFailed("not raised"), NEITHER.format("AuthenticationFailed")),
    (make(""), OF_IDENTITY.format("principal must be a non-empty str")),
    (make(b""), OF_IDENTITY.format("principal must be a non-empty str")),
    (make(CANARY, anonymous=CANARY), OF_IDENTITY.format("anonymous must be a bool, not a str")),
    (make(CANARY, groups=CANARY), OF_IDENTITY.format("groups must be a tuple of str, not a str")),
    (
        make(CANARY, groups=[CANARY]),
        OF_IDENTITY.format("groups must be a tuple of str, not a list"),
    ),
    (make(CANARY, groups=(CANARY, 7)), OF_IDENTITY.format("groups must be non-empty str")),
    (make(CANARY, groups=("x", "")), OF_IDENTITY.format("groups must be non-empty str")),
]


@sync_and_async
@pytest.mark.parametrize(("result", "said"), INVALID, ids=[repr(each) for each, _ in INVALID])
def test_invalid_result_fails_closed(
    result: object, said: str, caplog: pytest.LogCaptureFixture, *, awaited: bool
) -> None:
    async def later() -> object:
        return result

    plugin = Plugin(authenticate=lambda: later() if awaited else result)
    assert fails_closed(plugin, caplog) == said


def test_coroutine_of_coroutine_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def later(result: object) -> object:
        return result

    plugin = Plugin(authenticate=lambda: later(later(ME)))
    assert fails_closed(plugin, caplog) == NEITHER.format("coroutine")


def noted() -> Exception:
    error = ValueError(CANARY)
    error.add_note(CANARY)
    return error


ERRORS = [
    KeyError(CANARY),
    noted(),
    ExceptionGroup(CANARY, [ValueError(CANARY)]),
    Overloaded(CANARY),
    Denied(CANARY, status=200),
    asyncio.CancelledError(CANARY),
]


@sync_and_async
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_exception_fails_closed_without_its_text(
    error: BaseException, caplog: pytest.LogCaptureFixture, *, awaited: bool
) -> None:
    said = fails_closed(Authenticator(error, awaited=awaited), caplog)
    assert said == type(error).__name__
    if not (awaited and isinstance(error, asyncio.CancelledError)):
        assert "raise self.result" in caplog.text, "where it was raised"


@pytest.mark.parametrize("explicit", [True, False])
def test_cause_of_exception_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture, *, explicit: bool
) -> None:
    def authenticate(request: IncomingRequest) -> None:
        try:
            request.headers[CANARY]
        except KeyError as error:
            raise RuntimeError(CANARY) from (error if explicit else None)

    assert fails_closed(Plugin(authenticate=authenticate), caplog) == "RuntimeError"
    assert "KeyError" in caplog.text


# -- deadlines


class Hangs:
    """Waits for ever; once it is cancelled it raises `last_words` or returns an identity."""

    def __init__(self, last_words: BaseException | None = None) -> None:
        self.last_words = last_words
        self.begun = False
        self.cancelled = False

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Identity:
        self.begun = True
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            if self.last_words:
                raise self.last_words from None
        return ME


@pytest.mark.parametrize(
    "last_words",
    [asyncio.CancelledError(), None, ValueError(CANARY), AuthenticationFailed("late")],
    ids=["hangs", "swallows", "raises", "refuses"],
)
def test_late_result_is_cancelled_and_fails_closed(
    last_words: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Hangs(last_words)
    assert fails_closed(plugin, caplog, timeout=0.02) == "no result within 0.02 s"
    assert plugin.cancelled


def test_deadline_is_each_plugins_own() -> None:
    async def slow() -> None:
        await asyncio.sleep(0.12)

    slow_ones = Plugin(authenticate=slow), Plugin(authenticate=lambda: slow())
    plugins = plugins_of(a=slow_ones[0], b=slow_ones[1], c=Authenticator(ME))
    assert ask(with_timeout(plugins, 0.2)) == ME
    with pytest.raises(PluginFailed):
        ask(with_timeout(plugins, 0.05))
    assert plugins.refusals == {"a": 1}


@pytest.mark.parametrize("result", [ME, None, Denied("no")], ids=repr)
def test_blocking_plugin_fails_closed(result: object, caplog: pytest.LogCaptureFixture) -> None:
    class Blocks(Authenticator):
        def _now(self) -> object:
            time.sleep(0.03)
            return super()._now()

    said = fails_closed(Blocks(result), caplog, timeout=0.02)
    assert said.startswith("it blocked the event loop for 0.0")
    assert said.endswith(" s, PLUGIN_TIMEOUT is 0.02")


def test_blocking_async_plugin_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def authenticate() -> Identity:
        time.sleep(0.03)  # noqa: ASYNC251  # that is the mistake
        return ME

    said = fails_closed(Plugin(authenticate=authenticate), caplog, timeout=0.02)
    assert said == "no result within 0.02 s"


def test_result_in_time_counts_though_another_blocked() -> None:
    plugins = with_timeout(plugins_of(quick=Authenticator(ME, awaited=True)), 0.02)

    async def main() -> Identity:
        asyncio.get_running_loop().call_soon(time.sleep, 0.03)
        result = plugins.authenticate(REQUEST)
        assert not isinstance(result, Identity)
        return await result

    assert asyncio.run(main()) == ME


def test_cancelled_request_cancels_plugin() -> None:
    plugin = Hangs(asyncio.CancelledError())
    plugins = plugins_of(a=plugin)

    async def main() -> None:
        waiting: Any = asyncio.ensure_future(plugins.authenticate(REQUEST))  # type: ignore[arg-type]  # it hangs
        while not plugin.begun:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert plugin.cancelled
    assert plugins.refusals == {}


# -- permits


def authorize(plugins: Plugins, permits: Permits) -> None:
    """Ask `plugins` to authorize `REQUEST`."""

    async def main() -> None:
        waiting = plugins.authorize(REQUEST, ME, None, permits)
        if waiting is not None:
            await waiting

    asyncio.run(main())


def authorizers(*results: object, awaited: bool = False) -> Plugins:
    """Return plugins that authorize with these results, and one that authenticates."""

    def authorizer(result: object) -> Plugin:
        async def later() -> object:
            return result

        return Plugin(authorize=lambda: later() if awaited else result)

    named = {f"a{number}": authorizer(result) for number, result in enumerate(results)}
    return plugins_of(z=Authenticator(), **named)


@sync_and_async
def test_permits_of_all_authorizers_are_settled_once(*, awaited: bool) -> None:
    settled: list[RequestRecord] = []
    permit = Permit(settle=settled.append, withheld_headers=("x-a",))
    plugins = authorizers(permit, None, permit, Permit(withheld_headers=("x-b",)), awaited=awaited)
    permits = Permits(plugins.tell)
    authorize(plugins, permits)
    assert settled == []
    for _ in range(2):
        permits.settle(RECORD)
    assert settled == [RECORD, RECORD]
    assert permits.withheld_headers == ("x-a", "x-a", "x-b")


@sync_and_async
@pytest.mark.parametrize("result", [True, "yes", ME, Permit], ids=repr)
def test_invalid_authorization_fails_closed(
    result: object, caplog: pytest.LogCaptureFixture, *, awaited: bool
) -> None:
    settled: list[RequestRecord] = []
    plugins = authorizers(Permit(settle=settled.append), result, awaited=awaited)
    permits = Permits(plugins.tell)
    with pytest.raises(PluginFailed, match="Authorization is temporarily unavailable: try again"):
        authorize(plugins, permits)
    assert "plugin 'a1' failed in authorize" in caplog.text
    assert "is neither None nor a Permit" in caplog.text
    permits.settle(RECORD)
    assert settled == [RECORD]


@sync_and_async
def test_permit_of_blocking_authorizer_is_settled(*, awaited: bool) -> None:
    settled: list[RequestRecord] = []

    def blocks() -> Permit:
        time.sleep(0.03)
        return Permit(settle=settled.append)

    async def blocks_later() -> Permit:
        return blocks()

    plugin = Plugin(authorize=blocks_later if awaited else blocks)
    plugins = with_timeout(plugins_of(a=plugin, z=Authenticator()), 0.02)
    permits = Permits(plugins.tell)
    with pytest.raises(PluginFailed):
        authorize(plugins, permits)
    permits.settle(RECORD)
    assert settled == [RECORD]


class Later:
    async def settle(self, record: RequestRecord) -> None: ...


async def settle_later(record: RequestRecord) -> None: ...


@pytest.mark.parametrize(
    "settle", [settle_later, partial(partial(settle_later), RECORD), Later().settle]
)
def test_permit_with_async_settle_is_invalid(settle: Any) -> None:
    with pytest.raises(ValueError, match="settle must not be async"):
        Permit(settle=settle)


@pytest.mark.parametrize("prefixes", [("X-Ratelimit-",), ("",), "x-", ["x-"]])
def test_permit_with_wrong_header_prefix_is_invalid(prefixes: Any) -> None:
    with pytest.raises(ValueError, match=r"lower case|tuple"):
        Permit(withheld_headers=prefixes)

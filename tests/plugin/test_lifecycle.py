"""Startup, shutdown and observers: what is called, and how failures are isolated."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from doubles import CANARY, RECORD, Authenticator, Plugin, plugins_of, with_timeout

from tornadoproxy import ConfigurationError, DatabaseStatus, RequestRecord, Status
from tornadoproxy.plugin.manager import Plugins


def loaded(**plugins: object) -> Plugins:
    """Return these plugins beside one that authenticates."""
    return plugins_of(authenticator=Authenticator(), **plugins)


async def start(plugins: Plugins) -> None:
    await plugins.startup(lambda: Status(0, 0, 0, 0, 0, 0, {}, {}, draining=False))


def recorded(events: list[str], name: str, start: Any = list, stop: Any = list) -> Plugin:
    """Return a plugin that records its start and its stop, then calls these functions."""

    def startup() -> Any:
        events.append(f"start {name}")
        return start()

    def shutdown() -> Any:
        events.append(f"stop {name}")
        return stop()

    return Plugin(startup=startup, shutdown=shutdown)


def fail() -> None:
    raise KeyError(CANARY)


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


def complain() -> None:
    raise ConfigurationError("LOG cannot be opened")


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STARTUP_TIMEOUT", "SHUTDOWN_TIMEOUT"):
        monkeypatch.setattr(f"tornadoproxy.plugin.manager.{name}", 0.05)


async def test_plugins_start_in_order_and_stop_in_reverse_once() -> None:
    events: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        events.append("later")

    only_stops = Plugin(shutdown=lambda: events.append("stop c"))
    plugins = loaded(a=recorded(events, "a", later, later), b=recorded(events, "b"), c=only_stops)
    await start(plugins)
    await plugins.shutdown()
    await plugins.shutdown()
    assert events == ["start a", "later", "start b", "stop c", "stop b", "stop a", "later"]


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fail, "plugin 'bad' failed in startup: KeyError in "),
        (fail_later, "plugin 'bad' failed in startup: KeyError in "),
        (hang, "plugin 'bad' failed in startup: no result within 0.05 s"),
        (lambda: time.sleep(0.06), "plugin 'bad' failed in startup: no result within 0.05 s"),
        (complain, "LOG cannot be opened"),
    ],
)
async def test_failed_startup_shuts_down_those_before(
    function: Callable[[], object], said: str
) -> None:
    events: list[str] = []
    bad = recorded(events, "b", function)
    plugins = loaded(a=recorded(events, "a"), bad=bad, c=recorded(events, "c"))
    with pytest.raises(ConfigurationError) as caught:
        await start(plugins)
    (fault,) = caught.value.faults
    assert fault.startswith(said)
    assert CANARY not in fault
    assert events == ["start a", "start b", "stop a"]


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    ("function", "said"), [(fail_later, "KeyError"), (hang, "no result within 0.05 s")]
)
async def test_failed_shutdown_is_logged_and_isolated(
    function: Callable[[], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    plugins = loaded(a=recorded(events, "a"), bad=recorded(events, "b", stop=function))
    await start(plugins)
    await plugins.shutdown()
    assert events[-2:] == ["stop b", "stop a"]
    assert f"plugin 'bad' failed in shutdown: {said}" in caplog.text
    assert CANARY not in caplog.text


def observer(function: Callable[[RequestRecord], object]) -> Plugin:
    return Plugin(request_finished=lambda record: function(record))


def raises(error: BaseException) -> Callable[[object], None]:
    def function(_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raises(KeyError(CANARY)), "KeyError"),
        (raises(asyncio.CancelledError(CANARY)), "CancelledError"),
        (lambda _: fail_later(), "it returned an awaitable, which nothing awaits"),
    ],
)
def test_failed_observer_is_logged_and_isolated(
    function: Callable[[RequestRecord], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[RequestRecord] = []
    plugins = loaded(a=observer(seen.append), faulty=observer(function), z=observer(seen.append))
    plugins.request_finished(RECORD)
    gc.collect(1)  # a coroutine that is never awaited warns by now
    assert seen == [RECORD, RECORD]
    assert plugins.failures == {"faulty": 1}
    assert f"plugin 'faulty' failed in request_finished (1 so far): {said}" in caplog.text
    assert CANARY not in caplog.text


def test_observer_that_always_fails_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    plugins = loaded(faulty=observer(lambda _: 1 / 0))
    for _ in range(1_000):
        plugins.request_finished(RECORD)
    assert plugins.failures["faulty"] == 1_000
    assert len(caplog.records) == 10
    assert "512 so far" in caplog.records[-1].getMessage()


def test_blocking_observers_are_counted() -> None:
    def block(_: object) -> None:
        time.sleep(0.03)

    plugins = with_timeout(loaded(blocks=observer(block)), 0.02)
    plugins.request_finished(RECORD)
    plugins.teller.tell("other", "settle", block, RECORD)
    assert plugins.failures == {"blocks": 1, "other": 1}


@pytest.mark.parametrize("result", [fail, lambda: [None], lambda: None])
def test_database_status_of_one_plugin_spares_the_others(result: Callable[[], Any]) -> None:
    status = DatabaseStatus("NOTES_DB", failing=True, failures=2)
    plugins = loaded(a=Plugin(database_status=result), b=Plugin(database_status=lambda: [status]))
    for _ in range(2):
        assert plugins.database_status() == {"b": (status,)}
    assert (plugins.failures["a"], plugins.failures["b"]) == (2, 0)

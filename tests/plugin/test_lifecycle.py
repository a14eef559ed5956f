"""Startup and shutdown, prices and observers: what is called, and how failures are isolated."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest
from doubles import (
    CANARY,
    IDLE,
    RECORD,
    Authenticator,
    Plugin,
    plugins_of,
    run,
    starting,
    with_timeout,
)

from tornadoproxy import ConfigurationError, ModelUsage, Usage, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy import RequestRecord, Status
    from tornadoproxy.plugin.manager import Plugins

AUTHENTICATOR = Authenticator()


def loaded(**plugins: object) -> Plugins:
    """Return these plugins beside one that authenticates."""
    return plugins_of(authenticator=AUTHENTICATOR, **plugins)


# -- startup and shutdown


class Lives:
    """Records when it is started and shut down."""

    def __init__(self, name: str, events: list[str], start: Any = None, stop: Any = None) -> None:
        self.name = name
        self.events = events
        self.on_start = start or (lambda: None)
        self.on_stop = stop or (lambda: None)

    @hookimpl
    def startup(self) -> Any:
        self.events.append(f"start {self.name}")
        return self.on_start()

    @hookimpl
    def shutdown(self) -> Any:
        self.events.append(f"stop {self.name}")
        return self.on_stop()


def fail() -> None:
    raise KeyError(CANARY)


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STARTUP_TIMEOUT", "SHUTDOWN_TIMEOUT"):
        monkeypatch.setattr(f"tornadoproxy.plugin.manager.{name}", 0.05)


def test_plugins_start_in_order_and_stop_in_reverse_once() -> None:
    events: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        events.append("later")

    plugins = loaded(a=Lives("a", events, later, later), b=Lives("b", events))
    run(starting(plugins), plugins.shutdown, plugins.shutdown)
    assert events == ["start a", "later", "start b", "stop b", "stop a", "later"]


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    ("start", "said"),
    [
        (fail, "KeyError in "),
        (fail_later, "KeyError in "),
        (hang, "no result within 0.05 s"),
        (lambda: time.sleep(0.06), "no result within 0.05 s"),
    ],
)
def test_failed_startup_shuts_down_those_before(start: Callable[[], object], said: str) -> None:
    events: list[str] = []
    bad = Lives("b", events, start)
    plugins = loaded(a=Lives("a", events), bad=bad, c=Lives("c", events))
    with pytest.raises(ConfigurationError) as caught:
        run(starting(plugins))
    (fault,) = caught.value.faults
    assert fault.startswith(f"plugin 'bad' failed in startup: {said}")
    assert CANARY not in fault
    assert events == ["start a", "start b", "stop a"]


def test_configuration_error_of_startup_is_reported_as_it_is() -> None:
    def complain() -> None:
        raise ConfigurationError("LOG cannot be opened")

    with pytest.raises(ConfigurationError) as caught:
        run(starting(loaded(a=Lives("a", [], complain))))
    assert caught.value.faults == ("LOG cannot be opened",)


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    ("stop", "said"),
    [(fail, "KeyError"), (fail_later, "KeyError"), (hang, "no result within 0.05 s")],
)
def test_failed_shutdown_is_logged_and_isolated(
    stop: Callable[[], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    plugins = loaded(a=Lives("a", events), bad=Lives("b", events, stop=stop))
    run(starting(plugins), plugins.shutdown)
    assert events[-2:] == ["stop b", "stop a"]
    assert f"plugin 'bad' failed in shutdown: {said}" in caplog.text
    assert CANARY not in caplog.text


def test_startup_is_given_current_figures() -> None:
    given: list[Status] = []

    def startup(status: Callable[[], Status]) -> None:
        given.append(status())

    run(starting(loaded(a=Plugin(startup=startup))))
    assert given == [IDLE]


def test_plugin_without_startup_is_shut_down() -> None:
    events: list[str] = []

    def shutdown() -> None:
        events.append("stop")

    run(loaded(a=Plugin(shutdown=shutdown)).shutdown)
    assert events == ["stop"]


# -- price

USAGE = Usage(input_tokens=3, output_tokens=0)


def prices(cost: object) -> Plugin:
    def price(model: str, usage: Usage) -> object:
        if isinstance(cost, Exception):
            raise cost
        return cost

    return Plugin(price=price)


def test_first_price_counts() -> None:
    plugins = loaded(a=prices(None), b=prices(7), c=prices(8))
    assert plugins.price("claude", USAGE) == 7
    assert plugins.price("claude", Usage()) is None, "no usage"
    assert plugins.price(None, USAGE) is None, "no model"
    assert loaded().price("claude", USAGE) is None
    assert loaded(a=prices(None)).price("claude", USAGE) is None


@pytest.mark.parametrize(
    ("others", "costs", "total"),
    [
        (["dear", "dear", "cheap"], [100, 100, 1], 202),
        (["dearest"], [2**63], 2**63 - 1),
        (["dear", "unheard-of"], [100, None], None),
        ([None], [None], None),
    ],
)
def test_price_of_several_models_is_their_sum_or_unknown(
    others: list[str | None], costs: list[int | None], total: int | None
) -> None:
    def price(model: str, usage: Usage) -> int | None:
        assert not usage.others, "each model is priced by itself"
        return {"cheap": 1, "dear": 100, "dearest": 2**63}.get(model)

    plugins = loaded(a=Plugin(price=price))
    usage = Usage(1, 1, others=tuple(ModelUsage(model, USAGE) for model in others))
    priced = plugins.priced(usage)
    assert [other.cost for other in priced.others] == costs
    assert plugins.price("cheap", priced) == total
    assert plugins.price("cheap", usage) is None, "what is not priced is not free"


@pytest.mark.parametrize("invalid", [KeyError(CANARY), -1, 1.5, True, "7"])
def test_invalid_price_is_logged_and_next_is_asked(
    invalid: object, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = loaded(a=prices(invalid), b=prices(7))
    assert plugins.price("claude", USAGE) == 7
    assert plugins.failures == {"a": 1}
    assert "plugin 'a' failed in price (1 so far): " in caplog.text
    assert CANARY not in caplog.text


# -- observers


def observer(function: Callable[[RequestRecord], object]) -> Plugin:
    return Plugin(request_finished=lambda record: function(record))


async def later() -> None: ...


def raises(error: BaseException) -> Callable[[object], None]:
    def function(_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raises(KeyError(CANARY)), "KeyError"),
        (raises(asyncio.CancelledError(CANARY)), "CancelledError"),
        (lambda _: later(), "it returned an awaitable, which nothing awaits"),
    ],
)
@pytest.mark.parametrize("hook", ["request_finished", "settle"])
def test_failed_observer_is_logged_and_isolated(
    hook: str,
    function: Callable[[RequestRecord], object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[RequestRecord] = []
    plugins = loaded(a=observer(seen.append), faulty=observer(function), z=observer(seen.append))
    if hook == "request_finished":
        plugins.request_finished(RECORD)
    else:
        plugins.tell("faulty", hook, function, RECORD)
    gc.collect(1)  # a coroutine that is never awaited warns by now
    assert seen == ([RECORD, RECORD] if hook == "request_finished" else [])
    assert plugins.failures == {"faulty": 1}
    assert f"plugin 'faulty' failed in {hook} (1 so far): {said}" in caplog.text
    assert CANARY not in caplog.text


def test_observer_that_always_fails_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    plugins = loaded(faulty=observer(lambda _: 1 / 0))
    for _ in range(1_000):
        plugins.request_finished(RECORD)
    assert plugins.failures["faulty"] == 1_000
    assert len(caplog.records) == 10
    assert "512 so far" in caplog.records[-1].getMessage()


def test_blocking_price_and_observers_are_counted() -> None:
    def block(*_: object) -> int:
        time.sleep(0.03)
        return 7

    blocks = Plugin(price=lambda: block(), request_finished=lambda: block())
    plugins = with_timeout(loaded(blocks=blocks), 0.02)
    assert plugins.price("claude", Usage(input_tokens=1)) is None
    plugins.request_finished(RECORD)
    plugins.tell("other", "settle", block, RECORD)
    assert plugins.failures == {"blocks": 2, "other": 1}

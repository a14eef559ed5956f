"""The event loop of a test."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import BaseAsyncIOLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

TIDY_TIMEOUT = 20.0  # seconds for each step of a fixture's setup or teardown

T = TypeVar("T")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every coroutine test for pytest-tornado, unless its module does, with a timeout."""
    is_coroutine = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)
    if is_coroutine and item.get_closest_marker("gen_test") is None:
        item.add_marker(pytest.mark.gen_test)


@pytest.fixture
def asyncio_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop of `io_loop`, which closes it. Override it to test another kind of loop."""
    return asyncio.new_event_loop()


@pytest.fixture
def io_loop(asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[IOLoop]:
    """The event loop of one test, in place of pytest-tornado's.

    The test fails if an exception in the loop was not awaited.
    """
    errors: list[dict[str, Any]] = []  # asyncio's exception contexts hold anything
    asyncio_loop.set_exception_handler(lambda _, context: errors.append(context))
    io_loop = IOLoop(make_current=False, asyncio_loop=asyncio_loop)
    asyncio.set_event_loop(asyncio_loop)
    try:
        yield io_loop
        run(io_loop, _tidy)
    finally:
        asyncio.set_event_loop(None)
        io_loop.close()
    for error in errors:
        raise AssertionError(f"in the event loop: {error}") from error.get("exception")


async def _tidy() -> None:
    """Cancel and await what still runs in the loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def run(io_loop: IOLoop, function: Callable[[], Awaitable[T]]) -> T:
    """Run `function` in the loop, as `IOLoop.run_sync` does, which makes a class each time."""
    assert isinstance(io_loop, BaseAsyncIOLoop)

    async def within_timeout() -> T:
        async with asyncio.timeout(TIDY_TIMEOUT):
            return await function()

    return io_loop.asyncio_loop.run_until_complete(within_timeout())

"""Waits for what a plugin answered, for as long as it may take, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

from tornadoproxy.plugin_failures import OurOwnError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def failure(function: Callable[[], object], seconds: float) -> BaseException | None:
    """What calling `function` ended with, and waiting for what it answers; ``None`` is well."""
    began = time.monotonic()
    try:
        answer = function()
    except BaseException as error:
        return error
    if inspect.isawaitable(answer):
        _, failed = await outcome(answer, seconds)
        return failed
    return _late(seconds) if time.monotonic() - began > seconds else None


async def outcome(
    waiting: Awaitable[object],
    seconds: float,
    late: Callable[[object], object] | None = None,
) -> tuple[object, BaseException | None]:
    """The result of `waiting`, or the exception that it ended with.

    It is a task of its own, so that one that swallows its cancellation is left behind.

    :param late: told the result that comes after all.
    """
    task = asyncio.ensure_future(_ended(waiting))
    began = time.monotonic()
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
    finally:
        task.cancel()  # which does nothing to one that is done
    # it may have been done by then, and have kept the loop from noticing that its time was over
    if done and time.monotonic() - began <= seconds:
        return task.result()
    if late is not None:
        task.add_done_callback(lambda task: task.cancelled() or late(task.result()[0]))
    return None, _late(seconds)


def _late(seconds: float) -> OurOwnError:
    return OurOwnError(f"no answer in {seconds:.3g} s")


async def _ended(waiting: Awaitable[object]) -> tuple[object, BaseException | None]:
    """`outcome` in its task, which never raises: asyncio would log the text of what it raised."""
    try:
        return await waiting, None
    except BaseException as error:
        return None, error


def discard(answer: object) -> None:
    """End a coroutine that nobody will await, lest Python warn of it."""
    if inspect.iscoroutine(answer):
        answer.close()

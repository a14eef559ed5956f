"""Waits for what a plugin answered, for as long as it may take, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

from tornadoproxy.plugin.failures import OurOwnError

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
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
    finally:
        task.cancel()  # which does nothing to one that is done
    if done:
        answer, error, took = task.result()
        # it may have kept the loop from noticing that its time was over
        if took <= seconds:
            return answer, error
    if late is not None:
        task.add_done_callback(lambda task: task.cancelled() or late(task.result()[0]))
    return None, _late(seconds)


def _late(seconds: float) -> OurOwnError:
    return OurOwnError(f"no answer in {seconds:.3g} s")


async def _ended(waiting: Awaitable[object]) -> tuple[object, BaseException | None, float]:
    """`outcome` in its task, and the seconds that `waiting` took, whatever held the loop then.

    It never raises: asyncio would log the text of what it raised.
    """
    answer: object = None
    failed: BaseException | None = None
    began = time.monotonic()
    try:
        answer = await waiting
    except BaseException as error:
        failed = error
    return answer, failed, time.monotonic() - began


def discard(answer: object) -> None:
    """End a coroutine that nobody will await, lest Python warn of it."""
    if inspect.iscoroutine(answer):
        answer.close()

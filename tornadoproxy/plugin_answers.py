"""Waits for what a plugin answered, for as long as it may take, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

from tornadoproxy.plugin_failures import OurOwnError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def failure(function: Callable[[], object], seconds: float) -> BaseException | None:
    """What calling `function` ended with, and waiting for what it answers; ``None`` is well."""
    try:
        answer = function()
    except BaseException as error:
        return error
    if not inspect.isawaitable(answer):
        return None
    _, failed = await outcome(answer, seconds)
    return failed


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
        return task.result()
    if late is not None:
        task.add_done_callback(lambda task: task.cancelled() or late(task.result()[0]))
    return None, OurOwnError(f"no answer in {seconds:.3g} s")


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

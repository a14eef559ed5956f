"""Plugin failures: how they are contained and reported.

`failure` and `outcome` return what a plugin raised, or that it missed its deadline.

A failure is reported by the exception's type and where it was raised, never by its text: a plugin's
exception may hold a credential (``KeyError: 'sk-…'``). Only a plugin that cannot be loaded is
quoted: it has not seen a request yet.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_Ended: TypeAlias = tuple[object, BaseException | None, float]
"""The result, the exception and the duration of an awaitable, without the time others blocked."""

_logger = logging.getLogger(__name__)


class OurOwnError(Exception):
    """A plugin's failure that the proxy detected; its text is ours and safe to log."""


async def failure(function: Callable[[], object], seconds: float) -> BaseException | None:
    """Call `function`, await its result within `seconds`; return how it failed, if it did."""
    began = monotonic()
    try:
        result = function()
    except BaseException as error:
        return error
    if inspect.isawaitable(result):
        _, failed = await outcome(result, seconds)
        return failed
    return _late(seconds) if monotonic() - began > seconds else None


async def outcome(
    waiting: Awaitable[object],
    seconds: float,
    late: Callable[[object], object] | None = None,
) -> tuple[object, BaseException | None]:
    """Return the result of `waiting`, or the exception that it ended with.

    It runs in a task of its own: one that swallows its cancellation is abandoned.

    :param late: called with a result that arrives after the deadline.
    """
    loop = asyncio.get_running_loop()
    # asyncio.wait() would take half of the time that this function does
    first: asyncio.Future[_Ended | None] = loop.create_future()
    task = loop.create_task(_run(waiting, first))
    timer = loop.call_later(seconds, _end, first, None)
    try:
        ended = await first
    finally:
        timer.cancel()
        task.cancel()  # does nothing to a task that is done
    if ended is not None:
        result, error, took = ended
        # a plugin that blocked the loop kept the timeout from firing
        if took <= seconds:
            return result, error
    if late is not None:
        task.add_done_callback(lambda task: task.cancelled() or late(task.result()))
    return None, _late(seconds)


def _late(seconds: float) -> OurOwnError:
    return OurOwnError(f"no result within {seconds:.3g} s")


async def _run(waiting: Awaitable[object], first: asyncio.Future[_Ended | None]) -> object:
    """Return the result of `waiting`; end `first` with that as well, unless it has ended.

    It never raises: asyncio would log the exception's text.
    """
    result: object = None
    failed: BaseException | None = None
    began = monotonic()
    try:
        result = await waiting
    except BaseException as error:
        failed = error
    _end(first, (result, failed, monotonic() - began))
    return result


def _end(first: asyncio.Future[_Ended | None], ended: _Ended | None) -> None:
    if not first.done():
        first.set_result(ended)


def discard(result: object) -> None:
    """Close a coroutine that is never awaited, so that Python does not warn about it."""
    if inspect.iscoroutine(result):
        result.close()


def held_the_loop(seconds: float, timeout: float) -> OurOwnError:
    """Return the failure of a plugin whose synchronous code exceeded its timeout."""
    return OurOwnError(
        f"it blocked the event loop for {seconds:.3g} s, PLUGIN_TIMEOUT is {timeout:g}"
    )


class _WithheldError(Exception):
    """Replaces an exception in a log; its text is the type's name."""


def faults_of(plugin: str, hook: str, error: BaseException) -> tuple[str, ...]:
    """Return the lines that report what `plugin` raised in `hook` at start."""
    if isinstance(error, ConfigurationError) and error.faults:
        return error.faults
    if isinstance(error, OurOwnError):
        return (f"plugin {plugin!r} failed in {hook}: {error}",)
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"plugin {plugin!r} failed in {hook}: {type(error).__name__} "
        f"in {last.filename}, line {last.lineno}",
    )


def log_now_and_then(message: str, count: int, plugin: str, error: BaseException) -> None:
    """Log the 1st, 2nd, 4th, 8th … time: a failure in every request must not fill the disk."""
    if count & (count - 1) == 0:
        log_failure(f"{message} ({count} so far): %s", plugin, error)


def log_failure(message: str, plugin: str, error: BaseException) -> None:
    """Log `message` with the plugin's name, the type of `error` and its traceback."""
    if isinstance(error, OurOwnError):
        _logger.error(message, plugin, error)
    else:
        _logger.error(message, plugin, type(error).__name__, exc_info=_withheld(error))


def _withheld(error: BaseException) -> _WithheldError:
    """Return `error` and its cause with their tracebacks and without their texts."""
    shown = _WithheldError(type(error).__name__).with_traceback(error.__traceback__)
    cause = error.__cause__ or error.__context__
    if cause is not None:
        shown.__cause__ = _WithheldError(type(cause).__name__).with_traceback(cause.__traceback__)
    return shown

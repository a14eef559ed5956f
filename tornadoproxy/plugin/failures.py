"""Plugin failures: how they are contained, and how they are reported.

`failure` and `outcome` return what a plugin raised, or that it was late.

A failure is reported by its type and where it was raised, never by its text: what a plugin raises
may hold a credential (``KeyError: 'sk-…'``). Only a plugin that cannot be loaded is quoted: it has
not been shown anything yet.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from time import monotonic
from typing import TYPE_CHECKING

from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_logger = logging.getLogger(__name__)


class OurOwnError(Exception):
    """A plugin's failure that we found out, and whose text is ours."""


async def failure(function: Callable[[], object], seconds: float) -> BaseException | None:
    """What calling `function` ended with, and waiting for what it answers; ``None`` is well."""
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
        result, error, took = task.result()
        # it may have kept the loop from noticing that its time was over
        if took <= seconds:
            return result, error
    if late is not None:
        task.add_done_callback(lambda task: task.cancelled() or late(task.result()[0]))
    return None, _late(seconds)


def _late(seconds: float) -> OurOwnError:
    return OurOwnError(f"no answer in {seconds:.3g} s")


async def _ended(waiting: Awaitable[object]) -> tuple[object, BaseException | None, float]:
    """`outcome` in its task, and the seconds that `waiting` took, whatever held the loop then.

    It never raises: asyncio would log the text of what it raised.
    """
    result: object = None
    failed: BaseException | None = None
    began = monotonic()
    try:
        result = await waiting
    except BaseException as error:
        failed = error
    return result, failed, monotonic() - began


def discard(result: object) -> None:
    """End a coroutine that nobody will await, lest Python warn of it."""
    if inspect.iscoroutine(result):
        result.close()


def held_the_loop(seconds: float, timeout: float) -> OurOwnError:
    """Return the failure of a plugin whose synchronous code ran for longer than it may."""
    return OurOwnError(f"it held the event loop for {seconds:.3g} s, PLUGIN_TIMEOUT is {timeout:g}")


class _WithheldError(Exception):
    """Stands in a log for an exception whose text is withheld; its own is the type's name."""


def faults_of(plugin: str, hook: str, error: BaseException) -> tuple[str, ...]:
    """What a plugin that raised `error` while the proxy starts is reported with."""
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
    """Log at 1, 2, 4, 8 …: what fails for every request must not fill the disk."""
    if count & (count - 1) == 0:
        log_failure(f"{message} ({count} so far): %s", plugin, error)


def log_failure(message: str, plugin: str, error: BaseException) -> None:
    """Log `message`, made of the plugin's name and the type of `error`, and its traceback."""
    if isinstance(error, OurOwnError):
        _logger.error(message, plugin, error)
    else:
        _logger.error(message, plugin, type(error).__name__, exc_info=_withheld(error))


def _withheld(error: BaseException) -> _WithheldError:
    """`error` and what it came from, with their tracebacks and without their texts."""
    shown = _WithheldError(type(error).__name__).with_traceback(error.__traceback__)
    cause = error.__cause__ or error.__context__
    if cause is not None:
        shown.__cause__ = _WithheldError(type(cause).__name__).with_traceback(cause.__traceback__)
    return shown

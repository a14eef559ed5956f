"""Plugin failures: how they are contained and reported.

`failure` and `outcome` return what a plugin raised, or that it missed its deadline. `Teller` calls
plugins whose failures end nothing.

A failure is reported by the exception's type and where it was raised, never by its text: a plugin's
exception may hold a credential (``KeyError: 'sk-…'``). Only a plugin that cannot be loaded is
quoted: it has not seen a request yet.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

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
    return _no_result_within(seconds) if monotonic() - began > seconds else None


class Watched:
    """An awaitable that can be given up; one that ignores this is abandoned.

    It runs in a task of its own, unless it is a future, which cannot ignore it. Its awaiter gets
    its result and the exception that it ended with; if the awaiter is cancelled, it is given up.

    :param seconds: after which a result is late.
    :param late: called with a result that is late.
    :ivar due: when it is to be given up, in monotonic time.
    :ivar future: done when it has ended or was given up.
    """

    __slots__ = ("_is_late", "_late", "_seconds", "_task", "due", "future")

    def __init__(
        self,
        waiting: Awaitable[object],
        seconds: float,
        late: Callable[[object], object] | None = None,
    ) -> None:
        self.due = monotonic() + seconds
        self._seconds = seconds
        self._is_late = False
        self._late = late
        self._task: asyncio.Task[None] | None = None
        if type(waiting) is asyncio.Future:
            self.future: asyncio.Future[Any] = waiting
        else:
            loop = asyncio.get_running_loop()
            self.future = loop.create_future()
            self._task = loop.create_task(self._run(waiting))

    def give_up(self) -> None:
        """End it with a missed deadline, unless it has ended; its result does not count then."""
        future = self.future
        future.cancel()
        if future.cancelled():
            self._is_late = True
            if self._task is not None:
                self._task.cancel()
        elif future.exception() is None and self._late is not None:
            self._late(future.result())

    def __await__(self) -> Generator[Any, None, tuple[object, BaseException | None]]:
        result: object = None
        failed: BaseException | None = None
        try:
            result = yield from self.future
        except asyncio.CancelledError as error:
            awaiter = asyncio.current_task()
            if awaiter is not None and awaiter.cancelling():
                self.give_up()
                raise
            failed = error
        except BaseException as error:
            failed = error
        if self._is_late:
            return None, _no_result_within(self._seconds)
        self._late = None  # it may refer to the request
        return result, failed

    async def _run(self, waiting: Awaitable[object]) -> None:
        """Await it. This never raises: asyncio would log the exception's text."""
        result: object = None
        failed: BaseException | None = None
        since = monotonic()
        try:
            result = await waiting
        except BaseException as error:
            failed = error
        if not self.future.done() and monotonic() - since > self._seconds:
            self.give_up()  # a plugin that blocked the loop also kept it from being given up
        if self.future.done():
            if self._late is not None:
                self._late(result)
        elif failed is None:
            self.future.set_result(result)
        else:
            if isinstance(failed, GeneratorExit):
                # thrown into the awaiter, it would close it
                closed = RuntimeError("coroutine raised GeneratorExit")
                failed = closed.with_traceback(failed.__traceback__)
            self.future.set_exception(failed)


class Teller:
    """Tells the plugins of one proxy. No failure of a plugin leaves it.

    :ivar timeout: ``PLUGIN_TIMEOUT``, in seconds.
    :ivar failures: failures by plugin that were only logged.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.failures: Counter[str] = Counter()

    def tell(
        self, plugin: str, hook: str, function: Callable[..., object], *what: object
    ) -> object:
        """Call `function`, which must be sync and must not block.

        :return: its result; ``None`` if it failed, which counts as a failure of `plugin` in `hook`.
        """
        began = monotonic()
        try:
            result = function(*what)
        except BaseException as error:
            self.count_failure(plugin, hook, error)
            return None
        if (took := monotonic() - began) > self.timeout:
            self.count_failure(plugin, hook, held_the_loop(took, self.timeout))
        if result is not None and inspect.isawaitable(result):
            discard(result)
            nothing_awaits = OurOwnError("it returned an awaitable, which nothing awaits")
            self.count_failure(plugin, hook, nothing_awaits)
            return None
        return result

    def count_failure(self, plugin: str, hook: str, error: BaseException) -> None:
        """Count and log a failure of `plugin` in `hook` that refused no request."""
        self.failures[plugin] += 1
        log_now_and_then(f"plugin %r failed in {hook}", self.failures[plugin], plugin, error)


class Deadline:
    """The deadline of many awaitables: one timer for all, which is rarely due.

    A timer for each takes a tenth of the time of a request that waits for two plugins.

    :ivar seconds: until an awaitable is given up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._watched: deque[Watched] = deque()
        self._has_timer = False

    def watch(self, awaitable: Awaitable[object], late: Callable[[object], object]) -> Watched:
        """Return `awaitable` to be awaited in its place; it is given up when it is due.

        :param late: called with a result that is late.
        """
        watched = Watched(awaitable, self.seconds, late)
        waiting = self._watched
        while waiting and waiting[0].future.done():
            waiting.popleft()
        waiting.append(watched)
        if not self._has_timer:
            self._has_timer = True
            asyncio.get_running_loop().call_later(self.seconds, self._give_up)
        return watched

    def _give_up(self) -> None:
        now, waiting = monotonic(), self._watched
        while waiting and (waiting[0].future.done() or waiting[0].due <= now):
            watched = waiting.popleft()
            if not watched.future.done():
                watched.give_up()
        self._has_timer = bool(waiting)
        if waiting:
            asyncio.get_running_loop().call_later(waiting[0].due - now, self._give_up)


async def outcome(
    waiting: Awaitable[object], seconds: float
) -> tuple[object, BaseException | None]:
    """Return the result of `waiting`, or the exception that it ended with; see `Watched`."""
    watched = Watched(waiting, seconds)
    timer = asyncio.get_running_loop().call_later(seconds, watched.give_up)
    try:
        return await watched
    finally:
        timer.cancel()


def _no_result_within(seconds: float) -> OurOwnError:
    return OurOwnError(f"no result within {seconds:.3g} s")


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

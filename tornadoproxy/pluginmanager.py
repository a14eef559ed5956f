"""Calls the plugins' hooks, in order.

The calls are ours, and not pluggy's, since its own takes a coroutine for an answer, and lets one
failing plugin keep the rest from running. Which plugins there are, and in which order, is found in
`tornadoproxy.plugin_finder`.

*Asking* (`Plugins.authenticate`): one plugin after the other, until one answers. It fails closed:
a plugin that raises, answers nonsense or is late refuses the request, and the next is not asked.
While all answer synchronously there is neither a coroutine nor a clock.

*Telling* (`Plugins.request_finished`, `Plugins.shutdown`): every plugin, each isolated.

A plugin fails by whatever it raises. `SystemExit` is meant for a program of its own and must not
end this one, nor may a `KeyboardInterrupt`: while the loop runs, the real one is a signal that it
takes.

What a plugin raises may hold a credential in its text (``KeyError: 'sk-…'``). So what is told of
an exception is its type and where it was raised, never its text. Only a plugin that cannot be
loaded is quoted: it has not been shown anything yet.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import (
    AuthenticationFailed,
    ClientError,
    ConfigurationError,
    PluginFailed,
    ProxyError,
)
from tornadoproxy.exchange import Identity
from tornadoproxy.plugin_finder import FoundPlugins, PluginCall, PluginInfo, find
from tornadoproxy.settings import PLUGIN_TIMEOUT, Setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
    from importlib.metadata import EntryPoint
    from typing import TypeGuard

    from tornadoproxy.exchange import IncomingRequest, RequestRecord
    from tornadoproxy.settings import Settings

STARTUP_TIMEOUT = 30.0  # seconds, for each plugin
SHUTDOWN_TIMEOUT = 5.0  # seconds, for each plugin

_logger = logging.getLogger(__name__)


class Plugins:
    """The plugins of one proxy, in order. Made by `load`.

    :ivar failures: how often each plugin failed in `request_finished`, by its name.
    :ivar refusals: how often each failed in `authenticate`, so that a request was refused.
    """

    def __init__(self, found: FoundPlugins) -> None:
        self.failures: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._infos = found.described()
        self._declared = tuple(found.settings)
        self._settings: Settings | None = None
        self._timeout = PLUGIN_TIMEOUT.default
        self._configurers = found.calls("configure", "settings")
        self._authenticators = found.calls("authenticate", "request")
        self._observers = found.calls("request_finished", "record")
        self._starters = found.calls("startup")
        self._stoppers = found.calls("shutdown")
        self._unstarted = {starter.plugin for starter in self._starters}

    @classmethod
    def load(
        cls, disabled: Collection[str] = (), entry_points: Iterable[EntryPoint] | None = None
    ) -> Plugins:
        """Load and validate the plugins.

        :param disabled: names of those that are not even imported.
        :param entry_points: those to load, instead of the installed ones in the group
            ``tornadoproxy``.
        :raises ConfigurationError: with a line for each plugin that cannot be used, since it may
            be the one that was to keep people out; for each disabled one that does not exist; for
            two of one name; or because nobody authenticates.
        """
        found = find(disabled, entry_points)
        if found.faults:
            raise ConfigurationError(*found.faults)
        return cls(found)

    @classmethod
    def survey(
        cls, disabled: Collection[str] = (), entry_points: Iterable[EntryPoint] | None = None
    ) -> tuple[PluginInfo, ...]:
        """What `load` would find, described as `describe` does, then the broken ones."""
        return find(disabled, entry_points).described()

    def describe(self) -> tuple[PluginInfo, ...]:
        """The active plugins in the order asked, then the disabled ones."""
        return self._infos

    def declared_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        """The settings that the plugins declare."""
        return self._declared

    def configure(self, settings: Settings) -> tuple[tuple[str, str], ...]:
        """Hand out the settings: at start, and again when they have been read anew.

        :return: the name and the line of each plugin that gave one.
        :raises ConfigurationError: with the faults of all plugins. If there were settings before,
            all plugins have been given those again.
        """
        try:
            lines = self._configure_all(settings)
        except ConfigurationError:
            if self._settings is not None:
                self._go_back_to(self._settings)
            raise
        self._settings = settings
        self._timeout = settings[PLUGIN_TIMEOUT]
        return lines

    async def startup(self) -> None:
        """Start the plugins in order.

        :raises ConfigurationError: one failed; those that were started have been shut down.
        """
        for plugin, start in self._starters:
            error = await _failure(start, STARTUP_TIMEOUT)
            if error is not None:
                await self.shutdown()
                raise ConfigurationError(*_faults(plugin, "startup", error)) from None
            self._unstarted.discard(plugin)

    async def shutdown(self) -> None:
        """Shut the plugins down, once, in the reverse order; not those that were never started."""
        while self._stoppers:
            plugin, stop = self._stoppers.pop()
            if plugin in self._unstarted:
                continue
            error = await _failure(stop, SHUTDOWN_TIMEOUT)
            if error is not None:
                _log_failure("plugin %r failed in shutdown: %s", plugin, error)

    def authenticate(self, request: IncomingRequest) -> Identity | Awaitable[Identity]:
        """Ask who a request comes from, until one plugin answers.

        :return: the identity; an awaitable of it as soon as one plugin has to be awaited.
        :raises ClientError: a plugin's own refusal; `AuthenticationFailed` if none answered.
        :raises PluginFailed: a plugin raised anything else, answered nonsense or was late.
        """
        return self._ask(request, iter(self._authenticators), None)

    def request_finished(self, record: RequestRecord) -> None:
        """Tell what became of a request. Never raises."""
        for plugin, tell in self._observers:
            try:
                answer = tell(record)
            except BaseException as error:
                self._count_failure(plugin, error)
            else:
                if answer is not None and inspect.isawaitable(answer):
                    _discard(answer)
                    self._count_failure(plugin, _OurOwnError("an awaitable, which nobody awaits"))

    def _ask(
        self, request: IncomingRequest, remaining: Iterator[PluginCall], deadline: float | None
    ) -> Identity | Awaitable[Identity]:
        for plugin, ask in remaining:
            try:
                answer = ask(request)
            except BaseException as error:
                refusal = self._refusal(plugin, error)
            else:
                if answer is None:
                    continue
                if _vouches(answer):
                    return answer
                if inspect.isawaitable(answer):
                    deadline = deadline or asyncio.get_running_loop().time() + self._timeout
                    return self._ask_on(request, plugin, answer, remaining, deadline)
                refusal = self._refusal(plugin, _nonsense(answer))
            # out here, so that the plugin's own exception does not come along as the context
            raise refusal
        raise AuthenticationFailed(
            "A credential is needed: send it as x-api-key, or as Authorization: Bearer."
        )

    async def _ask_on(
        self,
        request: IncomingRequest,
        plugin: str,
        waiting: Awaitable[object],
        remaining: Iterator[PluginCall],
        deadline: float,
    ) -> Identity:
        """Wait for `plugin`'s answer, then ask those that remain."""
        left = deadline - asyncio.get_running_loop().time()
        answer, error = await _outcome(waiting, left)
        if error is not None:
            raise self._refusal(plugin, error)
        if answer is None:
            identity = self._ask(request, remaining, deadline)
            return identity if isinstance(identity, Identity) else await identity
        if _vouches(answer):
            return answer
        _discard(answer)
        raise self._refusal(plugin, _nonsense(answer))

    def _refusal(self, plugin: str, error: BaseException) -> ProxyError:
        """What ends a request when `plugin` raised `error`: that, if it was meant to."""
        if isinstance(error, ClientError) and 400 <= error.status <= 599:
            return error
        self.refusals[plugin] += 1
        _log_now_and_then(
            "plugin %r failed in authenticate, request refused",
            self.refusals[plugin],
            plugin,
            error,
        )
        return PluginFailed(
            "Authentication is unavailable at the moment: try again.", retry_after=1
        )

    def _configure_all(self, settings: Settings) -> tuple[tuple[str, str], ...]:
        lines: list[tuple[str, str]] = []
        faults: list[str] = []
        for plugin, configure in self._configurers:
            try:
                line = configure(settings)
            except BaseException as error:
                faults += _faults(plugin, "configure", error)
                continue
            if isinstance(line, str) and len(line.splitlines()) == 1:
                lines.append((plugin, line))
            elif line is not None:
                _discard(line)
                faults.append(f"plugin {plugin!r}: configure must answer one line of text, or None")
        if faults:
            raise ConfigurationError(*faults)
        return tuple(lines)

    def _go_back_to(self, settings: Settings) -> None:
        try:
            self._configure_all(settings)
        except ConfigurationError as error:
            faults = "; ".join(error.faults)
            # TRY400 wants a traceback, which would say nothing more here
            _logger.error("the settings before are refused, too: %s", faults)  # noqa: TRY400

    def _count_failure(self, plugin: str, error: BaseException) -> None:
        self.failures[plugin] += 1
        _log_now_and_then(
            "plugin %r failed in request_finished", self.failures[plugin], plugin, error
        )


class _OurOwnError(Exception):
    """A plugin's failure that we found out, and whose text is ours."""


class _WithheldError(Exception):
    """Stands in a log for an exception whose text is withheld; its own is the type's name."""


def _vouches(answer: object) -> TypeGuard[Identity]:
    return type(answer) is Identity and isinstance(answer.principal, str) and bool(answer.principal)


def _nonsense(answer: object) -> _OurOwnError:
    kind = type(answer).__name__
    return _OurOwnError(f"its {kind} is neither None nor an Identity with a principal")


async def _failure(function: Callable[[], object], seconds: float) -> BaseException | None:
    """What calling `function` ended with, and waiting for what it answers; ``None`` is well."""
    try:
        answer = function()
    except BaseException as error:
        return error
    if not inspect.isawaitable(answer):
        return None
    _, failure = await _outcome(answer, seconds)
    return failure


async def _outcome(
    waiting: Awaitable[object], seconds: float
) -> tuple[object, BaseException | None]:
    """The result of `waiting`, or the exception that it ended with.

    It is a task of its own, so that one that swallows its cancellation is left behind.
    """
    task = asyncio.ensure_future(_ended(waiting))
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
    finally:
        task.cancel()  # which does nothing to one that is done
    return task.result() if done else (None, _OurOwnError(f"no answer in {seconds:.3g} s"))


async def _ended(waiting: Awaitable[object]) -> tuple[object, BaseException | None]:
    """`_outcome` in its task, which never raises: asyncio would log the text of what it raised."""
    try:
        return await waiting, None
    except BaseException as error:
        return None, error


def _discard(answer: object) -> None:
    """End a coroutine that nobody will await, lest Python warn of it."""
    if inspect.iscoroutine(answer):
        answer.close()


def _faults(plugin: str, hook: str, error: BaseException) -> tuple[str, ...]:
    """What a plugin that raised `error` while the proxy starts is reported with."""
    if isinstance(error, ConfigurationError) and error.faults:
        return error.faults
    if isinstance(error, _OurOwnError):
        return (f"plugin {plugin!r} failed in {hook}: {error}",)
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"plugin {plugin!r} failed in {hook}: {type(error).__name__} "
        f"in {last.filename}, line {last.lineno}",
    )


def _log_now_and_then(message: str, count: int, plugin: str, error: BaseException) -> None:
    """Log at 1, 2, 4, 8 …: what fails for every request must not fill the disk."""
    if count & (count - 1) == 0:
        _log_failure(f"{message} ({count} so far): %s", plugin, error)


def _log_failure(message: str, plugin: str, error: BaseException) -> None:
    """Log `message`, made of the plugin's name and the type of `error`, and its traceback."""
    if isinstance(error, _OurOwnError):
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

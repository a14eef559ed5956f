"""The process of a server: its event loop and its signals.

The first SIGTERM or SIGINT drains the server; the exit status is 0. The second one aborts all
requests; the exit status is 1. SIGHUP reloads the settings.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

from tornadoproxy.config.consistency import contradictions
from tornadoproxy.config.core_settings import (
    CORE_SETTINGS,
    DRAIN_TIMEOUT,
    LOG_LEVEL,
    RELOADABLE,
    SHUTDOWN_DELAY,
)
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.server import logs
from tornadoproxy.server.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins

_logger = logging.getLogger(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT)
# seconds after the start, so that neither delays the first responses nor, at once, later ones
_LOADED = 1.0
_SETTLED = 2.0
_LAST_RECORDS = 1.0  # seconds for the records of aborted requests after the second signal
# new objects between two collections; a few requests in flight have Python's 700, none garbage
_YOUNG = 5_000
_EXIT_TIMEOUT = 3.0  # seconds for the event loop and the process to end


def run(main: Coroutine[Any, Any, int]) -> int:  # Any: what a coroutine yields is the loop's
    """Run `main` in uvloop if that is installed, otherwise in asyncio's own loop.

    The process ends soon afterwards, if necessary by force.

    :return: the exit status that `main` returns.
    """
    status = 1
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            status = runner.run(main)
        finally:
            _ignore_signals(runner.get_loop())
            # neither a task that cannot be cancelled nor a blocked thread may delay the exit
            watchdog = threading.Timer(_EXIT_TIMEOUT, lambda: os._exit(status))
            watchdog.daemon = True
            watchdog.start()
    return status


def _ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Keep a further signal from ending the process, as it would by default once `loop` is closed.

    Blocking alone is not enough: a thread that a plugin has left would get the signal.
    """
    handled = (*_STOP, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    for number in handled:
        loop.remove_signal_handler(number)  # restores the default, hence the block
        signal.signal(number, signal.SIG_IGN)


def loop_name() -> str:
    """Return the name of the running event loop: ``uvloop`` or ``asyncio``."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


async def serve(
    settings: Settings,
    plugins: Plugins,
    *,
    reload: Callable[[], Settings],
    announce: Callable[[int], None],
) -> int:
    """Serve until a signal stops the server.

    :param settings: those that `plugins` are configured with.
    :param reload: reads the settings anew; may raise `ConfigurationError`.
    :param announce: called once with the port, when the server listens.
    :return: the exit status.
    :raises ConfigurationError: the server cannot start.
    """
    return await _Process(settings, plugins, reload).run(announce)


class _Process:
    """A server with its signals."""

    def __init__(
        self, settings: Settings, plugins: Plugins, reload: Callable[[], Settings]
    ) -> None:
        self._settings = settings
        self._read_settings = reload
        self._server = Server(settings, plugins)
        self._first, self._second = asyncio.Event(), asyncio.Event()
        self._started = self._early_reload = False
        # a plugin may block the event loop forever in its shutdown
        graceful = settings[SHUTDOWN_DELAY] + settings[DRAIN_TIMEOUT]
        timeout = graceful + plugins.shutdown_timeout + _EXIT_TIMEOUT
        self._last_resort = threading.Timer(timeout, os._exit, (1,))
        self._last_resort.daemon = True

    async def run(self, announce: Callable[[int], None]) -> int:
        """Serve until a signal stops the server, and return the exit status."""
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._stop)
        # a SIGHUP during the start is handled after it; by default it would end the process
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        life = asyncio.create_task(self._live(announce))
        hurry = asyncio.create_task(self._second.wait())
        try:
            await asyncio.wait((life, hurry), return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                hurry.cancel()
                await life
                return 0
            _logger.warning("stopping now: aborting the requests in flight")
            self._server.abort()
            await asyncio.wait((life,), timeout=_LAST_RECORDS)
            return 1
        finally:
            self._last_resort.cancel()

    async def _live(self, announce: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        await self._server.start()
        self._started = True
        announce(self._server.port)
        if self._early_reload:
            self._reload()
        loop.call_later(_LOADED, self._server.load)
        loop.call_later(_SETTLED, _settle)
        await self._first.wait()
        await self._server.drain()

    def _stop(self) -> None:
        if self._first.is_set():
            self._second.set()
        else:
            self._first.set()
            self._last_resort.start()

    def _hang_up(self) -> None:
        if self._started:
            self._reload()
        else:
            self._early_reload = True

    def _reload(self) -> None:
        try:
            new = self._read_settings()
            in_force = _kept(self._settings, new)
            faults = contradictions(in_force)
            if not faults:
                self._server.reload(in_force)
        except ConfigurationError as error:
            faults = error.faults
        if faults:
            for fault in faults:
                _logger.error("SIGHUP: the settings stay as they were: %s", fault)
            return
        logs.set_level(in_force[LOG_LEVEL])
        for setting in in_force.changed(new):
            _logger.warning("SIGHUP: %s has changed; restart to apply it", setting.name)
        _logger.info("SIGHUP: reloaded secrets and the settings of plugins")


def _settle() -> None:
    """Enable the garbage collector, which ignores from then on what exists by now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
    gc.enable()


def _kept(started: Settings, new: Settings) -> Settings:
    """Return `new` with the values of `started` for the settings that only a restart applies.

    A plugin that decides by ``HOST`` whether authentication is required must see the address that
    the server listens on.
    """
    return new.keeping(started, [each for each in CORE_SETTINGS if each not in RELOADABLE])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

"""Runs a server in an event loop until a signal ends it.

SIGTERM or SIGINT: it drains, and the exit status is 0. Another one: everything is cut, and the
exit status is 1. SIGHUP: settings are read again.
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
from tornadoproxy.plugin.manager import SHUTDOWN_TIMEOUT
from tornadoproxy.server import logs
from tornadoproxy.server.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins

_logger = logging.getLogger(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT)
_SETTLED = 1.0  # seconds after the start, so as not to hold up the first answers
_LAST_RECORDS = 1.0  # seconds after the second signal, for what was cut to be recorded
_LAST_MOMENT = 3.0  # seconds for the event loop and the process to end


def run(main: Coroutine[Any, Any, int]) -> int:  # Any: what a coroutine yields is the loop's
    """Run `main` in uvloop, if that is installed, else in asyncio's own loop.

    It is the last that a process does: that ends soon after `main` has, by itself or not.

    :return: what it returns: the exit status.
    """
    status = 1
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            status = runner.run(main)
        finally:
            # one more would end the process by itself, once the loop does not take it any more
            signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP, signal.SIGHUP))
            # whatever does not let itself be cancelled, or blocks a thread, must not hold up the
            # end, nor may a thread that the interpreter waits for
            watchdog = threading.Timer(_LAST_MOMENT, lambda: os._exit(status))
            watchdog.daemon = True
            watchdog.start()
    return status


def loop_name() -> str:
    """Which event loop is running: ``uvloop`` or ``asyncio``."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


async def serve(
    settings: Settings,
    plugins: Plugins,
    *,
    read_again: Callable[[], Settings],
    announce: Callable[[int], None],
) -> int:
    """Serve until a signal says to stop.

    :param settings: configured already.
    :param plugins: loaded, and configured with them.
    :param read_again: reads the settings anew; may raise `ConfigurationError`.
    :param announce: called once with the port, when it listens.
    :return: the exit status.
    :raises ConfigurationError: it cannot start.
    """
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    # a plugin may block the event loop for ever in its shutdown
    orderly = settings[SHUTDOWN_DELAY] + settings[DRAIN_TIMEOUT]
    patience = orderly + SHUTDOWN_TIMEOUT * len(plugins.describe()) + _LAST_MOMENT
    last_resort = threading.Timer(patience, os._exit, (1,))
    last_resort.daemon = True

    def stop() -> None:
        if first.is_set():
            second.set()
        else:
            first.set()
            last_resort.start()

    for number in _STOP:
        loop.add_signal_handler(number, stop)
    server = Server(settings, plugins)
    # a reload that comes too early waits for the start; by default it would end the process
    early_reload = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, early_reload.set)

    async def live() -> None:
        await server.start()
        loop.add_signal_handler(signal.SIGHUP, _reload, server, settings, read_again)
        announce(server.port)
        if early_reload.is_set():
            _reload(server, settings, read_again)
        loop.call_later(_SETTLED, _settle)
        await first.wait()
        await server.drain()

    life = asyncio.create_task(live())
    hurry = asyncio.create_task(second.wait())
    try:
        await asyncio.wait((life, hurry), return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            hurry.cancel()
            await life
            return 0
        _logger.warning("stopping now: requests in flight are cut")
        server.abort()
        await asyncio.wait((life,), timeout=_LAST_RECORDS)
        return 1
    finally:
        last_resort.cancel()


def _settle() -> None:
    """What is there now stays: the garbage collector, off until now, need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _reload(server: Server, started: Settings, read_again: Callable[[], Settings]) -> None:
    try:
        new = read_again()
        in_force = _kept(started, new)
        faults = contradictions(in_force)
        if not faults:
            server.reload(in_force)
    except ConfigurationError as error:
        faults = error.faults
    if faults:
        for fault in faults:
            _logger.error("SIGHUP: the settings stay as they were: %s", fault)
        return
    logs.set_level(in_force[LOG_LEVEL])
    for setting in in_force.changed(new):
        _logger.warning("SIGHUP: %s has changed; it takes effect at the next start", setting.name)
    _logger.info("SIGHUP: secrets and the settings of plugins have been read again")


def _kept(started: Settings, new: Settings) -> Settings:
    """`new`, but for what only a start changes.

    A plugin that judges who may enter by HOST must see the one that is really listened on.
    """
    return new.replace(
        {setting: started[setting] for setting in CORE_SETTINGS if setting not in RELOADABLE}
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

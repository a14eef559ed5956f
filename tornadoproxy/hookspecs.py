"""The plugin contract: each hook, when it runs, what is known by then, what an answer means.

A plugin is a module or an instance with one or more functions marked `tornadoproxy.hookimpl`,
named by an entry point in the group ``tornadoproxy``. The plugins of this project have no
privilege over anyone else's. A function may take fewer arguments than its hook offers.

There are two kinds of hook. *Deciding* hooks are asked one after the other until one answers, and
fail closed: an exception, an answer of the wrong type or a deadline missed refuses the request.
*Observing* hooks are told one after the other, each isolated: an exception is logged with the
plugin's name, and changes nothing.

Plugins are asked in the order that ``python -m tornadoproxy plugins`` shows. ``tryfirst`` and
``trylast`` move one to the front or the back: ``@hookimpl(trylast=True)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from tornadoproxy.exchange import Identity, IncomingRequest, RequestRecord
    from tornadoproxy.settings import Setting, Settings

PROJECT = "tornadoproxy"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def declare_settings() -> Iterable[Setting[Any]]:  # type: ignore[empty-body]  # a specification
    """Name the plugin's own settings.

    Runs once, after the plugins are loaded and before any setting is read; also for ``--help``,
    ``check`` and ``plugins``. Each `Setting` then works like one of the core's: as a flag (unless
    it is secret), in the environment, in ``.env``, in ``--help``, and as ``settings[SETTING]``.

    An exception, a name that is taken, or anything but settings ends the start.
    """


@hookspec
def configure(settings: Settings) -> str | None:
    """Take the settings in, and refuse those that make no sense.

    Runs before the socket opens; again on SIGHUP, with settings read anew, while requests are
    in flight. Runs for ``check`` as well: it must not open a port, or write anything.

    Return one line that says who may enter, or what this plugin does; it is shown at start. It
    must not hold a credential. Raise `ConfigurationError` with one line that names the variable
    and the mend: at start the process ends with it; on SIGHUP it is logged, and every plugin is
    configured with the old settings again. Any other exception does the same, less readably.
    """


@hookspec
def startup() -> Awaitable[None] | None:
    """Open resources and start background tasks.

    Runs once, in the event loop, after every `configure` and before the socket opens. Sync or
    async, at most thirty seconds. An exception ends the start, and so does a deadline missed.
    """


@hookspec
def shutdown() -> Awaitable[None] | None:
    """Close what `startup` opened, and write out what is still held.

    Runs once, after the last request has been recorded, in the reverse order. Sync or async, at
    most five seconds. An exception is logged.
    """


@hookspec
def authenticate(request: IncomingRequest) -> Awaitable[Identity | None] | Identity | None:
    """Decide who a request comes from. Deciding; at least one plugin must implement it.

    Runs for every request but the public ones (``/health``, ``/ready`` and the connection
    probes), when its head has been read and before its body is; nothing has gone upstream.
    ``request.candidates()`` are the credentials that it presents. Sync or async, within
    ``PLUGIN_TIMEOUT`` seconds.

    - An `Identity`: accepted; no other plugin is asked.
    - ``None``: not mine; the next plugin is asked. If all say so, the answer is 401.
    - raise `AuthenticationFailed`: mine, and bad: 401, and no other plugin is asked.
    - raise `Denied`: known, and not allowed: its status, 403 by default.
    - any other exception or answer, or too late: 503, and nothing goes upstream.
    """


@hookspec
def request_finished(record: RequestRecord) -> None:
    """Learn what became of a request. Observing; must be sync, and must not block.

    Runs exactly once for each request that reached a handler, when it has ended, whichever way.
    The record is frozen. The client does not wait for it.
    """

"""The plugin contract: each hook, when it runs, what is known by then, what an answer means.

A plugin is a module or an object with one or more functions marked `tornadoproxy.hookimpl`. An
entry point in the group ``tornadoproxy`` names the module, or a class or a factory that is called
without arguments and makes the object. The plugins of this project have no privilege over anyone
else's. A function may take fewer arguments than its hook offers.

There are three kinds of hook. *Deciding* hooks are asked one after the other, and fail closed: an
exception, an answer of the wrong type or a deadline missed refuses the request. *Observing* hooks
are told one after the other, each isolated: an exception is logged with the plugin's name, and
changes nothing. *Declaring* hooks run once, and a failure ends the start.

Plugins are asked in the order that ``python -m tornadoproxy plugins`` shows. ``tryfirst`` and
``trylast`` move one to the front or the back: ``@hookimpl(trylast=True)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.authorization import ModelRequest, Permit
    from tornadoproxy.plugin.commands import Command
    from tornadoproxy.plugin.pages import Page
    from tornadoproxy.plugin.request import Identity, IncomingRequest, RequestRecord
    from tornadoproxy.plugin.status import Status
    from tornadoproxy.protocol.usage import Usage

PROJECT = "tornadoproxy"


class Inactive(Enum):
    """The type of `INACTIVE`."""

    INACTIVE = "inactive"


INACTIVE: Final = Inactive.INACTIVE
"""What `configure` answers for a plugin that the settings ask nothing of."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def declare_settings() -> Iterable[Setting[Any]]:  # type: ignore[empty-body]  # a specification
    """Name the plugin's own settings.

    Runs once, after the plugins are loaded and before any setting is read; also for ``--help``,
    ``check`` and ``plugins``. Each `Setting` then works like one of the core's: as a flag (unless
    it is secret), in the environment, in ``.env``, in ``help settings``, and as
    ``settings[SETTING]``.

    An exception, a name that is taken, or anything but settings ends the start.
    """


@hookspec
def commands() -> Iterable[Command]:  # type: ignore[empty-body]  # a specification
    """Offer commands of the plugin's own: ``python -m tornadoproxy NAME``. Declaring.

    Runs once, after the plugins are loaded; also for ``--help``. See `Command`. A name that is
    taken ends the start. A command works whether or not its plugin is active.
    """


@hookspec
def configure(settings: Settings) -> str | Inactive | None:
    """Take the settings in, and refuse those that make no sense.

    Runs before the socket opens; again on SIGHUP, with settings read anew, while requests are
    in flight. Runs for ``check`` as well: it must not open a port, or write anything.

    Return one line that says who may enter, or what this plugin does; it is shown at start. It
    must not hold a credential. Return `INACTIVE` if the settings ask nothing of this plugin: then
    none of its other hooks is called, and it costs nothing. Only a start turns a plugin on or off.

    Raise `ConfigurationError` with one line that names the variable
    and the mend: at start the process ends with it; on SIGHUP it is logged, and every plugin is
    configured with the old settings again. Any other exception does the same, less readably.
    """


@hookspec
def credential_headers() -> Iterable[str]:  # type: ignore[empty-body]  # a specification
    """Name the request headers that carry a credential of the plugin's own. Declaring.

    Runs after every `configure`, at start and on SIGHUP: a setting may name the header. From then
    on, none of them goes upstream or into a log, whichever plugin authenticates a request, and a
    SIGHUP takes none back. ``x-api-key``, ``authorization`` and ``cookie`` need not be named: those
    never go upstream.

    A name that is no header's, or is that of one that the protocol needs or logs show, ends the
    start.
    """


@hookspec
def pages() -> Iterable[Page]:  # type: ignore[empty-body]  # a specification
    """Offer pages of the plugin's own, such as ``/metrics``. Declaring.

    Runs once, after every `configure` and before `startup`. See `Page`. Unless it is public, a
    page is behind `authenticate`, `admit` and `authorize` like everything else. A public page that
    goes by a credential names a function as ``Page.admit``, which sees the head before the body
    is read. A page that hides a path of the proxy's own (``/health``, ``/v1/…``), or a page of
    another plugin, ends the start unless it is declared with ``overrides=True``.
    """


@hookspec
def startup(status: Callable[[], Status]) -> Awaitable[None] | None:
    """Open resources and start background tasks.

    Runs once, in the event loop, after every `configure` and before the socket opens. Sync or
    async, at most thirty seconds. An exception ends the start, and so does a deadline missed.
    ``status()`` gives the figures of the moment that it is called, from then on; see `Status`.
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
    ``PLUGIN_TIMEOUT`` seconds for each plugin; a sync one that blocks for longer is too late, too.
    An async one is cancelled when its client disconnects, and what it raises then is not counted
    as a failure.

    - An `Identity`: accepted; no other plugin is asked.
    - ``None``: not mine; the next plugin is asked. If all say so, the answer is the 401 of
      ``request.authentication_failed()``.
    - raise `AuthenticationFailed`: mine, and bad: 401, and no other plugin is asked. Claude Code
      hides a text that contains ``x-api-key``.
    - raise `Denied`: known, and not allowed: its status, 403 by default.
    - any other exception or answer, or too late: 503, and nothing goes upstream.
    """


@hookspec
def admit(request: IncomingRequest, identity: Identity) -> Awaitable[Permit | None] | Permit | None:
    """Decide whether a request's body may be read at all. Deciding; all must agree.

    Runs for every request that `authenticate` let in, when its head has been read and before its
    body is: the hook for limits of rate and concurrency, which a slow body must not get around.
    What the request asks of a model is not known yet; `authorize` is asked about that. Sync or
    async, within ``PLUGIN_TIMEOUT`` seconds for each plugin.

    - ``None``: no objection; the next plugin is asked.
    - a `Permit`: no objection, and what it says is done. Its ``settle`` is called exactly once,
      when the request is over, also when its client disconnects before the body is whole.
    - raise `Denied`: refused, with its status, type and ``retry_after``; nobody else is asked.
    - any other exception or answer, or too late: 503, as for `authorize`.
    """


@hookspec
def authorize(
    request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
) -> Awaitable[Permit | None] | Permit | None:
    """Decide whether a request may go on, now that it is known who asks. Deciding; all must agree.

    Runs for every request that `authenticate` let in. ``model_request`` says what a request for a
    message or a chat completion asks for: those are decided when their body is there, up to
    32 MB of which is held in memory for it. For every other request it is ``None``, and the body
    has not been read. Nothing has gone upstream. Sync or async, within ``PLUGIN_TIMEOUT`` seconds
    for each plugin.

    - ``None``: no objection; the next plugin is asked.
    - a `Permit`: no objection, and what it says is done. Its ``settle`` is called exactly once,
      also when another plugin refuses, or the client has left meanwhile.
    - raise `Denied`: refused, with its status, type and ``retry_after``; nobody else is asked.
    - any other exception or answer, or too late: 503, and nothing goes upstream. An async one
      that is too late is cancelled, and gives back what it had reserved; a `Permit` that it answers
      all the same is settled.

    Without a plugin that implements it, bodies are not looked into.
    """


@hookspec
def price(model: str, usage: Usage) -> int | None:
    """Say what tokens cost, in billionths of a US dollar. Deciding; the first answer counts.

    Runs when an answer is over that told of its tokens, for ``RequestRecord.cost``; and with
    estimates, before `authorize` is asked about a model. For a response that spent on several
    models it runs once for each, with that model's counts. Must be sync, and must not block.

    ``None``: not known; the next plugin is asked. An exception or anything but a whole number
    from 0 on is logged, and taken for ``None``: then the cost is ``None``, which is not free.
    """


@hookspec
def request_finished(record: RequestRecord) -> None:
    """Learn what became of a request. Observing; must be sync, and must not block.

    Runs exactly once for each request that reached a handler, when it has ended, whichever way.
    The record is frozen. The client does not wait for it.
    """

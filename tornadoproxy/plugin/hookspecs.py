"""The plugin contract: each hook, when it runs, what is known by then, what its result means.

A plugin is a module or an object with functions marked `tornadoproxy.hookimpl`. An entry point in
the group ``tornadoproxy`` names the module, or a class or factory that is called without arguments
and makes the object. The plugins of this project have no privilege over others. A function may take
fewer arguments than its hook offers.

There are three kinds of hook. *Deciding* hooks are asked one after the other and fail closed: an
exception, an invalid result or a missed deadline refuses the request. *Observing* hooks are called
one after the other, each isolated: an exception is logged with the plugin's name and changes
nothing. *Declaring* hooks run once, and a failure ends the start.

``python -m tornadoproxy plugins`` shows the order in which plugins are asked. ``tryfirst`` and
``trylast`` move a plugin to the front or the back: ``@hookimpl(trylast=True)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pluggy

if TYPE_CHECKING:
    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream
    from tornadoproxy.config.upstreams_file import UpstreamEntries
    from tornadoproxy.plugin.admin.api import Api
    from tornadoproxy.plugin.command.commands import Command
    from tornadoproxy.plugin.decisions import AllowedModels, Permit
    from tornadoproxy.plugin.observing import Observer
    from tornadoproxy.plugin.request import Identity, IncomingRequest, ModelRequest, RequestRecord
    from tornadoproxy.plugin.responding import ModelResponse
    from tornadoproxy.plugin.status import Status
    from tornadoproxy.plugin.web.pages import Page
    from tornadoproxy.plugin.web.running_proxy import RunningProxy
    from tornadoproxy.plugin.web.sign_in import SignInWay
    from tornadoproxy.protocol.usage import Usage
    from tornadoproxy.protocol.wire import OutgoingRequest
    from tornadoproxy.storage.contract import DatabaseLocation, DatabaseStatus
    from tornadoproxy.storage.database import Database

    DatabaseSetting: TypeAlias = Setting[DatabaseLocation | None]
    OpenDatabase: TypeAlias = Callable[[DatabaseLocation], Database]

PROJECT = "tornadoproxy"


class Inactive(Enum):
    """The type of `INACTIVE`."""

    INACTIVE = "inactive"


INACTIVE: Final = Inactive.INACTIVE
"""The result of `configure` for a plugin that the settings do not use."""


hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def declare_settings() -> Iterable[Setting[Any]]:  # type: ignore[empty-body]  # a specification
    """Return the plugin's own settings. Declaring.

    Runs once, after the plugins are loaded and before any setting is read; also for ``--help``,
    ``check`` and ``plugins``. Each `Setting` then works like one of the core's: as a flag (unless
    it is secret), in the environment, in ``.env``, in ``help settings``, and as
    ``settings[SETTING]``.

    An exception, a name that is taken, or anything but settings ends the start.
    """


@hookspec
def commands() -> Iterable[Command]:  # type: ignore[empty-body]  # a specification
    """Return the plugin's own commands: ``python -m tornadoproxy NAME``. Declaring.

    Runs once, after the plugins are loaded; also for ``--help``. See `Command`. A name that is
    taken ends the start. A command works whether or not its plugin is active.
    """


@hookspec
def databases() -> Mapping[DatabaseSetting, OpenDatabase]:  # type: ignore[empty-body]  # a specification
    """Return how to make a `Database` of what each of the plugin's settings names. Declaring.

    Runs for the command ``db`` alone, which shows, migrates and copies the databases of all
    plugins. A setting is one of those that the plugin declares, parsed by `parsers.database`; its
    function takes the value, a path or a URL, and must not open anything: ``{MY_DB: database}``.

    An exception or another result ends the command.
    """


@hookspec
def configure(settings: Settings) -> str | Inactive | None:
    """Take the settings, and refuse invalid ones. Declaring.

    Runs before the socket opens; again on SIGHUP, with reloaded settings, while requests are
    in flight. Runs for ``check`` as well: it must not open a port or write anything.

    Return one line that says who may enter or what this plugin does; it is shown at start. It
    must not hold a credential. Return `INACTIVE` if the settings do not use this plugin: then
    none of its other hooks is called, and it costs nothing. Activating or deactivating a plugin
    requires a restart.

    Raise `ConfigurationError` with one line that names the variable and what to do: at start the
    process ends with it; on SIGHUP it is logged, and every plugin is configured with the earlier
    settings again. Any other exception does the same, but is reported by its type alone.
    """


@hookspec
def upstreams(entries: UpstreamEntries) -> Iterable[Upstream]:  # type: ignore[empty-body]  # a specification
    """Return upstreams, and how each is reached. Declaring.

    Runs after every `configure`, at start and on SIGHUP. ``entries`` are those of
    ``UPSTREAMS_FILE``, of which a plugin takes the kinds that it brings:
    ``entries.of_kind("acme")``; see `UpstreamEntry`. It may return others as well. A `Wire` says
    how requests and responses of an upstream differ from the Anthropic API's. Must be sync, and
    must not ask the network: credentials are loaded when the first request needs them.

    An exception, a name that is taken, or anything but upstreams ends the start; on SIGHUP it is
    logged, and the earlier upstreams stay.
    """


@hookspec
def credential_headers() -> Iterable[str]:  # type: ignore[empty-body]  # a specification
    """Return the request headers that carry the plugin's own credential. Declaring.

    Runs after every `configure`, at start and on SIGHUP: a setting may name the header. From then
    on, none of them goes upstream or into a log, whichever plugin authenticates a request, and a
    SIGHUP takes none back. ``x-api-key``, ``authorization`` and ``cookie`` need not be returned:
    those never go upstream.

    An invalid header name, or a header that the protocol needs or logs show, ends the start.
    """


@hookspec
def pages(admin_apis: Callable[[], Sequence[Api]], proxy: RunningProxy) -> Iterable[Page]:  # type: ignore[empty-body]  # a specification
    """Return the plugin's own pages, such as ``/metrics``. Declaring.

    Runs once, after every `configure` and before `startup`. See `Page`. Unless it is public, a
    page is behind `authenticate`, `admit` and `authorize` like every other path. A public page that
    requires a credential sets ``Page.admit``, which runs on the request headers before the body
    is read. A page that hides a path of the proxy's own (``/health``, ``/v1/…``) or of another
    plugin ends the start unless it is declared with ``overrides=True``. ``admin_apis()`` returns
    what `admin_api` has returned, for the plugin that serves the Admin API. By ``proxy`` a page
    asks other pages and `authenticate` in process; see `RunningProxy`.
    """


@hookspec
def admin_api() -> Api | None:
    """Return the plugin's part of the Admin API: its resources and their audit trails. Declaring.

    Runs once, after every `configure` and before `startup`, if a plugin serves the Admin API:
    ``admin`` does with ``ADMIN_KEY``. See `tornadoproxy.admin`. That plugin authenticates the
    requests; a resource is called for those that an admin key permits, within ``PLUGIN_TIMEOUT``
    seconds. Return ``None`` if there is nothing to administer. An exception, or another result,
    ends the start.
    """


@hookspec
def sign_in_ways() -> Iterable[SignInWay]:  # type: ignore[empty-body]  # a specification
    """Return ways in which people can sign in with a browser. Declaring.

    Runs once, after every `configure` and before `pages`. See `SignInWay`. A page with sessions of
    its own gets all ways by ``proxy.sign_in_ways()``, offers them, and calls the one that a person
    chooses: the web console does. An exception, a name that another plugin has, or anything but
    those ends the start.
    """


@hookspec
def startup(status: Callable[[], Status]) -> Awaitable[None] | None:
    """Open resources and start background tasks.

    Runs once, in the event loop, after every `configure` and before the socket opens. Sync or
    async, at most thirty seconds. An exception or a missed deadline ends the start. From then on
    ``status()`` returns the current figures; see `Status`.
    """


@hookspec
def shutdown() -> Awaitable[None] | None:
    """Close what `startup` opened, and write out what is still held.

    Runs once, after the last request has been recorded, in the reverse order. Sync or async, at
    most five seconds. An exception is logged.
    """


@hookspec
def database_status() -> Iterable[DatabaseStatus]:  # type: ignore[empty-body]  # a specification
    """Return the state of each database that the plugin uses. Observing; sync, must not block.

    Runs after `startup`, whenever ``/ready`` is asked for and for `Status`. `Database.status` and
    `SharedCounters.status` are what to return; a plugin may make a `DatabaseStatus` for a server
    of another kind. Everybody who reaches the proxy can see them, so they must hold no secret.

    An exception, or anything but those, is logged, and the plugin's databases are not shown.
    """


@hookspec
def authenticate(request: IncomingRequest) -> Awaitable[Identity | None] | Identity | None:
    """Decide who a request comes from. Deciding; at least one plugin must implement it.

    Runs for every request but the public ones (``/health``, ``/ready`` and the connection
    probes), once its headers have been read and before its body is; nothing has gone upstream.
    ``request.candidates()`` are the credentials that it presents. Sync or async, within
    ``PLUGIN_TIMEOUT`` seconds for each plugin; a sync one that blocks for longer is too late as
    well. An async one is cancelled when its client disconnects, and what it raises then does not
    count as a failure.

    - an `Identity`: accepted; no other plugin is asked.
    - ``None``: not this plugin's credential; the next plugin is asked. If every plugin returns
      ``None``, the response is the 401 of ``request.authentication_failed()``.
    - raise `AuthenticationFailed`: this plugin's credential, and invalid: 401, and no other plugin
      is asked. Claude Code hides a text that contains ``x-api-key``.
    - raise `Denied`: known, and refused: its status, 403 by default.
    - any other exception or result, or a missed deadline: 503, and nothing goes upstream.
    """


@hookspec
def admit(request: IncomingRequest, identity: Identity) -> Awaitable[Permit | None] | Permit | None:
    """Decide whether a request's body may be read at all. Deciding; all must agree.

    Runs for every request that `authenticate` accepted, once its headers have been read and before
    its body is: the hook for limits of rate and concurrency, which a slow body must not evade.
    The model that it asks for is not known yet; `authorize` decides on that. Sync or async, within
    ``PLUGIN_TIMEOUT`` seconds for each plugin. If the body has arrived together with the headers,
    an async one may still be waiting when `authorize` runs; the request goes nowhere before it
    has ended.

    - ``None``: no objection; the next plugin is asked.
    - a `Permit`: no objection, with its consequences. Its ``settle`` is called exactly once, when
      the request has ended, also when its client disconnects before the body is complete.
    - raise `Denied`: refused, with its status, type and ``retry_after``; no other plugin is asked.
    - any other exception or result, or a missed deadline: 503, as for `authorize`.
    """


@hookspec
def authorize(
    request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
) -> Awaitable[Permit | None] | Permit | None:
    """Decide whether an authenticated request may go on. Deciding; all must agree.

    Runs for every request that `authenticate` accepted. ``model_request`` describes a request for
    a message, a chat completion or a response of OpenAI's: those are decided once their body is
    complete, up to 32 MB of which is held in memory for it. For every other request it is ``None``,
    and the body has not been read. Nothing has gone upstream. Sync or async, within
    ``PLUGIN_TIMEOUT`` seconds for each plugin.

    - ``None``: no objection; the next plugin is asked.
    - a `Permit`: no objection, with its consequences. Its ``settle`` is called exactly once, also
      when another plugin refuses, or the client has disconnected meanwhile.
    - raise `Denied`: refused, with its status, type and ``retry_after``; no other plugin is asked.
    - any other exception or result, or a missed deadline: 503, and nothing goes upstream. An async
      plugin that misses it is cancelled and must give back what it reserved; a `Permit` that it
      returns nevertheless is settled.

    Without a plugin that implements it, bodies are not parsed for it.
    """


@hookspec
def allowed_models(
    identity: Identity,
) -> Awaitable[AllowedModels | None] | AllowedModels | None:
    """Return the models that a client may use, for the list of models. Deciding; all must agree.

    Runs when a client asks for the list of models or for one of them: it gets the models that all
    results allow. Return what the plugin's own `authorize` checks, so that both agree. Sync or
    async, within ``PLUGIN_TIMEOUT`` seconds for each plugin.

    - ``None``: all models; the next plugin is asked. If every plugin returns ``None``, the request
      is relayed as it is.
    - an `AllowedModels`: those.
    - any exception or other result, or a missed deadline: 503.
    """


@hookspec
def respond(
    request: IncomingRequest, identity: Identity, model_request: ModelRequest, body: bytes
) -> Awaitable[ModelResponse | None] | ModelResponse | None:
    """Respond to a request for a model in place of the upstream. Deciding; the first counts.

    Runs once such a request is authorized: for a message, a chat completion or a response of
    OpenAI's. ``body`` is in the form of the Messages API, whatever the client's is. Sync or async,
    within ``PLUGIN_TIMEOUT`` seconds for each plugin.

    - ``None``: no response of this plugin's; the next plugin is asked. If every plugin returns
      ``None``, the request goes upstream.
    - a `ModelResponse`: sent to the client, as a stream if it asked for one, in the form of its
      API. Nothing goes upstream, and the request costs nothing.
    - raise `Denied`: refused, as in `authorize`.
    - any other exception or result, or a missed deadline: 503, and nothing goes upstream.
    """


@hookspec
def choose_upstream(
    request: IncomingRequest,
    identity: Identity,
    model_request: ModelRequest | None,
    upstreams: tuple[str, ...],
) -> Awaitable[Sequence[str] | None] | Sequence[str] | None:
    """Choose the upstreams that a request may go to, in this order. Deciding; the first counts.

    Runs once the request is authorized, if the proxy has several upstreams. ``upstreams`` are the
    names of those that can serve it, perhaps only one, in the order in which the proxy would try
    them. A request that names a file or a batch goes to the upstream that has it.
    ``model_request`` is as for `authorize`. Sync or async, within ``PLUGIN_TIMEOUT`` seconds for
    each plugin.

    - ``None``: no opinion; the next plugin is asked. Without any, the order is the proxy's.
    - names: only those are tried, in this order; one that rests after failures comes last.
    - raise `Denied`: refused, as in `authorize`.
    - any other exception or result, an unknown name, or a missed deadline: 503.
    """


@hookspec
def prepare_request(
    request: IncomingRequest, identity: Identity, outgoing: OutgoingRequest
) -> Awaitable[OutgoingRequest | None] | OutgoingRequest | None:
    """Change what is sent to an upstream. Deciding; each gets what the one before returned.

    Runs for each attempt to send a request, after the upstream is chosen, and before the request
    gets the upstream's form and credential. ``outgoing`` is in the form of the Anthropic API,
    whatever the client's is. Its body is whole for messages, OpenAI's chat completions and
    responses, and counts of their tokens, up to 32 MB; for every other request that has a body it
    is ``None`` if the body is streamed, as most over 1 MiB are: then it can be neither seen nor
    replaced. The headers hold no credential of the client's; a header that is added may be one.
    Sync or async, within
    ``PLUGIN_TIMEOUT`` seconds for each plugin.

    - ``None``: unchanged, byte for byte.
    - an `OutgoingRequest`: sent in its place; ``msgspec.structs.replace`` makes it.
    - raise `Denied` or `InvalidRequest`: refused; nothing is sent.
    - any other exception or result, or a missed deadline: 503, and nothing is sent.
    """


@hookspec
def observe(
    request: IncomingRequest, identity: Identity, credential_headers: frozenset[str]
) -> Observer | None:
    """Return who observes what passes in a request. Observing; must be sync, and must not block.

    Runs once a request is admitted, before its body is read. An `Observer` sees body and response
    as they pass between the client and this proxy; each call of it is isolated. Without one, a
    request costs nothing more. ``credential_headers`` are the names of the request headers that
    carry credentials, those that plugins declare included, in ``Http-Header-Case``; none of them
    may be kept.
    """


@hookspec
def price(model: str, usage: Usage) -> int | None:
    """Return what tokens cost, in billionths of a US dollar. Deciding; the first cost counts.

    Runs when a response that reported usage has ended, for ``RequestRecord.cost``; and with
    estimates, before `authorize` decides on a model. For a response that used several models it
    runs once for each, with that model's counts. Must be sync, and must not block.

    ``None``: unknown; the next plugin is asked. An exception or anything but an int from 0 on is
    logged and counts as ``None``: then the cost is ``None``, which does not mean free.
    """


@hookspec
def request_finished(record: RequestRecord) -> None:
    """Take the record of a request that has ended. Observing; must be sync, and must not block.

    Runs exactly once for each request that reached a handler, whichever way it ended. The record
    is frozen. The client does not wait for this hook.
    """

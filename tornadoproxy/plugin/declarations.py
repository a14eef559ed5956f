"""The plugins' declarations at start and on SIGHUP, validated.

An invalid declaration raises a `ConfigurationError` with the faults of all plugins.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy.config.consistency import of_upstream
from tornadoproxy.config.core_settings import UPSTREAMS_FILE
from tornadoproxy.config.upstreams import Upstream, UpstreamsOrder, default_upstreams
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.failures import OurOwnError, discard, faults_of
from tornadoproxy.plugin.hookspecs import INACTIVE
from tornadoproxy.plugin.web.pages import Page, hidden_paths
from tornadoproxy.plugin.web.running_proxy import PluginState, RunningProxy
from tornadoproxy.protocol.headers import credential_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.admin.api import Api
    from tornadoproxy.plugin.hookspecs import DatabaseSetting, OpenDatabase
    from tornadoproxy.plugin.loading.discovery import PluginInfo
    from tornadoproxy.plugin.loading.implementations import PluginCall
    from tornadoproxy.plugin.web.sign_in import SignInWay
    from tornadoproxy.storage.contract import DatabaseStatus

T = TypeVar("T")

_logger = logging.getLogger(__name__)


def configure_all(
    calls: list[PluginCall], settings: Settings
) -> tuple[tuple[tuple[str, str], ...], frozenset[str]]:
    """Configure every plugin; return their lines and the names of the inactive ones."""
    results, faults = _ask_all("configure", calls, _checked_line, settings)
    if faults:
        raise ConfigurationError(*faults)
    lines = tuple((plugin, line) for plugin, line in results if isinstance(line, str))
    return lines, frozenset(plugin for plugin, line in results if line is INACTIVE)


def configure_again(calls: list[PluginCall], settings: Settings) -> None:
    """Configure every plugin with the earlier settings, because the new ones were refused."""
    try:
        configure_all(calls, settings)
    except ConfigurationError as error:
        faults = "; ".join(error.faults)
        # TRY400 wants a traceback, which would say nothing more here
        _logger.error("the earlier settings are refused as well: %s", faults)  # noqa: TRY400


def states_of(infos: Iterable[PluginInfo], lines: Mapping[str, str]) -> tuple[PluginState, ...]:
    """Return what pages can see of the plugins, in the order asked.

    :param lines: what each plugin's `configure` returned.
    """
    return tuple(
        PluginState(info.name, info.state, info.version, lines.get(info.name)) for info in infos
    )


def check_fixed(before: Settings, after: Settings, declared: Iterable[Setting[Any]]) -> None:
    """Refuse a reload that changes a fixed setting among `declared`."""
    changed = [each.name for each in declared if each.fixed and before[each] != after[each]]
    if changed:
        raise ConfigurationError(
            *(f"{name} cannot change while the proxy runs; restart to apply." for name in changed)
        )


def check_unchanged(before: frozenset[str], inactive: frozenset[str]) -> None:
    """Refuse a reload that would activate or deactivate a plugin."""
    if inactive != before:
        raise ConfigurationError(
            *(
                f"plugin {plugin!r} cannot be turned on or off by a reload: restart to apply"
                for plugin in sorted(inactive ^ before)
            )
        )


def credential_headers_of(calls: list[PluginCall]) -> frozenset[str]:
    """Return the names of all credential headers, in ``Http-Header-Case``."""
    results, faults = _ask_all("credential_headers", calls, _checked_names)
    if faults:
        raise ConfigurationError(*faults)
    return frozenset(name for _, names in results for name in names)


def admin_apis_of(calls: list[PluginCall]) -> tuple[Api, ...]:
    """Return the parts of the Admin API that plugins declare."""
    results, faults = _ask_all("admin_api", calls, _checked_api)
    if faults:
        raise ConfigurationError(*faults)
    return tuple(api for _, api in results if api is not None)


def pages_of(
    calls: list[PluginCall], admin_apis: Callable[[], Sequence[Api]], proxy: RunningProxy
) -> tuple[tuple[str, Page], ...]:
    """Return all pages with their plugins' names; those that override come first."""
    results, faults = _ask_all("pages", calls, _checked_pages, admin_apis, proxy)
    pages = [(plugin, page) for plugin, made in results for page in made]
    faults += (f"plugin {plugin!r} failed in pages: {text}" for plugin, text in hidden_paths(pages))
    if faults:
        raise ConfigurationError(*faults)
    pages.sort(key=lambda each: not each[1].overrides)
    return tuple(pages)


def sign_in_ways_of(calls: list[PluginCall]) -> tuple[SignInWay, ...]:
    """Return the ways to sign in with a browser."""
    results, faults = _ask_all("sign_in_ways", calls, _checked_ways)
    ways = tuple(way for _, made in results for way in made)
    for name, count in Counter(way.name for way in ways).items():
        if count > 1:
            faults.append(f"there are several ways to sign in of the name {name!r}: rename one")
    if faults:
        raise ConfigurationError(*faults)
    return ways


def upstreams_of(
    calls: list[PluginCall], settings: Settings
) -> tuple[tuple[Upstream, ...], UpstreamsOrder]:
    """Return all upstreams, and how one of them is chosen.

    Those of the file come first, in its order.
    """
    file = settings[UPSTREAMS_FILE]
    found = [] if file else [*default_upstreams(settings)]
    faults = [fault for each in found for fault in of_upstream(settings, each)]
    order = UpstreamsOrder()
    if file or calls:
        # few starts need it
        from tornadoproxy.config.upstreams_file import UpstreamEntries

        entries = UpstreamEntries(file, settings)
        more = [entry.upstream() for entry in entries.of_kind("anthropic")]
        results, own_faults = _ask_all("upstreams", calls, _checked_upstreams, entries)
        more += [upstream for _, made in results for upstream in made]
        more.sort(key=lambda each: entries.place(each.name))
        order = entries.order()
        entries.check()
        found += more
        faults += [*own_faults, *entries.faults]
        faults += [fault for each in more for fault in of_upstream(settings, each)]
        faults += _same_names(found) if not entries.faults else ()
    if faults:
        raise ConfigurationError(*faults)
    return tuple(found), order


def databases_of(
    calls: list[PluginCall], settings: Iterable[Setting[Any]]
) -> tuple[tuple[str, DatabaseSetting, OpenDatabase], ...]:
    """Return each plugin's name, and how to make what a setting of it names a `Database`.

    :param settings: the settings that plugins declare.
    """
    declared = frozenset(settings)

    def checked(_plugin: str, made: Mapping[DatabaseSetting, OpenDatabase]) -> list[Any]:
        for setting, function in made.items():
            if setting not in declared or not callable(function):
                raise OurOwnError("it must return a dict: a declared setting, and a function")
        return list(made.items())

    results, faults = _ask_all("databases", calls, checked)
    if faults:
        raise ConfigurationError(*faults)
    return tuple((plugin, *item) for plugin, items in results for item in items)


def checked_states(states: Iterable[object]) -> tuple[DatabaseStatus, ...]:
    """Return the result of ``database_status``.

    :raises OurOwnError: it is not one.
    """
    from tornadoproxy.storage.contract import DatabaseStatus  # most proxies have no database

    checked = []
    for each in states:
        if not isinstance(each, DatabaseStatus):
            raise OurOwnError(f"its {type(each).__name__} is not a DatabaseStatus")
        checked.append(each)
    return tuple(checked)


def _ask_all(
    hook: str,
    calls: list[PluginCall],
    check: Callable[[str, Any], T],  # Any: a plugin may return anything
    *asked: object,
) -> tuple[list[tuple[str, T]], list[str]]:
    """Return what `check` makes of each plugin's result, and all faults."""
    results: list[tuple[str, T]] = []
    faults: list[str] = []
    for plugin, ask in calls:
        try:
            results.append((plugin, check(plugin, ask(*asked))))
        except BaseException as error:
            faults += faults_of(plugin, hook, error)
    return results, faults


def _checked_api(_plugin: str, api: object) -> Api | None:
    from tornadoproxy.plugin.admin.api import Api  # few proxies serve the Admin API

    if api is not None and not isinstance(api, Api):
        raise OurOwnError(f"its {type(api).__name__} is not an admin.Api")
    return api


def _checked_ways(_plugin: str, ways: Iterable[object]) -> list[SignInWay]:
    from tornadoproxy.plugin.web.sign_in import SignInWay  # few proxies have one

    made = []
    for way in ways:
        if not isinstance(way, SignInWay):
            raise OurOwnError(f"its {type(way).__name__} is not a SignInWay")
        if not re.fullmatch("[a-z0-9-]+", way.name):
            raise OurOwnError(f"the name {way.name!r} has other than a-z, 0-9 and dashes")
        made.append(way)
    return made


def _checked_line(plugin: str, line: object) -> object:
    if line is None or line is INACTIVE or (isinstance(line, str) and len(line.splitlines()) == 1):
        return line
    discard(line)
    raise ConfigurationError(f"plugin {plugin!r}: configure must return one line of text, or None")


def _checked_names(_plugin: str, names: Iterable[object]) -> list[str]:
    if isinstance(names, str):
        raise OurOwnError("it must return a list of header names, not a str")
    return [_checked_name(name) for name in names]


def _checked_name(name: object) -> str:
    try:
        return credential_name(name)
    except ValueError as error:
        raise OurOwnError(f"{name!r} {error}") from None


def _checked_upstreams(_plugin: str, found: Iterable[object]) -> list[Upstream]:
    made = []
    for upstream in found:
        if not isinstance(upstream, Upstream):
            raise OurOwnError(f"its {type(upstream).__name__} is not an Upstream")
        made.append(upstream)
    return made


def _same_names(upstreams: Iterable[Upstream]) -> Iterator[str]:
    for name, count in Counter(each.name for each in upstreams).items():
        if count > 1:
            yield f"there are several upstreams of the name {name!r}: rename one"


def _checked_pages(_plugin: str, pages: Iterable[object]) -> list[Page]:
    return [_checked_page(page) for page in pages]


def _checked_page(page: object) -> Page:
    if not isinstance(page, Page):
        raise OurOwnError(f"its {type(page).__name__} is not a Page")
    if not page.path.startswith("/"):
        raise OurOwnError(f"the path of its page must begin with a slash, unlike {page.path!r}")
    try:
        re.compile(page.path)
    except re.error as error:
        raise OurOwnError(f"{page.path!r} is not a regular expression: {error}") from None
    for name in ("public", "overrides"):
        if not isinstance(getattr(page, name), bool):  # "no" would count as true
            raise OurOwnError(f"{name} of its page {page.path} must be a bool")
    methods: object = page.methods
    if not isinstance(methods, (tuple, list)) or not all(str(each).isupper() for each in methods):
        raise OurOwnError(f"methods of its page {page.path} must be a tuple such as ('GET',)")
    return page

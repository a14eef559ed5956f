"""The proxy in front of an embedded scripted upstream: needs no key and no network."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli import banner
from tornadoproxy.config.core_settings import (
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_BASE_URL,
)
from tornadoproxy.config.urls import base_url
from tornadoproxy.fakes.anthropic_api import ScriptedUpstream
from tornadoproxy.secret import Secret
from tornadoproxy.server import runner
from tornadoproxy.server.configuration import Configuration, configure

if TYPE_CHECKING:
    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins
    from tornadoproxy.server.line_writer import LineWriter

_DELAY = 0.05  # seconds between the events of an answer, so that one sees them stream

# the default authenticator's; whoever sets one of them has decided who may enter
_TOKEN = "AUTH_TOKEN"  # noqa: S105  # a variable's name
_ENTRANCE = frozenset({_TOKEN, "AUTH_TOKEN_FILE", "ALLOW_ANONYMOUS"})


async def serve_demo(
    configuration: Configuration, plugins: Plugins, settings: Settings, writer: LineWriter
) -> int:
    """Serve until a signal says to stop.

    Unless it has been set who may enter, a token is made up for this run, and shown: it opens the
    way to a script.

    :param writer: for what is shown.
    :return: the exit status.
    :raises ConfigurationError: it cannot start.
    """
    upstream = ScriptedUpstream(delay=_DELAY)
    await upstream.start()
    try:
        token, entrance = _entrance(settings, plugins)
        own: dict[Setting[Any], Any] = {
            UPSTREAM_BASE_URL: base_url(upstream.url),
            UPSTREAM_API_KEY: Secret("demo"),
            UPSTREAM_API_KEY_FILE: None,
            **entrance,
        }
        settings = settings.replace(own)
        plugin_lines = configure(plugins, settings)

        def announce(port: int) -> None:
            facts = {
                **dict(banner.facts(settings, port, plugin_lines, plugins.describe())),
                "upstream": "a script in this process",
                "event loop": runner.loop_name(),
            }
            sent = token or banner.VARIABLE
            before: tuple[str, ...] = ()
            if token is None:
                sources = configuration.sources(plugins)
                before = banner.credential(settings, sources, plugins.declared_settings())
            lines = banner.banner(settings, port, tuple(facts.items()), sent, *before)
            for line in (
                "This is a demo: the answers come from a script, not from Claude.",
                *lines,
                "to see an answer stream:",
                banner.streaming_curl(settings, port, sent),
            ):
                writer.write(line.encode())

        return await runner.serve(
            settings,
            plugins,
            reload=lambda: configuration.settings(plugins).replace(own),
            announce=announce,
        )
    finally:
        await upstream.stop()


def _entrance(
    settings: Settings, plugins: Plugins
) -> tuple[str | None, dict[Setting[Any], Any]]:  # Any: the value is the plugin's
    """A token made up for this run, and the setting that takes it, unless it is set who enters."""
    declared = {setting.name: setting for setting in plugins.declared_settings()}
    if _TOKEN not in declared:
        return None, {}
    if any(settings.variable(declared[name]) for name in _ENTRANCE & declared.keys()):
        return None, {}
    token = secrets.token_urlsafe(32)
    return token, {declared[_TOKEN]: declared[_TOKEN].parse(token)}

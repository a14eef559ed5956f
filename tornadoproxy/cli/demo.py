"""The command ``demo``: the proxy in front of a scripted upstream in the same process."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli import banner
from tornadoproxy.config.core_settings import (
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_API_KEYS,
    UPSTREAM_BASE_URL,
    UPSTREAMS_FILE,
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

_DELAY = 0.05  # seconds between the events of a response, so that they visibly stream

# the settings of the token plugin; if one is set, the demo makes no token
_TOKEN = "AUTH_TOKEN"  # noqa: S105  # a variable's name
_ACCESS = frozenset({_TOKEN, "AUTH_TOKEN_FILE", "ALLOW_ANONYMOUS"})


async def serve_demo(
    configuration: Configuration, plugins: Plugins, settings: Settings, writer: LineWriter
) -> int:
    """Serve until a stop signal.

    Unless access is configured, a token is made for this run and shown: it gives access to a script
    only.

    :param writer: for the lines that are shown.
    :return: the exit status.
    :raises ConfigurationError: the proxy cannot start.
    """
    upstream = ScriptedUpstream(delay=_DELAY)
    await upstream.start()
    try:
        token, access = _access(settings, plugins)
        own: dict[Setting[Any], Any] = {
            UPSTREAM_BASE_URL: base_url(upstream.url),
            UPSTREAM_API_KEY: Secret("demo"),
            UPSTREAM_API_KEY_FILE: None,
            UPSTREAM_API_KEYS: (),
            # only where it is set: the plugins that bring kinds of upstreams would be active
            **({UPSTREAMS_FILE: None} if settings[UPSTREAMS_FILE] else {}),
            **access,
        }
        settings = settings.replace(own)
        plugin_lines = configure(plugins, settings)

        def announce(port: int) -> None:
            facts = {
                **dict(banner.facts(settings, port, plugin_lines, plugins)),
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
                "This is a demo: the responses come from a script, not from Claude.",
                *lines,
                "Paste this to see a response stream:",
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


def _access(
    settings: Settings, plugins: Plugins
) -> tuple[str | None, dict[Setting[Any], Any]]:  # Any: the value is the plugin's
    """Return a token made for this run and its setting; ``None`` if access is configured."""
    declared = {setting.name: setting for setting in plugins.declared_settings()}
    if _TOKEN not in declared:
        return None, {}
    if any(settings.variable(declared[name]) for name in _ACCESS & declared.keys()):
        return None, {}
    token = secrets.token_urlsafe(32)
    return token, {declared[_TOKEN]: declared[_TOKEN].parse(token)}

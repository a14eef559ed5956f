"""The proxy in front of an embedded scripted upstream: needs no key and no network."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tornadoproxy import banner, runner
from tornadoproxy.configuration import Configuration, configure
from tornadoproxy.parsers import base_url
from tornadoproxy.scripted_upstream import ScriptedUpstream
from tornadoproxy.secret import Secret
from tornadoproxy.settings import (
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_BASE_URL,
    Setting,
    Settings,
)

if TYPE_CHECKING:
    from tornadoproxy.linewriter import LineWriter
    from tornadoproxy.pluginmanager import Plugins

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
    token = _made_up_token(settings, plugins)

    def adapted(settings: Settings) -> Settings:
        own: dict[Setting[Any], object] = {
            UPSTREAM_BASE_URL: base_url(upstream.url),
            UPSTREAM_API_KEY: Secret("demo"),
            UPSTREAM_API_KEY_FILE: None,
        }
        if token is not None:
            setting = _token_setting(plugins)
            own[setting] = setting.parse(token)
        return settings.replace(own)

    settings = adapted(settings)
    plugin_lines = configure(plugins, settings)

    def announce(port: int) -> None:
        facts = banner.facts(settings, port, plugin_lines, plugins.describe())
        credential = token or banner.credential(settings, plugins.declared_settings())
        for line in (
            "This is a demo: its answers come from a script, not from Claude.",
            *banner.banner(settings, port, (*facts, ("event loop", runner.loop_name())), credential),
            "to see a streamed answer",
            f"  {banner.streaming_curl(settings, port, credential)}",
        ):
            writer.write(line.encode())

    try:
        return await runner.serve(
            settings,
            plugins,
            read_again=lambda: adapted(configuration.settings(plugins)),
            announce=announce,
        )
    finally:
        await upstream.stop()

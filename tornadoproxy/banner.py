"""Writes what is shown once the proxy listens: what it does, and lines to paste."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from tornadoproxy.parsers import BaseURL
from tornadoproxy.settings import (
    HOST,
    TLS_CERT,
    UPSTREAM_BASE_URL,
    Setting,
    Settings,
    upstream_key,
    upstream_key_variable,
)
from tornadoproxy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tornadoproxy.plugin_finder import PluginInfo

# what a client on this machine connects to where every address is listened on
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound here

# the default authenticator's
_TOKENS = frozenset({"AUTH_TOKEN", "AUTH_TOKEN_FILE"})


def listening_url(settings: Settings, port: int) -> str:
    """The URL that is listened on, or ``unix:/path``."""
    if settings[HOST].startswith("unix:"):
        return settings[HOST]
    return _url(settings, settings[HOST], port)


def client_url(settings: Settings, port: int) -> str:
    """The URL for a client on the same machine, which may have to go by a Unix socket."""
    if settings[HOST].startswith("unix:"):
        return "http://localhost"
    return _url(settings, _LOOPBACK.get(settings[HOST], settings[HOST]), port)


def facts(
    settings: Settings,
    port: int,
    plugin_lines: Iterable[tuple[str, str]],
    plugins: Iterable[PluginInfo],
) -> tuple[tuple[str, str], ...]:
    """What this proxy is, as pairs of a name and a line; holds no credential.

    :param port: the port that is, or will be, listened on.
    :param plugin_lines: what `Plugins.configure` returned.
    :param plugins: the plugins in the order asked.
    """
    asked = ", ".join(info.name for info in plugins if info.state == "active")
    return (
        ("address", listening_url(settings, port)),
        ("upstream", f"{settings[UPSTREAM_BASE_URL]}, {_key_line(settings)}"),
        ("plugins", f"{asked} (in the order asked)"),
        *plugin_lines,
    )


def credential(settings: Settings, plugin_settings: Iterable[Setting[Any]]) -> str:
    """What a client sends, as a shell reads it: the token's variable, or else a placeholder.

    :param plugin_settings: those that the plugins declare.
    """
    is_set = any(
        settings.variable(setting) for setting in plugin_settings if setting.name in _TOKENS
    )
    return "$AUTH_TOKEN" if is_set else "your-token"


def banner(
    settings: Settings, port: int, shown: Sequence[tuple[str, str]], sent: str
) -> tuple[str, ...]:
    """The lines to show.

    :param shown: pairs of a name and a line; see `facts`.
    :param sent: see `credential`; or the demo's own throw-away token.
    """
    return (
        f"tornadoproxy {__version__}",
        *aligned(shown),
        "to paste",
        *aligned(_to_paste(settings, client_url(settings, port), sent)),
    )


def aligned(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """A line for each pair: a name that pads to the longest of them, and a text."""
    width = max(len(name) for name, _ in pairs)
    return tuple(f"  {name:<{width}}  {text}" for name, text in pairs)


def streaming_curl(settings: Settings, port: int, sent: str) -> str:
    """A command that shows a streamed answer."""
    body = (
        '{"model": "claude-sonnet-5-5", "max_tokens": 200, "stream": true, '
        '"messages": [{"role": "user", "content": "Say hello, one word at a time."}]}'
    )
    return (
        f'{_curl(settings)} -N {client_url(settings, port)}/v1/messages -H "x-api-key: {sent}" '
        f"-H 'content-type: application/json' -d '{body}'"
    )


def _curl(settings: Settings) -> str:
    """``curl``, by way of the Unix socket if there is one."""
    host = settings[HOST]
    if host.startswith("unix:"):
        return f"curl --unix-socket {shlex.quote(host.removeprefix('unix:'))}"
    return "curl"


def _url(settings: Settings, host: str, port: int) -> str:
    return BaseURL("https" if settings[TLS_CERT] else "http", host, port).origin


def _key_line(settings: Settings) -> str:
    if upstream_key(settings) is None:
        return "no key"
    return f"key from {upstream_key_variable(settings)}"


def _to_paste(settings: Settings, url: str, sent: str) -> tuple[tuple[str, str], ...]:
    curl = ("curl", f'{_curl(settings)} {url}/v1/models -H "x-api-key: {sent}"')
    if settings[HOST].startswith("unix:"):  # the others take a URL alone
        return (curl,)
    in_python = f'os.environ["{sent[1:]}"]' if sent.startswith("$") else f'"{sent}"'
    return (
        ("Claude Code", f"export ANTHROPIC_BASE_URL={url}"),
        ("", f'export ANTHROPIC_AUTH_TOKEN="{sent}"'),
        ("Anthropic SDK", f'anthropic.Anthropic(base_url="{url}", api_key={in_python})'),
        ("OpenAI SDK", f'openai.OpenAI(base_url="{url}/openai/v1", api_key={in_python})'),
        curl,
    )

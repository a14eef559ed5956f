"""The lines that are shown once the proxy listens: facts, and commands to paste."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tornadoproxy.config.core_settings import HOST, REUSE_PORT, SHARED_LIMITS, TLS_CERT
from tornadoproxy.config.responses_settings import (
    MEMORY,
    OFF,
    RESPONSES_STORE,
    RESPONSES_STORE_TTL,
)
from tornadoproxy.config.upstreams import DEFAULT
from tornadoproxy.config.urls import BaseURL
from tornadoproxy.protocol.wire import ANTHROPIC
from tornadoproxy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.sources import Sources
    from tornadoproxy.config.upstreams import Upstream
    from tornadoproxy.plugin.manager import Plugins

# the address that a client on this machine uses when the proxy listens on all interfaces
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound here

VARIABLE = "$AUTH_TOKEN"
"""The client's credential in a shell, once the line of `credential` was pasted."""


def listening_url(settings: Settings, port: int) -> str:
    """Return the URL that the proxy listens on, or ``unix:/path``."""
    if settings[HOST].startswith("unix:"):
        return settings[HOST]
    return _url(settings, settings[HOST], port)


def client_url(settings: Settings, port: int) -> str:
    """Return the URL for a client on this machine; a Unix socket needs a client that takes one."""
    if settings[HOST].startswith("unix:"):
        return "http://localhost"
    return _url(settings, _LOOPBACK.get(settings[HOST], settings[HOST]), port)


def facts(
    settings: Settings,
    port: int,
    plugin_lines: Iterable[tuple[str, str]],
    plugins: Plugins,
) -> tuple[tuple[str, str], ...]:
    """Return the facts of this proxy, pairs of a name and a line, without credentials.

    :param port: the port that the proxy listens on, or will.
    :param plugin_lines: what `Plugins.configure` returned.
    :param plugins: the plugins, which are configured.
    """
    asked = ", ".join(info.name for info in plugins.describe() if info.state == "active")
    return (
        ("address", listening_url(settings, port)),
        *(("upstream", _upstream_line(upstream)) for upstream in plugins.upstreams),
        ("plugins", f"{asked} (in the order asked)"),
        ("responses", _store_line(settings)),
        *plugin_lines,
    )


def credential(
    settings: Settings, sources: Sources, declared: Iterable[Setting[Any]]
) -> tuple[str, str]:
    """Return a title and a shell command that reads the proxy's token into ``AUTH_TOKEN``.

    The command contains no token; it works in another terminal, for a user who may read the token.
    Of several tokens it takes the first. For another plugin's credential it has a placeholder.

    :param declared: the settings that the plugins declare.
    """
    by_name = {setting.name: setting for setting in declared}
    if settings.is_set("AUTH_TOKEN_FILE"):
        path = sources.origin(by_name["AUTH_TOKEN_FILE"])[0] or ""
        found = f"cat {_quoted(_absolute(path))}"
    elif not settings.is_set("AUTH_TOKEN"):
        placeholder, own = "your-token", "your credential (if you need one)"
        if settings.is_set("KEYS_DB"):
            placeholder, own = "your-key", "a key of yours"
        title = f"Paste this first, with {own} in place of {placeholder}:"
        return title, f"export AUTH_TOKEN={placeholder}"
    elif "AUTH_TOKEN" in sources.environment:
        found = f"tr '\\0' '\\n' < /proc/{os.getpid()}/environ | sed -n 's/^AUTH_TOKEN=//p'"
    else:
        file = sources.env_file
        line = file.entries["AUTH_TOKEN"].line
        found = f"sed -n '{line}s/[^=]*=//p' {_quoted(_absolute(file.path))} | tr -d \\\"\\'"
    command = f"export AUTH_TOKEN=\"$({found} | awk 'NF {{print $1; exit}}')\""
    return "Paste this first:", command


def banner(
    settings: Settings, port: int, shown: Sequence[tuple[str, str]], sent: str, *before: str
) -> tuple[str, ...]:
    """Return the lines to show. Lines to paste are not indented, so that Python accepts them.

    :param shown: pairs of a name and a line; see `facts`.
    :param sent: the client's credential in a shell: `VARIABLE`, or a token made for this run.
    :param before: lines to show before those that use `sent`; see `credential`.
    """
    return (
        f"tornadoproxy {__version__}",
        *aligned(shown),
        *before,
        *_to_paste(settings, client_url(settings, port), sent),
    )


def aligned(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return a line for each pair of a name, padded to the longest, and a text."""
    width = max(len(name) for name, _ in pairs)
    return tuple(f"  {name:<{width}}  {text}" for name, text in pairs)


def streaming_curl(settings: Settings, port: int, sent: str) -> str:
    """Return a command that shows a streamed response."""
    body = (
        '{"model": "claude-sonnet-5-5", "max_tokens": 200, "stream": true, '
        '"messages": [{"role": "user", "content": "Say hello, one word at a time."}]}'
    )
    return (
        f'{_curl(settings)} -N {client_url(settings, port)}/v1/messages -H "x-api-key: {sent}" '
        f"-H 'content-type: application/json' -d '{body}'"
    )


def _curl(settings: Settings) -> str:
    """Return ``curl``, with the Unix socket if the proxy listens on one."""
    host = settings[HOST]
    if host.startswith("unix:"):
        return f"curl --unix-socket {_quoted(host.removeprefix('unix:'))}"
    return "curl"


def _url(settings: Settings, host: str, port: int) -> str:
    return BaseURL("https" if settings[TLS_CERT] else "http", host, port).origin


def _upstream_line(upstream: Upstream) -> str:
    key = "no key"
    if upstream.api_key is not None:
        key = f"key from {upstream.key_source}"
    elif upstream.wire is not ANTHROPIC:
        key = "credential by its kind"
    named = "" if upstream.name == DEFAULT else f"{upstream.name} ({upstream.kind}), "
    return f"{named}{upstream.base_url}, {key}"


def _store_line(settings: Settings) -> str:
    """Return where the content of responses is kept, and how long."""
    where = settings[RESPONSES_STORE]
    if where == OFF:
        return "not kept (RESPONSES_STORE=off)"
    seconds = settings[RESPONSES_STORE_TTL]
    lifetime = f"{seconds:.15g} seconds" if seconds % 86_400 else f"{seconds / 86_400:.0f} days"
    if where != MEMORY:
        return f"prompts and responses of /openai/v1/responses kept in {where} for {lifetime}"
    line = f"prompts and responses of /openai/v1/responses kept in memory for {lifetime} at most"
    is_one_of_many = settings[SHARED_LIMITS] is not None or settings[REUSE_PORT]
    if is_one_of_many or settings.environment("DATABASE_URL"):
        line += "; other proxies do not find them unless RESPONSES_STORE names a database"
    return line


def _to_paste(settings: Settings, url: str, sent: str) -> Iterator[str]:
    if not settings[HOST].startswith("unix:"):  # only curl takes one
        in_python = f'os.environ["{sent[1:]}"]' if sent.startswith("$") else f'"{sent}"'
        yield "Paste this for Claude Code:"
        yield f"export ANTHROPIC_BASE_URL={url}"
        yield f'export ANTHROPIC_AUTH_TOKEN="{sent}"'
        yield "Paste one of these into Python, for Anthropic's or OpenAI's client:"
        for package, made, base in (
            ("anthropic", "Anthropic", url),
            ("openai", "OpenAI", f"{url}/openai/v1"),
        ):
            client = f'{package}.{made}(base_url="{base}", api_key={in_python})'
            yield f"import os, {package}; client = {client}"
    yield "Paste this to list the models:"
    yield f'{_curl(settings)} {url}/v1/models -H "x-api-key: {sent}"'


def _quoted(text: str) -> str:
    import shlex  # most starts quote nothing

    return shlex.quote(text)


def _absolute(path: str) -> str:
    return os.path.join(os.getcwd(), path)

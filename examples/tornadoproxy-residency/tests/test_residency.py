"""The plugin in a real proxy, in front of two upstreams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, hookimpl
from tornadoproxy.testing import (
    Ask,
    Proxy,
    ScriptedUpstream,
    StartProxy,
    error_response,
)

MESSAGE = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


class Names:
    """An authenticator: the credential ``alice:staff:legal`` is Alice, in two groups."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity:
        for candidate in request.candidates():
            name, *groups = candidate.reveal().decode().split(":")
            return Identity(name, groups=tuple(groups))
        raise AuthenticationFailed("Say who you are.")


@pytest.fixture
def start(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> Callable[[str], Awaitable[Proxy]]:
    """Start a proxy with these rules; ``us-1`` and ``eu-1`` are the same scripted upstream."""
    file = tmp_path / "upstreams.toml"
    entry = '[[upstream]]\nname = "{}"\nmodels = {}\nbase_url = "{}"\napi_key = "key-for-tests"\n'
    entries = (("us-1", '["claude-*"]'), ("eu-1", '["claude-sonnet-5-5"]'))
    tables = (entry.format(name, models, upstream.url) for name, models in entries)
    file.write_text('order = "listed"\n' + "".join(tables))
    return lambda rules: start_proxy(
        plugins=[Names()], UPSTREAMS_FILE=file, GROUP_UPSTREAMS=rules or None
    )


@pytest.mark.parametrize(
    ("who", "model", "served_by"),
    [
        ("ann", "claude-sonnet-5-5", "us-1"),
        ("ann:staff", "claude-sonnet-5-5", "us-1"),
        ("ann:legal", "claude-sonnet-5-5", "eu-1"),
        ("ann:staff:legal:research", "claude-sonnet-5-5", "eu-1"),
        ("ann:research", "claude-opus-5-5", "us-1"),
        ("ann:legal", "claude-opus-5-5", None),
        ("ann:legal:america", "claude-sonnet-5-5", None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_group_stays_on_its_upstreams(
    start: Callable[[str], Awaitable[Proxy]],
    ask: Ask,
    upstream: ScriptedUpstream,
    path: str,
    who: str,
    model: str,
    served_by: str | None,
) -> None:
    await start("legal=eu-* research=eu-*|us-* america=us-*")
    response = await ask(path, {**MESSAGE, "model": model}, token=who)
    assert response.header("x-tornadoproxy-upstream") == served_by
    assert response.status == (200 if served_by else 403)
    assert len(upstream.requests) == (served_by is not None)


async def test_request_does_not_move_to_another_region(
    start: Callable[[str], Awaitable[Proxy]], ask: Ask, upstream: ScriptedUpstream
) -> None:
    await start("legal=eu-*")
    upstream.script(error_response(529, "overloaded_error", "Not now"))
    sonnet = {**MESSAGE, "model": "claude-sonnet-5-5"}
    assert (await ask("/v1/messages", sonnet, token="ann:legal")).status == 529
    assert len(upstream.requests) == 1


async def test_without_a_rule_the_plugin_is_inactive(
    start: Callable[[str], Awaitable[Proxy]],
) -> None:
    proxy = await start("")
    assert {info.name: info.state for info in proxy.plugins.describe()}["residency"] == "inactive"

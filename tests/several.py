"""A proxy in front of several scripted upstreams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    Ask,
    OpenRaw,
    Proxy,
    RawResponse,
    Records,
    ScriptedUpstream,
    StartProxy,
)
from tornadoproxy.testing.loop import run

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

    from tornadoproxy.testing.proxies import ExtraPlugins

LISTED = 'order = "listed"'

MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}


class Several:
    """The upstreams `a`, `b` and so on, in this order, and a proxy in front of them."""

    def __init__(
        self,
        upstreams: dict[str, ScriptedUpstream],
        start_proxy: StartProxy,
        ask: Ask,
        raw: OpenRaw,
        records: Records,
        file: Path,
    ) -> None:
        self.upstreams = upstreams
        self.records = records
        self.file = file
        self.ask = ask
        self.raw = raw
        self._start_proxy = start_proxy

    def __getitem__(self, name: str) -> ScriptedUpstream:
        return self.upstreams[name]

    def write(self, more: str = "", before: str = LISTED, **own: str) -> Path:
        """Write the file: `more` for each upstream, `own` for one of them."""
        entries = (
            f'[[upstream]]\nname = "{name}"\nbase_url = "{upstream.url}"\napi_key = "key-{name}"\n'
            f"{more}\n{own.get(name, '')}\n"
            for name, upstream in self.upstreams.items()
        )
        self.file.write_text(f"{before}\n{''.join(entries)}")
        return self.file

    async def start(
        self,
        more: str = "",
        before: str = LISTED,
        *,
        plugins: ExtraPlugins = (),
        PLUGIN_TIMEOUT: float = 5,  # noqa: N803  # the setting
        **own: str,
    ) -> Proxy:
        """Start a proxy; see `write`."""
        return await self._start_proxy(
            plugins=plugins,
            UPSTREAMS_FILE=self.write(more, before, **own),
            PLUGIN_TIMEOUT=PLUGIN_TIMEOUT,
        )

    async def message(self, **fields: object) -> RawResponse:
        """Send a messages request."""
        return await self.ask("/v1/messages", {**MESSAGE, **fields})

    def requests(self) -> dict[str, int]:
        """How many requests each upstream has received."""
        return {name: len(each.requests) for name, each in self.upstreams.items()}


@pytest.fixture
def several(
    io_loop: IOLoop,
    start_proxy: StartProxy,
    ask: Ask,
    raw: OpenRaw,
    records: Records,
    upstream: ScriptedUpstream,
    tmp_path: Path,
) -> Iterator[Several]:
    others = ScriptedUpstream(), ScriptedUpstream()
    for other in others:
        run(io_loop, other.start)
    names = dict(zip("abc", (upstream, *others), strict=True))
    yield Several(names, start_proxy, ask, raw, records, tmp_path / "upstreams.toml")
    for other in others:
        run(io_loop, other.stop)
        assert other.failures == []

"""What the tests of the recorder share: a proxy that records, and what it has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scene import Scene
from tornadoproxy_recorder import files

from tornadoproxy import Identity, IncomingRequest, hookimpl
from tornadoproxy.testing import Proxy, message_document, message_events

MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Wie geht's, Müller?"}],
}
CHAT = "/openai/v1/chat/completions"
EVENTS = message_events(message_document("A secret-12345 word"))


class Names:
    """Knows everybody by the name in ``x-badge``, whose header it declares."""

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        name = request.headers.get("X-Badge")
        return None if name is None else Identity(name)


async def start(scene: Scene, directory: Path, **variables: object) -> Proxy:
    # what commands print is compared, and the access log would be among it
    own = {"RECORD_DIR": directory, "RECORD_PRINCIPALS": "*", "ACCESS_LOG": "off"}
    given = {**own, **variables}
    return await scene.start(plugins=[Names()], **given)


async def recorded(proxy: Proxy, directory: Path) -> list[Any]:  # Any: JSON
    """Stop the proxy, and return what it has recorded, the oldest first."""
    await proxy.server.drain()
    return [files.read(path) for path in files.newest_first(directory)][::-1]

"""Scripted turns of a model: streamed or whole, as each request asks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tornadoproxy.testing import (
    Document,
    ReceivedRequest,
    Response,
    UpstreamExchange,
    json_response,
    message_document,
    message_events,
    sse_response,
)

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy.testing import ScriptedUpstream

THOUGHT: Document = {"type": "thinking", "thinking": "Add them up.", "signature": "c2lnbmVk"}


def text(said: str) -> Document:
    return {"type": "text", "text": said}


def call(name: str, number: int = 1, **arguments: object) -> Document:
    return {"type": "tool_use", "id": f"toolu_0{number}", "name": name, "input": arguments}


def turn(*content: Document, stop_reason: str | None = None, **fields: Any) -> Response:
    """Return a response with these blocks; ``tool_use`` if one of them is a call.

    :param fields: further ones of the message, of any type as in JSON.
    """
    calls = any(block["type"] == "tool_use" for block in content)
    message = message_document(
        content=list(content),
        stop_reason=stop_reason or ("tool_use" if calls else "end_turn"),
        **fields,
    )

    async def response(exchange: UpstreamExchange) -> None:
        streams = json.loads(await exchange.body()).get("stream")
        respond = sse_response(message_events(message)) if streams else json_response(message)
        await respond(exchange)

    return response


async def script(scene: Scene, *turns: Response) -> None:
    """Respond to the next messages requests with `turns`."""
    await scene.ask("/openai/v1/models")  # the proxy would ask for it before the first of them
    scene.upstream.script(*turns)


def asked(upstream: ScriptedUpstream) -> list[Document]:
    """Return the messages requests that the upstream received."""
    return [each.json() for each in upstream.requests if is_of_messages(each)]


def is_of_messages(request: ReceivedRequest) -> bool:
    return request.path == "/v1/messages"


def blocks(document: Document, role: str) -> list[Document]:
    """Return all blocks of the messages with that role; a text alone is a block."""
    found: list[Document] = []
    for message in document["messages"]:
        if message["role"] == role:
            content = message["content"]
            found += [text(content)] if isinstance(content, str) else content
    return found

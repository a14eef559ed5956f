"""What load is made of: each request asks for a response of its own, which both ends know.

A request says in its only message which response it wants, and its number. From the number
follows the response, whole or as a stream.
"""

from __future__ import annotations

import json
import random
import re
from typing import Literal

from tornadoproxy.fakes.anthropic_messages import Document, message_document, message_events
from tornadoproxy.fakes.http_message import request_bytes

TOKEN = "test-token-that-clients-present"  # TEST_TOKEN, without pytest

ORDINARY = 0
"""The number of a request that is no part of the load."""

Dialect = Literal["anthropic", "openai"]

How = Literal["json", "late", "stream", "hold"]
"""Whole, at once or when released; streamed, at once or, after the first event, when released."""

ASKED = re.compile(rb"load:([a-z]+):([0-9]+)")
"""What says so in a request's body."""

_PATHS = {"anthropic": "/v1/messages", "openai": "/openai/v1/chat/completions"}
_WORDS = ["plain", "Grüße", "世界", "😀", '"quoted"', "back\\slash", "two\nlines", "data: x\n\n"]


def request(dialect: Dialect, how: How, number: int) -> bytes:
    """The request. Its record has its number for a session id."""
    document = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "stream": how in {"stream", "hold"},
        "messages": [{"role": "user", "content": f"load:{how}:{number}"}],
    }
    headers = {"Content-Type": "application/json", "X-Claude-Code-Session-Id": str(number)}
    body = json.dumps(document).encode()
    return request_bytes("POST", _PATHS[dialect], headers, body, token=TOKEN)


def text_of(number: int) -> str:
    """What the response says."""
    chosen = random.Random(number)
    return " ".join(
        f"{chosen.choice(_WORDS)}-{number}-{position}" for position in range(chosen.randint(5, 30))
    )


def message_of(number: int) -> Document:
    """The response as a whole."""
    return message_document(text_of(number), id=f"msg_{number}")


def events_of(number: int) -> list[bytes]:
    """The response as a stream."""
    return message_events(message_of(number))


def check_response(dialect: Dialect, how: How, number: int, status: int, body: bytes) -> None:
    """Assert that this is the response to a request."""
    assert status == 200, f"{number}: status {status}: {body[:200]!r}"
    streamed = how in {"stream", "hold"}
    given: object
    expected: object
    if dialect == "openai":
        chat = _streamed_chat if streamed else _whole_chat
        given, expected = chat(body), (text_of(number), "stop")
    elif streamed:
        given, expected = body, b"".join(events_of(number))
    else:
        given, expected = json.loads(body), message_of(number)
    assert given == expected, f"{number} in {dialect}: {given!r} is not {expected!r}"


def _whole_chat(body: bytes) -> object:
    (choice,) = json.loads(body)["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def _streamed_chat(body: bytes) -> object:
    *chunks, done, rest = body.split(b"\n\n")
    if (done, rest) != (b"data: [DONE]", b""):
        return body
    data = [chunk.removeprefix(b"data: ") for chunk in chunks if chunk != b": ping"]
    documents = [json.loads(each) for each in data]
    choices = [choice for document in documents for choice in document["choices"]]
    if len({document["id"] for document in documents}) != 1 or choices[-1]["delta"]:
        return documents
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, "".join(choice["finish_reason"] or "" for choice in choices)

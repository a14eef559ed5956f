"""How a client asks, in either dialect, and how it tells an answer from an error and from a cut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    Truncated,
    message_document,
    message_events,
    request_bytes,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import Document

TEXT = "Half of this answer will do."
EVENTS = message_events(message_document(TEXT))
JSON = json.dumps(message_document(TEXT)).encode()


@dataclass(frozen=True)
class Way:
    """How a client asks, and what it takes for an answer, for an error and for a cut."""

    dialect: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.dialect} {'SSE' if self.stream else 'JSON'}"

    @property
    def request(self) -> bytes:
        """The bytes of a request."""
        path = "/v1/messages" if self.dialect == "anthropic" else "/openai/v1/chat/completions"
        document = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": self.stream,
        }
        return request_bytes("POST", path, (), json.dumps(document).encode(), token=TEST_TOKEN)

    @property
    def shows_all(self) -> bool:
        """Whether the client is given what comes of an answer before that is whole."""
        return self.dialect == "anthropic" or self.stream

    @property
    def body(self) -> bytes:
        """The body of the upstream's answer."""
        return b"".join(EVENTS) if self.stream else JSON

    @property
    def part(self) -> bytes:
        """The first half of it; that of a stream ends within an event."""
        return b"".join(EVENTS[:6])[:-20] if self.stream else JSON[: len(JSON) // 2]

    def head(self, *lines: bytes, status: bytes = b"200 OK") -> bytes:
        """The head of the upstream's answer, with these further lines."""
        kind = b"text/event-stream" if self.stream else b"application/json"
        return b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Type: " + kind, *lines, b"", b""])

    def check_whole(self, got: RawResponse | Truncated) -> None:
        """It is the upstream's answer, and nothing besides."""
        assert isinstance(got, RawResponse)
        assert (got.status, got.interim) == (200, [])
        if self.dialect == "anthropic":
            assert got.body == self.body
        elif self.stream:
            chunks, done, rest = got.body.partition(b"data: [DONE]\n\n")
            assert (_text(_chunks(chunks)), bool(done), rest) == (TEXT, True, b"")
        else:
            assert json.loads(got.body)["choices"][0]["message"]["content"] == TEXT

    def check_refused(self, got: RawResponse | Truncated, status: int = 502) -> None:
        """It is an error document of the proxy's own."""
        assert isinstance(got, RawResponse)
        assert (got.status, got.interim) == (status, [])
        assert got.header("Content-Type") == "application/json"
        document = json.loads(got.body)
        if self.dialect == "anthropic":
            assert anthropic_type(document) == {502: "api_error", 504: "timeout_error"}[status]
            assert got.all("request-id") == [document["request_id"]]
        else:
            assert openai_type(document) == "server_error"
            assert len(got.all("x-request-id")) == 1

    def check_cut(self, got: RawResponse | Truncated, sent: bytes) -> None:
        """It is what came of the answer's body, `sent`, and cannot be taken for the whole."""
        assert isinstance(got, Truncated)
        assert got.response is not None
        assert (got.response.status, got.response.interim) == (200, [])
        body = got.response.body
        if not self.stream:
            assert body == sent
        elif self.dialect == "anthropic":
            before, _, last = body.rpartition(b"event: error\ndata: ")
            assert before.startswith(sent)
            assert before == b"" or before.endswith(b"\n\n")
            assert last.endswith(b"\n\n")
            assert anthropic_type(json.loads(last)) == "api_error"
        else:
            *chunks, last_chunk = _chunks(body)
            assert openai_type(last_chunk) == "server_error"
            text = _text(chunks)
            assert TEXT.startswith(text)
            assert bool(text) == (b"text_delta" in sent)

    def check_broken(self, got: RawResponse | Truncated, sent: bytes, status: int = 502) -> None:
        """It is what is to be seen of an answer that broke off in its body, after `sent`."""
        if self.shows_all:
            self.check_cut(got, sent)
        else:
            self.check_refused(got, status)


WAYS = [Way(dialect, stream) for dialect in ("anthropic", "openai") for stream in (False, True)]


def anthropic_type(document: Document) -> object:
    """The type of an error, which is in Anthropic's shape."""
    assert document.keys() == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert document["request_id"]
    assert document["error"].keys() == {"type", "message"}
    assert document["error"]["message"]
    return document["error"]["type"]


def openai_type(document: Document) -> object:
    """The type of an error, which is in OpenAI's shape."""
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]["type"]


def _chunks(stream: bytes) -> list[Document]:
    """The data of each event, all of them JSON; comments are passed over."""
    *events, rest = stream.replace(b": ping\n\n", b"").split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def _text(chunks: list[Document]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

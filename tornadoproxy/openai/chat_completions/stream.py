"""The translation of a streamed response: events into chunks, piece by piece.

The theory, beside that of `EventTranslator`. Blocks of types that have no place in a chunk are
skipped. Each event becomes::

    message_start          a chunk with the role
    fallback opens         nothing; the following chunks name the model that responds from here on
    ping                   a comment, which clients ignore
    text_delta             a chunk with content
    thinking_delta …       a chunk with reasoning_content and thinking_blocks
    tool_use opens         a chunk with index, id, type and name; indexes count calls, not blocks
    input_json_delta       a chunk with a fragment of the arguments
    message_stop           a chunk with finish_reason, a chunk with usage if wanted, and [DONE]
    error                  an error in OpenAI's form, and nothing after it

Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy.openai import errors
from tornadoproxy.openai.chat_completions import response, thinking_blocks
from tornadoproxy.openai.message import EventTranslator, fields_of, refusal
from tornadoproxy.openai.writing import arguments, encode, encode_string, string
from tornadoproxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

DONE = b"data: [DONE]\n\n"
PING = Dialect.OPENAI.ping


class StreamTranslator(EventTranslator["_Block"]):
    """Translator of one stream: takes pieces of any size, returns complete chunks.

    :param include_usage: end with a chunk that holds the usage.
    :param legacy_functions: return a call as ``function_call``; the request has ``functions``.
    :param created: the time in seconds since the epoch; by default, now.
    """

    def __init__(
        self,
        *,
        include_usage: bool = False,
        legacy_functions: bool = False,
        created: int | None = None,
    ) -> None:
        super().__init__()
        self._include_usage = include_usage
        self._legacy_functions = legacy_functions
        self._created = int(time.time()) if created is None else created
        self._head = b""  # the part up to the delta, the same in every chunk
        self._tail = b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % self._usage_field()
        self._characters = 0  # of text so far
        self._calls = 0
        self._thoughts = 0

    def _begin(self, message: Json) -> bytes:
        self._name_model(message)
        return self._chunk({"role": "assistant", "content": ""})

    def _name_model(self, named: Json) -> None:
        head = {
            "id": response.completion_id(self._message_id),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": string(named.get("model")),
        }
        self._head = b"data: " + encode(head)[:-1] + b',"choices":[{"index":0,"delta":{'

    def _open(self, given: Json) -> tuple[bytes, _Block | None]:
        kind = given.get("type")
        block = _Block(kind)
        if kind == "fallback":
            self._name_model(fields_of(given.get("to")))
            return b"", None
        if kind == "text":
            return self._text(given.get("text")) if given.get("text") else b"", block
        if kind in ("thinking", "redacted_thinking"):
            block.place = self._thoughts
            self._thoughts += 1
            shown = thinking_blocks.shown(given, self._characters, self._calls)
            return self._thought(block, shown), block
        if kind != "tool_use" or (self._legacy_functions and self._calls):
            block.kind = None  # skipped; a message has one function_call
            return b"", block
        block.place = self._calls
        block.input = given.get("input")
        self._calls += 1
        function = {"name": string(given.get("name")), "arguments": ""}
        if self._legacy_functions:
            return self._chunk({"function_call": function}), block
        call = {"index": block.place, "id": string(given.get("id")), "type": "function"}
        return self._chunk({"tool_calls": [{**call, "function": function}]}), block

    def _delta(self, block: _Block | None, delta: Json) -> bytes:
        kind = delta.get("type")
        if kind == "text_delta" and (block is None or block.kind == "text"):
            self._require_start()
            return self._text(delta.get("text"))
        if block is None:
            return b""
        if kind == "input_json_delta" and block.kind == "tool_use":
            fragment = string(delta.get("partial_json"))
            return self._arguments(block, fragment) if fragment else b""
        if kind == "thinking_delta" and block.kind == "thinking":
            return self._thought(block, {"thinking": string(delta.get("thinking"))})
        if kind == "signature_delta" and block.kind == "thinking":
            return self._thought(block, {"signature": string(delta.get("signature"))})
        return b""

    def _close(self, block: _Block) -> bytes:
        if block.kind != "tool_use" or block.has_arguments:
            return b""
        return self._arguments(block, arguments(block.input))

    def _text(self, value: object) -> bytes:
        content = string(value)
        self._characters += len(content)
        return b'%b"content":%b%b' % (self._head, encode_string(content), self._tail)

    def _thought(self, block: _Block, entry: Json) -> bytes:
        """Return a chunk of thinking: its text, and the entry that clients send back."""
        delta: Json = {"thinking_blocks": [{"index": block.place, **entry}]}
        if "thinking" in entry:
            delta["reasoning_content"] = entry["thinking"]
        return self._chunk(delta)

    def _arguments(self, block: _Block, fragment: str) -> bytes:
        block.has_arguments = True
        form = b'%b"tool_calls":[{"index":%d,"function":{"arguments":%b}}]%b'
        if self._legacy_functions:
            return b'%b"function_call":{"arguments":%b}%b' % (
                self._head,
                encode_string(fragment),
                self._tail,
            )
        return form % (self._head, block.place, encode_string(fragment), self._tail)

    def _end(self) -> bytes:
        out = b""
        stop_reason = self._stop.get("stop_reason")
        refused = refusal(stop_reason, self._stop.get("stop_details"))
        if refused is not None:
            out += self._chunk({"refusal": refused})
        reason = response.finish_reason(stop_reason, legacy_functions=self._legacy_functions)
        out += b'%b},"logprobs":null,"finish_reason":"%b"}]%b}\n\n' % (
            self._head,
            reason.encode(),
            self._usage_field(),
        )
        if self._include_usage:
            account = encode(response.usage(self._usage))
            shared = self._head.partition(b',"choices":')[0]
            out += b'%b,"choices":[],"usage":%b}\n\n' % (shared, account)
        return out + DONE

    def _ping(self) -> bytes:
        return PING

    def _fail(self, event: Json) -> bytes:
        return Dialect.OPENAI.stream_error(errors.translate_event(event), "")

    def _chunk(self, delta: Json) -> bytes:
        return self._head + encode(delta)[1:-1] + self._tail

    def _usage_field(self) -> bytes:
        return b',"usage":null' if self._include_usage else b""


class _Block:
    """An open block: its type, its index among calls or thoughts, and its arguments so far."""

    __slots__ = ("has_arguments", "input", "kind", "place")

    def __init__(self, kind: object) -> None:
        self.kind = kind
        self.place = 0
        self.input: object = None
        self.has_arguments = False

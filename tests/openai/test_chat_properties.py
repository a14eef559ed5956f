"""Properties of translation: valid requests stay valid, streams equal whole responses."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from chat_strategies import (
    Json,
    abilities,
    compact,
    junk,
    noise,
    options,
    requests,
    seeds,
    spoiled,
    streamed_messages,
    wire,
)
from damage import damaged
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from properties import holds_of
from pydantic import TypeAdapter, ValidationError

from tornadoproxy.errors import InvalidRequest, UpstreamProtocolError
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, StreamTranslator
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.testing import message_document, message_events

if TYPE_CHECKING:
    from collections.abc import Iterable

WHOLE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
STREAMED: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsStreaming)

Streamed = tuple[Json, list[Json]]
cuts = st.lists(st.integers(0, 10**6), max_size=8)


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


# -- valid requests


def read_through(value: Any) -> None:  # Any: what pydantic has validated
    """Validate the items of each iterable, which pydantic leaves for later."""
    if isinstance(value, dict):
        for each in value.values():
            read_through(each)
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        for each in value:
            read_through(each)


def translated(document: Json, able: Capabilities | None = None) -> Json:
    mapped = Options(models={"*": "claude-mapped"})
    translation = chat_completions.translate_request(
        chat_completions.parse(dump(document)), options=mapped, capabilities=able
    )
    body: Json = json.loads(translation.body)
    return body


def blocks_of(message: Json, *kinds: str) -> list[Json]:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [block for block in blocks if not kinds or block["type"] in kinds]


def accept(body: Json) -> None:
    """Assert that the upstream accepts a request: its types, and the rules beyond types."""
    adapter = STREAMED if body.get("stream") else WHOLE
    read_through(adapter.validate_python(copy.deepcopy(body)))
    assert None not in body.values()
    assert 0 <= body.get("temperature", 0) <= 1
    assert not {"temperature", "top_p"} <= body.keys()
    assert all(each.strip() for each in body.get("stop_sequences", ["x"]))
    if body.get("thinking", {}).get("type") == "enabled":
        assert 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]
    names = [tool["name"] for tool in body.get("tools", [])]
    assert len(set(names)) == len(names)
    messages = body["messages"]
    assert len(messages) % 2, "the user speaks first and last"
    ids: list[str] = []
    for number, message in enumerate(messages):
        assert message["role"] == ("assistant" if number % 2 else "user")
        assert all(block["text"].strip() for block in blocks_of(message, "text"))
        assert all(block["signature"] for block in blocks_of(message, "thinking"))
        assert all(block["data"] for block in blocks_of(message, "redacted_thinking"))
        assert blocks_of(message)[-1]["type"] not in ("thinking", "redacted_thinking")
        results = blocks_of(message, "tool_result")
        calls = blocks_of(messages[number - 1], "tool_use") if number else []
        answered = [block["tool_use_id"] for block in results]
        assert sorted(answered) == sorted(block["id"] for block in calls)
        assert blocks_of(message)[: len(results)] == results
        ids += [block["id"] for block in blocks_of(message, "tool_use")]
        names += [block["name"] for block in blocks_of(message, "tool_use")]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", each) for each in ids + names)
    assert names or not ids


def test_types_of_the_sdk_refuse_an_invalid_request() -> None:
    """So the property below can fail: the types validate every message."""
    wrong = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [{}]}]}
    with pytest.raises(ValidationError):
        read_through(WHOLE.validate_python(wrong))


@holds_of(requests, abilities)
def test_valid_request_becomes_one_that_the_upstream_accepts(
    document: Json, able: Capabilities | None
) -> None:
    body = translated(document, able)
    accept(body)
    if able is not None and not able.forced_tools:
        assert body.get("tool_choice", {}).get("type") not in {"any", "tool"}
    texts = [block["text"] for each in body["messages"] for block in blocks_of(each, "text")]
    said = "".join("".join(texts).split())
    for message in document["messages"]:
        if message["role"] in {"user", "assistant"} and isinstance(message["content"], str):
            # thinking can stand within a text, and the last text ends without blanks
            assert "".join(message["content"].split()) in said


# -- invalid requests and responses


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def translate_or_refuse(
    body: bytes, able: Capabilities | None = None, options: Options | None = None
) -> None:
    """Translate a body as the proxy does; the only error is the client's."""
    options = options or Options()
    try:
        document = chat_completions.parse(body)
        options.model(chat_completions.requested_model(document))
        translation = chat_completions.translate_request(
            document, options=options, capabilities=able
        )
    except InvalidRequest as refused:
        error = json.loads(Dialect.OPENAI.error_body(refused, "req_1"))["error"]
        if refused.status != 400 or not error["message"]:
            raise
        return
    asked = json.loads(translation.body.decode(), parse_constant=_no_constant)
    kinds = [type(asked[name]) for name in ("model", "messages", "max_tokens")]
    assert kinds == [str, list, int]
    assert all(name.isascii() and name.isprintable() for name in translation.ignored)


@holds_of(spoiled(), requests, seeds, abilities, options)
def test_invalid_request_is_refused_or_translated(
    junked: Json, document: Json, seed: int, able: Capabilities | None, options: Options
) -> None:
    translate_or_refuse(dump(junked), able, options)
    body = dump(document)
    translate_or_refuse(damaged(body, random.Random(seed), [body]), able, options)


@holds_of(noise, junk)
def test_any_body_or_message_is_refused_or_translated(body: bytes, value: object) -> None:
    translate_or_refuse(body)
    translate_or_refuse(dump(value))
    hi = {"role": "user", "content": "x"}
    for messages in (value, [hi, value], [{**hi, "content": value}]):
        translate_or_refuse(dump({"model": "m", "messages": messages}))


RESPONSE = message_document(
    content=[
        {"type": "thinking", "thinking": "x", "signature": "c2ln"},
        {"type": "text", "text": "Hi \u00e9 \U0001f600"},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": [1, None]}},
    ],
    stop_reason="tool_use",
)
HALF = dump(RESPONSE).replace(b"Hi ", b"\\ud800")


@holds_of(junk, seeds, noise, st.booleans(), known=[(None, 0, HALF, False)])
def test_any_response_is_translated_or_the_upstreams_error(
    value: object, seed: int, other: bytes, legacy: bool
) -> None:
    junked = [dump(value), dump({"content": value}), dump({"content": [value], "usage": value})]
    body = dump(RESPONSE)
    for each in (*junked, damaged(body, random.Random(seed), [body]), other):
        try:
            found = chat_completions.translate_response(each, legacy_functions=legacy)
        except UpstreamProtocolError:
            continue
        ChatCompletion.model_validate(json.loads(found))


FAULTS = [b'{"error": []}', b'{"error": "x"}', b"[1]", b'"x"']
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "No."}}


@holds_of(st.integers(400, 599), seeds, noise, known=[(500, 0, body) for body in FAULTS])
def test_any_error_is_translated(status: int, seed: int, other: bytes) -> None:
    body = dump(ERROR)
    for each in (damaged(body, random.Random(seed), [body]), other):
        found = chat_completions.translate_error(status, each)
        assert (found.status, bool(found.message)) == (status, True)
        document = json.loads(Dialect.OPENAI.error_body(found, "req_1").decode())
        assert document["error"].keys() == {"message", "type", "param", "code"}


@holds_of(junk, junk, junk | st.datetimes().map(str) | st.dates().map(str))
def test_any_list_of_models_is_translated(
    entry: object, capabilities: object, created: object
) -> None:
    model: Json = {"id": "m", "capabilities": capabilities, "created_at": created}
    more = entry if isinstance(entry, dict) else {}
    for each in (model, {**model, **more}, {**more, "max_tokens": created}):
        listed = chat_completions.translate_models([each], {"x": "m"})
        assert all(type(shown["created"]) is int for shown in listed["data"])
        Capabilities.of_model(each).effort("low")


# -- streams


def pieces_of(stream: bytes, at: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(stream) + 1) for cut in at)
    return [stream[begin:end] for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True)]


def fed(translator: StreamTranslator, pieces: Iterable[bytes]) -> list[str]:
    """The data of the events that the client gets."""
    chunks = b"".join([translator.feed(piece) for piece in pieces])
    events = [event for event in chunks.decode().split("\n\n")[:-1] if event != ": ping"]
    # for clients that split lines like this
    assert [line for event in events for line in event.splitlines()] == events
    return [event.removeprefix("data: ") for event in events]


def joined(chunks: list[str]) -> Json:
    """The completion that the SDK joins from chunks."""
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)
        state.handle_chunk(ChatCompletionChunk.construct(**json.loads(chunk)))
    completion: Json = state.current_completion_snapshot.to_dict()
    return completion


def plain(message: Json) -> Json:
    """A completion's message, without the fields that only streams have."""
    found = {key: value for key, value in message.items() if value is not None}
    if not found.get("content"):
        found.pop("content", None)
    for key in ("thinking_blocks", "tool_calls"):
        for entry in found.get(key, []):
            entry.pop("index", None)
    for call in found.get("tool_calls", []):
        call["function"].pop("parsed_arguments", None)
    found.pop("parsed", None)
    return found


@holds_of(streamed_messages, cuts, st.booleans(), st.sampled_from((b"\n", b"\r\n")))
def test_stream_equals_the_whole_response(
    streamed: Streamed, at: list[int], legacy: bool, newline: bytes
) -> None:
    message, events = streamed
    translator = StreamTranslator(include_usage=True, legacy_functions=legacy, created=1)
    *chunks, done = fed(translator, pieces_of(wire(events).replace(b"\n", newline), at))
    assert (done, translator.ended) == ("[DONE]", True)
    body = chat_completions.translate_response(dump(message), legacy_functions=legacy, created=1)
    ChatCompletion.model_validate_json(body, strict=True)
    found, whole = joined(chunks), json.loads(body)
    for key in ("id", "model", "created", "usage"):
        assert found[key] == whole[key]
    (found_choice,), (choice,) = found["choices"], whole["choices"]
    assert found_choice["finish_reason"] == choice["finish_reason"]
    assert plain(found_choice["message"]) == plain(choice["message"])
    texts = [block["text"] for block in blocks_of(message, "text")]
    assert (choice["message"]["content"] or "") == "".join(texts)
    if not legacy:
        calls = [(each["name"], compact(each["input"])) for each in blocks_of(message, "tool_use")]
        called = [each["function"] for each in choice["message"].get("tool_calls", [])]
        assert [(each["name"], each["arguments"]) for each in called] == calls


@holds_of(streamed_messages, st.integers(1, 10**6), cuts)
def test_cut_stream_never_looks_whole(streamed: Streamed, missing: int, at: list[int]) -> None:
    stream = wire(streamed[1])
    stream = stream[: -(missing % len(stream)) or -1]
    translator = StreamTranslator(include_usage=True)
    chunks = fed(translator, pieces_of(stream, at))
    assert not translator.ended
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert all(choice["finish_reason"] is None for choice in choices)


@holds_of(streamed_messages, st.integers(0, 10**6), cuts)
def test_error_is_the_last_event_of_a_stream(streamed: Streamed, place: int, at: list[int]) -> None:
    events = [*streamed[1]]
    events.insert(place % len(events), ERROR)
    translator = StreamTranslator(include_usage=True)
    *chunks, last = fed(translator, pieces_of(wire(events), at))
    assert json.loads(last)["error"]["message"] == "No."
    assert translator.failed
    assert all("error" not in json.loads(chunk) for chunk in chunks)


def outcome(pieces: Iterable[bytes]) -> tuple[bytes, bool]:
    """The chunks of a stream, and whether it ends with the upstream's error."""
    translator = StreamTranslator(include_usage=True, created=1)
    out = b""
    try:
        for piece in pieces:
            out += translator.feed(piece)
    except UpstreamProtocolError:
        return out, True
    return out, False


STREAM = b"".join(message_events(RESPONSE))
KINDS = [f"content_block_{end}" for end in ("start", "delta", "stop")]
KINDS += ["message_start", "message_delta", "message_stop", "error"]
FIELDS = ("index", "message", "content_block", "delta", "usage", "error")


@holds_of(seeds, junk, st.lists(st.sampled_from(KINDS), min_size=1), cuts)
def test_any_stream_is_translated_or_the_upstreams_error(
    seed: int, value: object, kinds: list[str], at: list[int]
) -> None:
    """At any split alike; the output is whole chunks, or an error and nothing more."""
    events: list[Json] = [{"type": kind, **dict.fromkeys(FIELDS, value)} for kind in kinds]
    sources = [STREAM, wire([ERROR])]
    for stream in (wire(events), damaged(STREAM, random.Random(seed), sources)):
        whole, fault = outcome([stream])
        split, same_fault = outcome(pieces_of(stream, at))
        assert fault == same_fault
        assert split.startswith(whole)
        assert fault or split == whole
        for chunk in split.decode().split("\n\n")[:-1]:
            data = chunk.removeprefix("data: ")
            if data not in {"[DONE]", ": ping"} and "error" not in json.loads(data):
                ChatCompletionChunk.model_validate(json.loads(data))


# -- responses that come back


def cut_by_limit(streamed: Streamed, length: int) -> list[Json]:
    """The events of a response that reached its limit anywhere after its start."""
    events = streamed[1]
    start = next(n for n, event in enumerate(events) if event["type"] == "message_start")
    kept = events[: start + 1 + length % (len(events) - start)]
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    return [
        *(event for event in kept if event["type"] not in {"message_delta", "message_stop"}),
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


@holds_of(
    st.lists(st.tuples(streamed_messages, st.integers(0, 99)), min_size=1, max_size=4), abilities
)
def test_responses_sent_back_become_a_request_that_is_accepted(
    responses: list[tuple[Streamed, int]], able: Capabilities | None
) -> None:
    history: list[Json] = [{"role": "user", "content": "Hi"}]
    for streamed, number in responses:
        if number % 3:
            events = streamed[1] if number % 3 == 1 else cut_by_limit(streamed, number)
            completion = joined(fed(StreamTranslator(), [wire(events)])[:-1])
        else:
            completion = json.loads(chat_completions.translate_response(dump(streamed[0])))
        message = completion["choices"][0]["message"]
        history.append(message)
        history += [
            {"role": "tool", "tool_call_id": call["id"], "content": "fine"}
            for call in message.get("tool_calls") or []
        ]
    accept(translated({"model": "claude-test", "messages": history}, able))

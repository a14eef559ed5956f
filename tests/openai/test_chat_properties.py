"""Properties of translation: valid requests stay valid, streams equal whole responses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

from chat_requests import (
    OTHER,
    THOUGHT,
    TOOL,
    Json,
    assistant,
    blocks_of,
    call,
    function_result,
    image,
    result,
    system,
    text,
    translate,
    user,
)
from damage import damaged
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from properties import holds_of, junk_of, not_json, spoiled
from upstream_messages import KINDS, PARTS, cuts, messages, pieces_of, seeds

from tornadoproxy.errors import InvalidRequest, UpstreamProtocolError
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import FIELDS, Capabilities, StreamTranslator
from tornadoproxy.testing import message_document, message_events


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


# -- requests

EARLIER = {**THOUGHT, "text_before": 1, "calls_before": 1}
FILE = {"type": "file", "file": {"file_data": "JVBERi0xLjcK"}}
PHOTO = image("data:image/png;base64,iVBORw0KGgoA")
STEPS = [
    *([system("Be.")], [system([text("\n"), text("Do.")])], [user("Hi")], [user(" ")]),
    [user([text(""), PHOTO, FILE, text("What?")])],
    [{**user("Hi"), "prompt_cache_breakpoint": {"mode": "explicit"}}],
    *([assistant("")], [assistant(" x ", thinking_blocks=[THOUGHT, EARLIER])]),
    [assistant([text("a")], refusal="No.", thinking_blocks=[EARLIER])],
    [assistant("See.", call("a"), thinking_blocks=[THOUGHT]), result("a", [PHOTO])],
    [
        assistant(None, call("b", "a.b"), call("call:1", arguments="["), thinking_blocks=[EARLIER]),
        *(result("call:1", ""), result("b")),
    ],
    [assistant("x", function_call={"name": "f", "arguments": ""}), function_result("f")],
]
STRICT = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}
limits = st.integers(1, 100_000)
requests = st.builds(
    lambda steps, fields: {
        "model": "claude-test",
        "messages": [*itertools.chain(*steps)],
        **fields,
        **({} if fields.get("tools") else {"tool_choice": "none"}),
    },
    st.lists(st.sampled_from(STEPS), min_size=1),
    st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": limits,
            "stop": st.lists(st.sampled_from(["", " ", "x"])),
            "temperature": st.floats(0, 2) | st.none(),
            "top_p": st.floats(0, 1),
            "tools": st.lists(st.sampled_from([TOOL, OTHER, STRICT])),
            "tool_choice": st.sampled_from(["auto", "none", "required"]),
            "reasoning_effort": st.sampled_from([None, "none", "minimal", "low", "high", "max"]),
            "response_format": st.sampled_from([{"type": "json_object"}, FORMAT]),
            "thinking": st.sampled_from([{"type": "adaptive"}, {"type": "disabled"}]),
            "stream": st.booleans(),
        },
    ),
)
abilities = st.none() | st.builds(
    Capabilities,
    max_tokens=st.none() | limits,
    structured_outputs=st.booleans(),
    forced_tools=st.booleans(),
    thinking=st.frozensets(st.sampled_from(("adaptive", "enabled", "disabled", "between_tools"))),
    efforts=st.sampled_from(((), ("low", "medium", "high"), ("low", "medium", "high", "max"))),
)


@holds_of(requests, abilities)
def test_valid_request_becomes_one_that_the_upstream_accepts(
    document: Json, able: Capabilities | None
) -> None:
    fields = {name: document[name] for name in document if name != "messages"}
    body = json.loads(translate(*document["messages"], able=able, **fields).body)
    if able is not None and not able.forced_tools:
        assert body.get("tool_choice", {}).get("type") not in {"any", "tool"}
    texts = [block["text"] for each in body["messages"] for block in blocks_of(each, "text")]
    said = "".join("".join(texts).split())
    for message in document["messages"]:
        if message["role"] in {"user", "assistant"} and isinstance(message["content"], str):
            # thinking can stand within a text, and the last text ends without blanks
            assert "".join(message["content"].split()) in said


KEYS = [
    *(*FIELDS, "role", "content", "type", "text", "image_url", "url", "file", "file_data", "name"),
    *("tool_calls", "function", "arguments", "parameters", "schema", "thinking_blocks", "$ref"),
    *("signature", "cache_control", "properties", "json_schema", "include_usage", "anyOf", "enum"),
]
WORDS = [
    *("user", "assistant", "system", "tool", "function", "auto", "required", "json_schema", "low"),
    *("data:image/png;base64,aGk=", "data:", "#/$defs/x", "", '{"a": NaN}', "1e999", "\ud800"),
]
junk = junk_of(KEYS, WORDS)


def translate_or_refuse(body: bytes, able: Capabilities | None = None) -> None:
    """Translate a body as the proxy does; the only error is the client's."""
    try:
        document = chat_completions.parse(body)
        chat_completions.requested_model(document)
        translation = chat_completions.translate_request(document, capabilities=able)
    except InvalidRequest as refused:
        if refused.status != 400 or not refused.message:
            raise
        return
    asked = json.loads(translation.body.decode(), parse_constant=not_json)
    kinds = [type(asked[name]) for name in ("model", "messages", "max_tokens")]
    assert kinds == [str, list, int]
    assert all(name.isascii() and name.isprintable() for name in translation.ignored)


@holds_of(spoiled(requests, junk), requests, junk, seeds, abilities)
def test_invalid_request_is_refused_or_translated(
    junked: Json, document: Json, value: object, seed: int, able: Capabilities | None
) -> None:
    body = dump(document)
    hi = {"role": "user", "content": "x"}
    for each in (dump(junked), dump(value), damaged(body, random.Random(seed), [body])):
        translate_or_refuse(each, able)
    for talk in (value, [hi, value], [{**hi, "content": value}]):
        translate_or_refuse(dump({"model": "m", "messages": talk}))


# -- responses


RESPONSE = message_document(
    content=[
        {"type": "thinking", "thinking": "x", "signature": "c2ln"},
        {"type": "text", "text": "Hi \u00e9 \U0001f600"},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": [1, None]}},
    ],
    stop_reason="tool_use",
)
BODY = dump(RESPONSE)
STREAM = b"".join(message_events(RESPONSE))
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "No."}}


@holds_of(junk, seeds, st.booleans())
def test_any_response_is_translated_or_the_upstreams_error(
    value: object, seed: int, legacy: bool
) -> None:
    junked = [value, {"content": value}, {"content": [value], "usage": value}]
    for body in (*map(dump, junked), damaged(BODY, random.Random(seed), [BODY])):
        try:
            found = chat_completions.translate_response(body, legacy_functions=legacy)
        except UpstreamProtocolError:
            continue
        ChatCompletion.model_validate(json.loads(found))


def wire(*events: Json) -> bytes:
    return b"".join(b"data: %b\n\n" % dump(event) for event in events)


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
    """A completion's message, without the fields and the spelling that only streams have."""
    found = {key: value for key, value in message.items() if value not in (None, "")}
    for key in ("thinking_blocks", "tool_calls"):
        for entry in found.get(key, []):
            entry.pop("index", None)
    for function in [each["function"] for each in found.get("tool_calls", [])]:
        function.pop("parsed_arguments", None)
        function["arguments"] = json.loads(function["arguments"])
    if "function_call" in found:
        found["function_call"]["arguments"] = json.loads(found["function_call"]["arguments"])
    return found


@holds_of(messages, cuts, st.booleans(), st.sampled_from((b"\n", b"\r\n")))
def test_stream_equals_the_whole_response(
    message: Json, at: list[int], legacy: bool, newline: bytes
) -> None:
    stream = b"".join(message_events(message)).replace(b"\n", newline)
    translator = StreamTranslator(include_usage=True, legacy_functions=legacy, created=1)
    *chunks, done = fed(translator, pieces_of(stream, at))
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


@holds_of(messages, st.integers(1, 10**6), cuts)
def test_cut_or_failed_stream_never_looks_whole(message: Json, missing: int, at: list[int]) -> None:
    stream = b"".join(message_events(message))
    stream = stream[: -(missing % len(stream)) or -1]
    translator = StreamTranslator(include_usage=True)
    chunks = fed(translator, pieces_of(stream, at))
    assert not translator.ended
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert all(choice["finish_reason"] is None for choice in choices)


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


@holds_of(seeds, junk, st.lists(st.sampled_from(KINDS), min_size=1), cuts)
def test_any_stream_is_translated_or_the_upstreams_error(
    seed: int, value: object, kinds: list[str], at: list[int]
) -> None:
    """At any split alike; the output is whole chunks, or an error and nothing more."""
    events: list[Json] = [{"type": kind, **dict.fromkeys(PARTS, value)} for kind in kinds]
    for stream in (wire(*events), damaged(STREAM, random.Random(seed), [STREAM, wire(ERROR)])):
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


def cut_by_limit(message: Json, length: int) -> bytes:
    """The stream of a response that reached its limit anywhere after its start."""
    start, *events, _, stop = message_events(message)
    limit = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
    return b"".join([start, *events[: length % (len(events) + 1)], wire(limit), stop])


@holds_of(st.lists(st.tuples(messages, st.integers(0, 99)), min_size=1, max_size=4), abilities)
def test_responses_sent_back_become_a_request_that_is_accepted(
    responses: list[tuple[Json, int]], able: Capabilities | None
) -> None:
    history: list[Json] = [{"role": "user", "content": "Hi"}]
    for response, number in responses:
        if number % 3:
            stream = cut_by_limit(response, number)
            completion = joined(fed(StreamTranslator(), [stream])[:-1])
        else:
            completion = json.loads(chat_completions.translate_response(dump(response)))
        message = completion["choices"][0]["message"]
        history.append(message)
        history += [
            {"role": "tool", "tool_call_id": call["id"], "content": "fine"}
            for call in message.get("tool_calls") or []
        ]
    translate(*history, able=able)  # which asserts it

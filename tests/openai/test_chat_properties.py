"""What holds of every request and every stream: tried on many that are made up.

The made-up requests are valid ones of all shapes; the made-up streams are those of messages, cut
anywhere. Each run makes up the same ones.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter, ValidationError

from tornadoproxy.errors import InvalidRequest, UpstreamProtocolError
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, StreamTranslator

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

same_each_time = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Requests

NAMES = ("weather", "clock", "a-b_C9")
blanks = st.sampled_from(["", " ", "\n\t"])
words = st.text(min_size=1, max_size=20)
texts = st.one_of(words, words, blanks)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, values, max_size=3)
marks = st.sampled_from([{}, {}, {"cache_control": {"type": "ephemeral"}}])
breakpoints = st.sampled_from([{}, {}, {"prompt_cache_breakpoint": {"mode": "explicit"}}])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


encoded = st.binary(min_size=1, max_size=20).map(_base64)
text_parts = st.builds(
    lambda content, mark: {"type": "text", "text": content, **mark}, texts, marks | breakpoints
)
image_parts = st.builds(
    lambda url, mark: {"type": "image_url", "image_url": {"url": url, "detail": "auto"}, **mark},
    st.one_of(
        st.just("https://example.com/a.png"),
        encoded.map(lambda data: f"data:image/png;base64,iVBORw0KGgoA{data}"),
        encoded.map(lambda data: f"data:image/webp;base64,{data}"),
    ),
    marks,
)
file_parts = st.builds(
    lambda file, mark: {"type": "file", "file": file, **mark},
    st.one_of(
        words.map(lambda content: {"file_data": _base64(b"text: " + content.encode())}),
        st.just({"file_data": f"data:application/pdf;base64,{_base64(b'%PDF-1.7')}"}),
        st.just({"file_id": "file_1", "filename": "a.pdf"}),
    ),
    marks,
)
text_contents = texts | st.lists(text_parts, max_size=3)
user_contents = texts | st.lists(text_parts | image_parts | file_parts, max_size=4)
result_contents = texts | st.none() | st.lists(text_parts | image_parts, max_size=3)
assistant_contents = (
    texts
    | st.none()
    | st.lists(
        text_parts | words.map(lambda said: {"type": "refusal", "refusal": said}), max_size=3
    )
)
thoughts = st.one_of(
    st.builds(
        lambda thought, text_before, calls_before: {
            "type": "thinking",
            "thinking": thought,
            "signature": "c2ln",
            "text_before": text_before,
            "calls_before": calls_before,
        },
        st.text(max_size=10),
        st.integers(0, 30),
        st.integers(0, 4),
    ),
    st.just({"type": "redacted_thinking", "data": "ZGF0YQ=="}),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Messages that belong together, of every role."""
    steps = draw(st.lists(st.sampled_from(("system", "user", "assistant", "tools", "function"))))
    messages: list[Json] = []
    for number, step in enumerate(steps or ["user"]):
        if step == "system":
            role = draw(st.sampled_from(("system", "developer")))
            messages.append({"role": role, "content": draw(text_contents)})
        elif step == "user":
            messages.append({"role": "user", "content": draw(user_contents), **draw(marks)})
        elif step == "assistant":
            messages.append(draw(_responses()))
        elif step == "tools":
            messages += draw(_exchanges(number))
        else:
            name = draw(st.sampled_from(NAMES))
            messages.append(
                {**draw(_responses()), "function_call": {"name": name, "arguments": "{}"}}
            )
            messages.append({"role": "function", "name": name, "content": draw(texts)})
    return messages


@st.composite
def _responses(draw: st.DrawFn) -> Json:
    response: Json = {"role": "assistant", "content": draw(assistant_contents)}
    response["refusal"] = draw(st.none() | texts)
    given_thoughts = draw(st.none() | st.lists(thoughts, max_size=3))
    if given_thoughts is not None:
        response["thinking_blocks"] = given_thoughts
    return response


@st.composite
def _exchanges(draw: st.DrawFn, number: int) -> list[Json]:
    """An answer with calls, and all their results in any order."""
    tails = draw(st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True))
    ids = [f"{number}:{tail}" if tail else f"call_{number}" for tail in tails]
    arguments = st.one_of(objects.map(json.dumps), st.sampled_from(("", "{}", None)))
    response = draw(_responses())
    response["tool_calls"] = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": draw(st.sampled_from(NAMES)), "arguments": draw(arguments)},
        }
        for call_id in ids
    ]
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": draw(result_contents)}
        for call_id in draw(st.permutations(ids))
    ]
    return [response, *results]


schemas = st.recursive(
    st.sampled_from(
        [
            {"type": "string", "minLength": 1},
            {"type": "integer", "minimum": 0, "description": "How many?"},
            {"enum": ["a", 1, None]},
            {"type": ["null", "number"]},
        ]
    ),
    lambda inner: st.one_of(
        inner.map(lambda items: {"type": "array", "items": items, "minItems": 1}),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
        st.dictionaries(words, inner, max_size=3).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": list(properties),
            }
        ),
    ),
    max_leaves=6,
)
tools = st.lists(st.sampled_from(NAMES), unique=True, max_size=3).flatmap(
    lambda names: st.tuples(
        *(
            st.fixed_dictionaries(
                {"name": st.just(name)},
                optional={
                    "description": texts,
                    "parameters": st.dictionaries(words, schemas, max_size=2).map(
                        lambda properties: {"type": "object", "properties": properties}
                    ),
                    "strict": st.booleans() | st.none(),
                },
            )
            for name in names
        )
    ).map(list)
)


@st.composite
def _offers(draw: st.DrawFn) -> Json:
    offered = draw(tools)
    if draw(st.booleans()):
        fields: Json = {"functions": offered}
        named: Json = {"name": offered[0]["name"]} if offered else {}
        key = "function_call"
    else:
        fields = {"tools": [{"type": "function", "function": each} for each in offered]}
        named = {"type": "function", "function": {"name": offered[0]["name"]}} if offered else {}
        key = "tool_choice"
    choices = ["auto", "none", *(["required", named] if offered else [])]
    if key == "function_call" and offered:
        choices.remove("required")
    if draw(st.booleans()):
        fields[key] = draw(st.sampled_from(choices))
    return fields


plain_fields = st.fixed_dictionaries(
    {"model": st.sampled_from(("claude-test", "gpt-5"))},
    optional={
        "max_tokens": st.integers(1, 100_000),
        "max_completion_tokens": st.integers(1, 100_000) | st.none(),
        "stop": texts | st.lists(texts, max_size=4) | st.none(),
        "temperature": st.floats(0, 2) | st.none(),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(0, 100),
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.sampled_from(
            (None, "none", "minimal", "low", "medium", "high", "xhigh", "max")
        ),
        "response_format": st.one_of(
            st.just({"type": "text"}),
            st.just({"type": "json_object"}),
            st.builds(
                lambda schema, strict: {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": schema, "strict": strict},
                },
                schemas,
                st.booleans(),
            ),
        ),
        "user": texts,
        "metadata": st.dictionaries(words, words, max_size=2),
        "service_tier": st.sampled_from(("auto", "default", "flex", "standard_only")),
        "seed": st.integers(),
        "n": st.just(1),
        "stream": st.booleans(),
        "thinking": st.sampled_from(({"type": "adaptive"}, {"type": "disabled"})),
        "output_config": st.just({"effort": "low"}),
    },
)
requests = st.builds(
    lambda messages, offer, fields: {"messages": messages, **offer, **fields},
    conversations(),
    _offers(),
    plain_fields,
)
abilities = st.none() | st.builds(
    Capabilities,
    max_tokens=st.none() | st.integers(1, 100_000),
    structured_outputs=st.booleans(),
    forced_tools=st.booleans(),
    thinking=st.frozensets(st.sampled_from(("adaptive", "enabled", "disabled", "between_tools"))),
    efforts=st.sampled_from(((), ("low", "medium", "high"), ("low", "medium", "high", "max"))),
)

WHOLE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
STREAMED: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsStreaming)


def read_through(value: Any) -> None:  # Any: what pydantic has validated
    """Validate what pydantic leaves for later: the items of each iterable."""
    if isinstance(value, dict):
        for each in value.values():
            read_through(each)
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        for each in value:
            read_through(each)


def translated(
    document: Json, able: Capabilities | None = None, options: Options | None = None
) -> Json:
    translation = chat_completions.translate_request(
        chat_completions.parse(json.dumps(document).encode()),
        options=options or Options(models={"*": "claude-mapped"}),
        capabilities=able,
    )
    body: Json = json.loads(translation.body)
    return body


def blocks_of(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def of_type(blocks: list[Json], *kinds: str) -> list[Json]:
    return [block for block in blocks if block["type"] in kinds]


def accept(body: Json) -> None:
    """Assert what upstream asks of a request: its types, and what they cannot say."""
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
        blocks = blocks_of(message)
        assert all(block["text"].strip() for block in of_type(blocks, "text"))
        assert all(block["signature"] for block in of_type(blocks, "thinking"))
        assert all(block["data"] for block in of_type(blocks, "redacted_thinking"))
        assert blocks[-1]["type"] not in ("thinking", "redacted_thinking")
        results = [block["tool_use_id"] for block in of_type(blocks, "tool_result")]
        called = of_type(blocks_of(messages[number - 1]) if number else [], "tool_use")
        assert sorted(results) == sorted(block["id"] for block in called)
        assert of_type(blocks[: len(results)], "tool_result") == blocks[: len(results)]
        ids += [block["id"] for block in of_type(blocks, "tool_use")]
    assert len(set(ids)) == len(ids)
    names += [
        block["name"] for message in messages for block in of_type(blocks_of(message), "tool_use")
    ]
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", each) for each in ids + names)
    assert names or not ids


def test_the_types_refuse_what_is_wrong() -> None:
    """The test below has teeth: the types look into every message."""
    wrong = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [{}]}]}
    with pytest.raises(ValidationError):
        read_through(WHOLE.validate_python(wrong))


@same_each_time
@given(requests, abilities)
def test_valid_request_becomes_one_that_upstream_accepts(
    document: Json, able: Capabilities | None
) -> None:
    body = translated(document, able)
    accept(body)
    if able is not None and not able.forced_tools:
        assert body.get("tool_choice", {}).get("type") not in {"any", "tool"}


@same_each_time
@given(requests)
def test_nothing_that_was_said_is_lost(document: Json) -> None:
    body = translated(document, None)
    told = "".join(
        block["text"]
        for message in body["messages"]
        for block in blocks_of(message)
        if block["type"] == "text"
    )
    for message in document["messages"]:
        if message["role"] in {"user", "assistant"} and isinstance(message["content"], str):
            # thinking can stand within, and what stands last ends without blanks
            assert "".join(message["content"].split()) in "".join(told.split())


# Junk

any_text = st.text(st.characters(), max_size=8)  # halves of characters as well
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)


def places(document: object, path: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value within `document`."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*path, index))


@st.composite
def spoiled(draw: st.DrawFn) -> Json:
    """A valid request with junk in some of its places."""
    document = copy.deepcopy(draw(requests))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(document))[1:]))
        holder: Any = document  # Any: a JSON object or list
        for step in way:
            holder = holder[step]
        holder[last] = draw(junk)
    return document


@same_each_time
@given(spoiled(), abilities)
def test_junk_is_refused_or_translated(document: Json, able: Capabilities | None) -> None:
    try:
        translation = chat_completions.translate_request(document, capabilities=able)
    except InvalidRequest:
        return
    json.loads(translation.body.decode())
    for name in translation.ignored:
        assert name.isascii()
        assert name.isprintable()


@same_each_time
@given(st.binary(max_size=40) | junk.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        document = chat_completions.parse(body)
        chat_completions.translate_request(document)
    except InvalidRequest:
        pass


@same_each_time
@given(junk)
def test_any_answer_is_translated_or_the_upstreams_fault(response: object) -> None:
    for body in (response, {"content": response}, {"content": [response], "usage": response}):
        try:
            told = chat_completions.translate_response(json.dumps(body).encode())
        except UpstreamProtocolError:
            continue
        ChatCompletion.model_validate_json(told)


# Streams

usages = st.fixed_dictionaries(
    {"input_tokens": st.integers(0, 10**6), "output_tokens": st.integers(0, 10**6)},
    optional={
        "cache_read_input_tokens": st.integers(0, 10**6) | st.none(),
        "cache_creation_input_tokens": st.integers(0, 10**6) | st.none(),
    },
)
blocks = st.one_of(
    st.text(max_size=20).map(lambda content: {"type": "text", "text": content}),
    st.text(max_size=20).map(
        lambda thought: {"type": "thinking", "thinking": thought, "signature": "c2ln"}
    ),
    st.just({"type": "redacted_thinking", "data": "ZGF0YQ=="}),
    objects.map(lambda given: {"type": "tool_use", "name": "weather", "input": given}),
    st.builds(
        lambda name, given: {"type": "tool_use", "name": name, "input": given}, st.text(), objects
    ),
    st.just({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
    st.just({"type": "of the future", "text": "x"}),
)


@st.composite
def messages(draw: st.DrawFn) -> Json:
    """A message of upstream's."""
    content = draw(st.lists(blocks, max_size=6))
    for number, block in enumerate(content):
        if block["type"] == "tool_use":
            content[number] = {**block, "id": f"toolu_{number}"}
    return {
        "id": "msg_01AbC",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": draw(
            st.sampled_from(("end_turn", "tool_use", "max_tokens", "refusal", "pause_turn"))
        ),
        "usage": draw(usages),
    }


@st.composite
def _fragments(draw: st.DrawFn, content: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
    return [
        content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)
    ]


# Of blocks that grow: where their content is, and the delta that tells a part of it.
GROWING = {
    "text": ("text", "text_delta", "text"),
    "thinking": ("thinking", "thinking_delta", "thinking"),
    "tool_use": ("input", "input_json_delta", "partial_json"),
}


@st.composite
def _block_events(draw: st.DrawFn, index: int, block: Json) -> list[Json]:
    shown = dict(block)
    deltas: list[Json] = []
    if block["type"] in GROWING:
        field, kind, part = GROWING[block["type"]]
        content = block[field]
        shown[field] = "" if isinstance(content, str) else {}
        if not isinstance(content, str):
            content = _compact(content) if content else ""
        deltas = [{"type": kind, part: fragment} for fragment in draw(_fragments(content))]
    if block["type"] == "thinking":
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        shown["signature"] = ""
    return [
        {"type": "content_block_start", "index": index, "content_block": shown},
        *({"type": "content_block_delta", "index": index, "delta": each} for each in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@st.composite
def _streams(draw: st.DrawFn, message: Json) -> list[Json]:
    """Events that tell `message`; calls that are neighbours can grow in turns."""
    start = {**message, "content": [], "stop_reason": None}
    events: list[Json] = [{"type": "message_start", "message": start}]
    together: list[list[Json]] = []
    for index, block in enumerate(message["content"]):
        told = draw(_block_events(index, block))
        if block["type"] != "tool_use" or not draw(st.booleans()):
            events += _in_turns(together)
            together = []
        together.append(told)
        if block["type"] != "tool_use":
            events += _in_turns(together)
            together = []
    events += _in_turns(together)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": message["usage"]})
    for _ in range(draw(st.integers(0, 3))):
        extra: Json = {"type": draw(st.sampled_from(("ping", "of the future")))}
        events.insert(draw(st.integers(0, len(events))), extra)
    return [*events, {"type": "message_stop"}]


def _in_turns(together: list[list[Json]]) -> list[Json]:
    merged: list[Json] = []
    while together := [told for told in together if told]:
        merged += [told.pop(0) for told in together]
    return merged


told_messages = messages().flatmap(lambda message: st.tuples(st.just(message), _streams(message)))


def wire(events: list[Json]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [
        stream[begin:end] for begin, end in zip([0, *places], [*places, len(stream)], strict=True)
    ]


def fed(translator: StreamTranslator, pieces: list[bytes]) -> list[str]:
    """The data of the events that the client reads."""
    chunks = b"".join([translator.feed(piece) for piece in pieces])
    events = [event for event in chunks.decode().split("\n\n")[:-1] if event != ": ping"]
    # as clients do that split lines so
    assert [line for event in events for line in event.splitlines()] == events
    return [event.removeprefix("data: ") for event in events]


def plain(message: Json) -> Json:
    """A completion's message, without what only streams have."""
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


cut_places = st.lists(st.integers(0, 10**6), max_size=8)


@same_each_time
@given(told_messages, cut_places, st.booleans(), st.sampled_from((b"\n", b"\r\n")))
def test_a_stream_tells_what_the_whole_answer_would(
    told: tuple[Json, list[Json]], cuts: list[int], legacy: bool, newline: bytes
) -> None:
    message, events = told
    stream = wire(events).replace(b"\n", newline)
    translator = StreamTranslator(include_usage=True, legacy_functions=legacy, created=1)
    *chunks, done = fed(translator, pieces_of(stream, cuts))
    assert done == "[DONE]"
    assert translator.ended

    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)
        # as the SDK reads it
        state.handle_chunk(ChatCompletionChunk.construct(**json.loads(chunk)))
    streamed: Json = state.current_completion_snapshot.to_dict()

    body = chat_completions.translate_response(
        json.dumps(message).encode(), legacy_functions=legacy, created=1
    )
    ChatCompletion.model_validate_json(body, strict=True)
    whole = json.loads(body)
    for key in ("id", "model", "created", "usage"):
        assert streamed[key] == whole[key]
    (streamed_choice,), (whole_choice,) = streamed["choices"], whole["choices"]
    assert streamed_choice["finish_reason"] == whole_choice["finish_reason"]
    assert plain(streamed_choice["message"]) == plain(whole_choice["message"])


@same_each_time
@given(told_messages, cut_places)
def test_texts_and_arguments_are_whole_at_any_split(
    told: tuple[Json, list[Json]], cuts: list[int]
) -> None:
    message, events = told
    text = ""
    arguments: dict[int, str] = {}
    names: list[str] = []
    *chunks, _ = fed(StreamTranslator(), pieces_of(wire(events), cuts))
    for chunk in chunks:
        ((choice,),) = (json.loads(chunk)["choices"],)
        text += choice["delta"].get("content", "")
        for call in choice["delta"].get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(names)
                names.append(call["function"]["name"])
            index, fragment = call["index"], call["function"]["arguments"]
            arguments[index] = arguments.get(index, "") + fragment
    of_kind = {
        kind: [block for block in message["content"] if block["type"] == kind]
        for kind in ("text", "tool_use")
    }
    assert text == "".join(block["text"] for block in of_kind["text"])
    assert names == [block["name"] for block in of_kind["tool_use"]]
    assert list(arguments.values()) == [_compact(block["input"]) for block in of_kind["tool_use"]]


@same_each_time
@given(told_messages, st.integers(1, 10**6), cut_places)
def test_a_stream_that_breaks_never_looks_whole(
    told: tuple[Json, list[Json]], missing: int, cuts: list[int]
) -> None:
    stream = wire(told[1])
    stream = stream[: -(missing % len(stream)) or -1]
    translator = StreamTranslator(include_usage=True)
    chunks = fed(translator, pieces_of(stream, cuts))
    assert not translator.ended
    for chunk in chunks:
        for choice in json.loads(chunk)["choices"]:
            assert choice["finish_reason"] is None


@same_each_time
@given(told_messages, st.integers(0, 10**6), cut_places)
def test_an_error_is_the_last_thing_that_is_told(
    told: tuple[Json, list[Json]], place: int, cuts: list[int]
) -> None:
    events = list(told[1])
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    events.insert(place % len(events), error)
    translator = StreamTranslator(include_usage=True)
    *chunks, last = fed(translator, pieces_of(wire(events), cuts))
    assert json.loads(last)["error"]["message"] == "Overloaded"
    assert translator.failed
    assert all("error" not in json.loads(chunk) for chunk in chunks)


@same_each_time
@given(
    st.lists(junk, max_size=3),
    st.lists(
        st.sampled_from(
            (
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
                "error",
            )
        ),
        min_size=1,
    ),
)
def test_events_of_junk_are_translated_or_the_upstreams_fault(
    values: list[object], kinds: list[str]
) -> None:
    value = values[0] if values else {}
    for told in values or [{}]:
        events = [
            {
                "type": kind,
                "index": value if isinstance(value, int) else 0,
                "message": told,
                "content_block": told if isinstance(told, dict) else {"type": "text"},
                "delta": told,
                "usage": told,
                "error": told,
            }
            for kind in kinds
        ]
        try:
            StreamTranslator(include_usage=True).feed(wire(events))
        except UpstreamProtocolError:
            continue


# Answers that come back


@st.composite
def cut(draw: st.DrawFn, told: tuple[Json, list[Json]]) -> list[Json]:
    """The events of an answer that reached its limit anywhere after its beginning."""
    _, events = told
    start = next(n for n, event in enumerate(events) if event["type"] == "message_start")
    kept = events[: draw(st.integers(start + 1, len(events)))]
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    return [
        *(event for event in kept if event["type"] not in {"message_delta", "message_stop"}),
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


def accumulated(events: list[Json]) -> Json:
    """The assistant message that the SDK makes of a stream."""
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    *chunks, _ = fed(StreamTranslator(), [wire(events)])
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.construct(**json.loads(chunk)))
    response: Json = state.current_completion_snapshot.choices[0].message.to_dict()
    return response


def whole(message: Json) -> Json:
    body = chat_completions.translate_response(json.dumps(message).encode())
    response: Json = json.loads(body)["choices"][0]["message"]
    return response


responses = told_messages.flatmap(
    lambda told: st.one_of(
        st.just(whole(told[0])), st.just(accumulated(told[1])), cut(told).map(accumulated)
    )
)


@same_each_time
@given(st.lists(responses, min_size=1, max_size=4), abilities)
def test_answers_sent_back_become_a_request_that_upstream_accepts(
    said: list[Json], able: Capabilities | None
) -> None:
    history: list[Json] = [{"role": "user", "content": "Hi"}]
    for response in said:
        history.append(response)
        history += [
            {"role": "tool", "tool_call_id": call["id"], "content": "fine"}
            for call in response.get("tool_calls") or []
        ]
    accept(translated({"model": "claude-test", "messages": history}, able))

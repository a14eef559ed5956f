"""Properties of translated responses: streams are legal, equal whole ones, and come back."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock, patch

from accepted import accept, blocks_of
from damage import damaged
from hypothesis import strategies as st
from openai.types.responses import Response
from properties import holds_of, junk_of
from response_events import CREATED, accumulate, check, documents, translation
from upstream_events import Json, error_event, wire
from upstream_messages import (
    KINDS,
    PARTS,
    blocks,
    counts,
    cuts,
    inputs,
    messages_of,
    of,
    pieces_of,
    seeds,
    short,
)

from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.openai import responses
from tornadoproxy.openai.responses.output import response as whole
from tornadoproxy.openai.responses.output.response import translate_message
from tornadoproxy.openai.responses.output.stream import StreamTranslator
from tornadoproxy.openai.responses.translation import Translation
from tornadoproxy.testing import message_events

TOOLS: list[Json] = [
    {"type": "function", "name": "function", "parameters": {"type": "object"}},
    {"type": "custom", "name": "custom"},
    {
        "type": "namespace",
        "name": "n",
        "description": "",
        "tools": [{"type": "function", "name": "function", "parameters": {"type": "object"}}],
    },
    {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
    *({"type": "shell"}, {"type": "local_shell"}, {"type": "apply_patch"}),
    {"type": "web_search"},
]
REQUEST: Json = {"model": "claude-test", "input": "Hi", "tools": TOOLS}
ORIGINS = responses.translate_request(REQUEST).origins
PAGE = {
    "type": "web_search_result",
    "url": "https://a.example/",
    "title": "A",
    "encrypted_content": "c2Vj",
    "page_age": None,
}
NO_PAGE = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
CITATION = {
    "type": "web_search_result_location",
    "url": "https://a.example/",
    "title": "A",
    "encrypted_index": "x",
    "cited_text": "y",
}
OTHERS = [
    {"type": "thinking", "thinking": "", "signature": "c2ln"},
    {"type": "thinking", "thinking": "Hm", "signature": ""},
    {"type": "text", "text": "x", "citations": [CITATION, {**CITATION, "type": "char_location"}]},
    {"type": "fallback", "from": {"model": "claude-test"}, "to": {"model": "claude-next"}},
]


def search(query: str, found: object) -> list[Json]:
    block = {"type": "server_tool_use", "name": "web_search", "input": {"query": query}}
    return [block, {"type": "web_search_tool_result", "content": found}]


def alone(block: st.SearchStrategy[Json]) -> st.SearchStrategy[list[Json]]:
    return block.map(lambda each: [each])


def joined(parts: list[list[Json]]) -> list[Json]:
    """One list of blocks, in which each search has an id of its own, as does its result."""
    for number, part in enumerate(parts):
        if part[-1]["type"] == "web_search_tool_result":
            part[0]["id"] = part[1]["tool_use_id"] = f"srvtoolu_{number}"
    return [{**block} for block in itertools.chain(*parts)]


calls = of("tool_use", name=st.sampled_from([*ORIGINS]), input=inputs)
FORMED: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("function", "n__function", "tool_search", "unknown"), inputs),
    "custom": st.fixed_dictionaries({"input": short}),
    "shell": st.fixed_dictionaries({"commands": st.lists(short), "timeout_ms": counts}),
    "local_shell": st.fixed_dictionaries({"command": st.lists(short, min_size=1)}),
    "apply_patch": st.fixed_dictionaries(
        {"type": st.just("update_file"), "path": short, "diff": short}
    ),
}
formed = st.one_of(
    [of("tool_use", name=st.just(name), input=given) for name, given in FORMED.items()]
)
searches = st.builds(search, short, st.lists(st.just(PAGE), max_size=2) | st.just(NO_PAGE))
content = st.lists(
    searches | alone(blocks | calls | formed | st.sampled_from(OTHERS)),
    max_size=6,
).map(joined)
messages = messages_of(content)
translations = st.builds(
    lambda for_codex, compacts: translation(
        origins=ORIGINS, for_codex=for_codex, compacts=compacts
    ),
    st.booleans(),
    st.sampled_from((False, False, True)),
)


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def fed(translator: StreamTranslator, pieces: Iterable[bytes]) -> list[Json]:
    return documents(b"".join([translator.feed(piece) for piece in pieces]))


def plain(response: Json) -> Json:
    """A response without the time of its end, and without the spelling of arguments."""
    output = []
    for item in response["output"]:
        item = {**item}
        if isinstance(item.get("arguments"), str):
            item["arguments"] = json.loads(item["arguments"])
        output.append(item)
    return {**response, "output": output, "completed_at": response["completed_at"] is not None}


@holds_of(messages, translations, cuts, st.sampled_from((b"\n", b"\r\n")))
def test_stream_equals_the_whole_response(
    message: Json, request: Translation, at: list[int], newline: bytes
) -> None:
    stream = b"".join(message_events(message)).replace(b"\n", newline)
    translator = StreamTranslator(request, created=CREATED)
    events = fed(translator, pieces_of(stream, at))
    check(events)
    assert (translator.ended, translator.failed) == (True, False)
    expected = translate_message(message, request, created=CREATED)
    Response.model_validate(expected, strict=True)
    assert plain(events[-1]["response"]) == plain(expected)
    complete = accumulate(events)
    if expected["status"] == "completed":
        found = [item.to_dict(exclude_unset=True) for item in complete.output]
        for item in found:
            for each in (item, *item.get("content", ())):  # the SDK's own
                each.pop("parsed", None)
                each.pop("parsed_arguments", None)
        assert found == events[-1]["response"]["output"]


@holds_of(messages, translations, st.integers(1, 10**6), cuts)
def test_cut_stream_ends_only_by_a_failure(
    message: Json, request: Translation, missing: int, at: list[int]
) -> None:
    stream = b"".join(message_events(message))
    stream = stream[: -(missing % len(stream)) or -1]
    translator = StreamTranslator(request, created=CREATED)
    events = fed(translator, pieces_of(stream, at))
    check(events)
    assert not translator.ended
    assert not events or events[-1]["type"].partition(".")[2] not in {"completed", "incomplete"}
    events += documents(translator.fail(UpstreamClosed("It was cut.")))
    check(events)
    assert events[-1]["response"] == translator.response


junk = junk_of(
    [*PARTS, "type", "text", "id", "name", "input", "citation", "partial_json", "content"],
    ["text", "tool_use", "thinking", "web_search", "text_delta", "refusal", "x", "\ud800"],
)
KINDS_OF_BLOCKS = [
    *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "fallback"),
    *("web_search_tool_result", "of the future"),
]
KINDS_OF_DELTAS = [
    *("text_delta", "thinking_delta", "signature_delta", "input_json_delta", "citations_delta"),
]
words = st.text(max_size=3) | st.sampled_from(["c2ln", '{"input": "', "web_search", "shell"])
given_blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS_OF_BLOCKS)},
    optional={
        **dict.fromkeys(("text", "thinking", "signature", "data"), words),
        "id": st.sampled_from(["a", "b"]),
        "tool_use_id": st.sampled_from(["a", "b"]),
        "name": st.just("web_search") | st.sampled_from([*ORIGINS]),
        "input": inputs | junk,
        "content": st.lists(st.just(PAGE)) | junk,
        "citations": st.lists(st.just(CITATION), max_size=2) | junk,
        "to": junk,
    },
)
given_deltas = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS_OF_DELTAS)},
    optional={
        **dict.fromkeys(("text", "thinking", "signature", "partial_json"), words),
        "citation": st.just(CITATION) | junk,
    },
)
places = st.integers(0, 3)
EVENTS: list[st.SearchStrategy[Json]] = [
    of("content_block_start", index=places, content_block=given_blocks),
    of("content_block_delta", index=places, delta=given_deltas),
    of("content_block_stop", index=places),
    of("message_delta", delta=of("x", stop_reason=words), usage=junk),
    of("message_stop"),
    of("ping"),
]
START: Json = {"type": "message_start", "message": {"id": "msg_01", "model": "claude-test"}}


def outcome(request: Translation, pieces: Iterable[bytes]) -> tuple[bytes, bool]:
    """The events of a stream, and whether it did not begin as one."""
    translator = StreamTranslator(request, created=CREATED)
    # without the time of its end, and without the random ids that a message without one gets
    with patch.multiple(whole, time=Mock(time=lambda: 1), secrets=Mock(token_hex=lambda _: "x")):
        try:
            return b"".join([translator.feed(piece) for piece in pieces]), False
        except UpstreamProtocolError:
            return b"", True


@holds_of(st.lists(st.one_of(EVENTS), max_size=25), translations, cuts, junk, seeds)
def test_any_stream_becomes_events_that_are_legal(
    events: list[Json], request: Translation, at: list[int], value: object, seed: int
) -> None:
    """At any split alike: the upstream may open several blocks at a time, or leave some open."""
    chance = random.Random(seed)
    fields = {**dict.fromkeys(PARTS, value), "message": {**START["message"], "usage": value}}
    junked = [{"type": kind, **fields} for kind in chance.choices(KINDS, k=4)]
    stream = wire(START, *events, {"type": "message_stop"})
    for each in (stream, damaged(stream, chance, [stream, wire(error_event("x"))]), wire(*junked)):
        found = outcome(request, pieces_of(each, at))
        check(documents(found[0]), strictly=False)
        assert found == outcome(request, [each])


@holds_of(junk, st.lists(given_blocks, max_size=4), translations)
def test_any_message_becomes_a_response(
    value: object, given: list[Json], request: Translation
) -> None:
    for content in (given, [value], [{"type": "text", "text": "x", "citations": value}]):
        message = {"content": content, "stop_reason": value, "usage": value, "stop_details": value}
        Response.model_validate(translate_message(message, request), strict=True)


# -- responses that come back

OUTPUTS: dict[str, tuple[str, object]] = {
    "function_call": ("function_call_output", "fine"),
    "custom_tool_call": ("custom_tool_call_output", "fine"),
    "tool_search_call": ("tool_search_output", None),
    "shell_call": ("shell_call_output", []),
    "local_shell_call": ("local_shell_call_output", "fine"),
    "apply_patch_call": ("apply_patch_call_output", None),
}
signed = of("thinking", thinking=short, signature=st.just("c2ln"))
carried = st.lists(searches | alone(signed | formed | of("text", text=short)))


def returned(item: Json) -> Json:
    kind, output = OUTPUTS[item["type"]]
    fields: Json = {"type": kind, "call_id": item["call_id"], "status": "completed"}
    if kind == "tool_search_output":
        return {**fields, "execution": "client", "tools": []}
    return fields if output is None else {**fields, "output": output}


@holds_of(messages_of(carried.map(joined)), st.booleans())
def test_response_sent_back_becomes_the_upstreams_blocks(message: Json, streamed: bool) -> None:
    message = {**message, "stop_reason": "end_turn"}
    last = {"type": "text", "text": "So."}  # the upstream refuses thinking at the end of a turn
    message["content"] = [*message["content"], last]
    request = responses.translate_request({**REQUEST, "stream": streamed})
    if streamed:
        translator = StreamTranslator(request)
        translator.feed(b"".join(message_events(message)))
        response: Any = translator.response
    else:
        response = translate_message(message, request)
    output = response["output"]
    results = [returned(item) for item in output if "call_id" in item]
    history = [{"role": "user", "content": "Hi"}, *output, *results]
    body = json.loads(responses.translate_request({**REQUEST, "input": history}).body)
    accept(body)
    turn = body["messages"][1]
    blocks = blocks_of(turn)
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    said = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert "".join("".join(texts).split()) == "".join("".join(said).split())
    assert [block for block in blocks if block["type"] != "text"] == [
        block for block in message["content"] if block["type"] != "text"
    ]

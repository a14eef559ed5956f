"""Chat completions requests, messages of the upstream and their streams, as strategies."""

from __future__ import annotations

import base64
import copy
import json
from typing import TYPE_CHECKING, Any

from damage import SIGNS
from hypothesis import strategies as st

from tornadoproxy.openai.chat_completions import FIELDS, Capabilities, Options

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

# -- requests

NAMES = ("weather", "clock", "a-b_C9")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
words = st.text(min_size=1, max_size=20)
texts = st.one_of(words, words, st.sampled_from(["", " ", "\n\t"]))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, values, max_size=3)
marks = st.sampled_from(
    [
        *({}, {}, {"cache_control": {"type": "ephemeral"}}),
        {"prompt_cache_breakpoint": {"mode": "explicit"}},
    ]
)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def of(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Objects of a type."""
    return st.fixed_dictionaries({"type": st.just(kind), **fields})


def part(kind: str, *contents: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Content parts, some with a cache mark."""
    return st.builds(
        lambda each, mark: {**each, **mark}, of(kind, **{kind: st.one_of(contents)}), marks
    )


encoded = st.binary(min_size=1, max_size=20).map(_base64)
text_parts = part("text", texts)
image_parts = part(
    "image_url",
    st.just({"url": "https://example.com/a.png", "detail": "auto"}),
    encoded.map(lambda data: {"url": f"data:image/png;base64,iVBORw0KGgoA{data}"}),
    encoded.map(lambda data: {"url": f"data:image/webp;base64,{data}"}),
)
file_parts = part(
    "file",
    words.map(lambda content: {"file_data": _base64(b"text: " + content.encode())}),
    st.sampled_from(
        [
            {"file_data": f"data:application/pdf;base64,{_base64(b'%PDF-1.7')}"},
            {"file_id": "file_1", "filename": "a.pdf"},
        ]
    ),
)
text_contents = texts | st.lists(text_parts, max_size=3)
user_contents = texts | st.lists(text_parts | image_parts | file_parts, max_size=4)
result_contents = texts | st.none() | st.lists(text_parts | image_parts, max_size=3)
assistant_contents = texts | st.none() | st.lists(text_parts | part("refusal", words), max_size=3)
thoughts = st.just({"type": "redacted_thinking", "data": "ZGF0YQ=="}) | of(
    "thinking",
    thinking=st.text(max_size=10),
    signature=st.just("c2ln"),
    text_before=st.integers(0, 30),
    calls_before=st.integers(0, 4),
)
responses = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": assistant_contents,
        "refusal": st.none() | texts,
        "thinking_blocks": st.none() | st.lists(thoughts, max_size=3),
    }
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Valid messages of every role."""
    steps = draw(st.lists(st.sampled_from(("system", "user", "assistant", "tools", "function"))))
    messages: list[Json] = []
    for number, step in enumerate(steps or ["user"]):
        if step == "system":
            role = draw(st.sampled_from(("system", "developer")))
            messages.append({"role": role, "content": draw(text_contents)})
        elif step == "user":
            messages.append({"role": "user", "content": draw(user_contents), **draw(marks)})
        elif step == "assistant":
            messages.append(draw(responses))
        elif step == "tools":
            messages += draw(_exchanges(number))
        else:
            function = {"name": draw(st.sampled_from(NAMES)), "arguments": "{}"}
            messages.append({**draw(responses), "function_call": function})
            result = {"role": "function", "name": function["name"], "content": draw(texts)}
            messages.append(result)
    return messages


@st.composite
def _exchanges(draw: st.DrawFn, number: int) -> list[Json]:
    """A message with calls, and all their results in any order."""
    tails = draw(st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True))
    ids = [f"{number}:{tail}" if tail else f"call_{number}" for tail in tails]
    functions = st.fixed_dictionaries(
        {
            "name": st.sampled_from(NAMES),
            "arguments": objects.map(json.dumps) | st.sampled_from(("", "{}", None)),
        }
    )
    calls = [{"id": each, "type": "function", "function": draw(functions)} for each in ids]
    results = [
        {"role": "tool", "tool_call_id": each, "content": draw(result_contents)}
        for each in draw(st.permutations(ids))
    ]
    return [{**draw(responses), "tool_calls": calls}, *results]


schemas = st.sampled_from(
    [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": ["null", "number"]}, "minItems": 1},
        {"anyOf": [{"enum": ["a", 1, None]}, {"type": "object", "properties": {"a": {}}}]},
        {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
    ]
)
functions = st.fixed_dictionaries(
    {"name": st.sampled_from(NAMES)},
    optional={
        "description": texts,
        "parameters": st.dictionaries(words, schemas, max_size=2).map(
            lambda properties: {"type": "object", "properties": properties}
        ),
        "strict": st.booleans() | st.none(),
    },
)


@st.composite
def _offers(draw: st.DrawFn) -> Json:
    offered = draw(st.lists(functions, unique_by=lambda each: str(each["name"]), max_size=3))
    named: Json = {"name": offered[0]["name"]} if offered else {}
    if draw(st.booleans()):
        fields: Json = {"functions": offered}
        key, choices = "function_call", ["auto", "none", *([named] if offered else [])]
    else:
        fields = {"tools": [{"type": "function", "function": each} for each in offered]}
        one = {"type": "function", "function": named}
        key, choices = "tool_choice", ["auto", "none", *(["required", one] if offered else [])]
    return fields | ({key: draw(st.sampled_from(choices))} if draw(st.booleans()) else {})


formats = st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | of(
    "json_schema",
    json_schema=st.fixed_dictionaries(
        {"name": st.just("x"), "schema": schemas, "strict": st.booleans()}
    ),
)
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
        "reasoning_effort": st.sampled_from((None, *EFFORTS)),
        "response_format": formats,
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

options = st.sampled_from(
    [Options(), Options(strict=True), Options(drop_sampling=True, models={"*": "claude-mapped"})]
)

# -- junk

KEYS = [
    *sorted(FIELDS),
    *("role", "content", "type", "text", "image_url", "url", "file", "file_data", "name"),
    *("tool_calls", "tool_call_id", "function", "arguments", "parameters", "schema", "strict"),
    *("thinking_blocks", "signature", "thinking", "cache_control", "properties", "required"),
    *("json_schema", "include_usage", "user_id", "items", "anyOf", "$ref", "$defs", "enum"),
]
WORDS = [
    *("user", "assistant", "system", "developer", "tool", "function", "text", "image_url", "file"),
    *("auto", "none", "required", "json_schema", "json_object", "low", "max", "enabled", "object"),
    *("data:image/png;base64,aGk=", "data:;base64,", "data:", "https://x.example", "#/$defs/x"),
    *("", " ", "call_1", "{}", "[", '{"a": NaN}', "1e999", "\ud800", "\x00", "null"),
]
NUMBERS = [2**63, -(2**70), 10**400, 1e308, -0.0, 0.5, float("inf"), float("nan")]
any_text = st.text(st.characters(), max_size=8)  # with halves of surrogate pairs
keys = any_text | st.sampled_from(KEYS)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text | st.sampled_from([*WORDS, *NUMBERS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=15,
)
seeds = st.integers(0, 2**32 - 1)
signs = st.sampled_from([*SIGNS, b'{"model": "m", "messages": [', b'"role": "user"'])
noise = st.binary(max_size=40) | st.lists(signs, max_size=40).map(b"".join)


def _places(document: object, path: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value within `document`."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from _places(value, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn) -> Json:
    """A valid request with junk in some of its places."""
    document = copy.deepcopy(draw(requests))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(_places(document))[1:]))
        holder: Any = document  # Any: a JSON object or list
        for step in way:
            holder = holder[step]
        holder[last] = draw(junk)
    return document


# -- messages and streams

counts = st.integers(0, 10**6)
usages = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts},
    optional={
        "cache_read_input_tokens": counts | st.none(),
        "cache_creation_input_tokens": counts | st.none(),
    },
)
short = st.text(max_size=20)
blocks = st.one_of(
    of("text", text=short),
    of("thinking", thinking=short, signature=st.just("c2ln")),
    of("tool_use", name=st.just("weather") | st.text(), input=objects),
    of("server_tool_use", id=st.just("srvtoolu_1"), name=st.just("web_search"), input=objects),
    st.sampled_from(
        [{"type": "redacted_thinking", "data": "ZGF0YQ=="}, {"type": "of the future", "text": "x"}]
    ),
)


@st.composite
def messages(draw: st.DrawFn) -> Json:
    """A message of the upstream."""
    content = draw(st.lists(blocks, max_size=6))
    for number, block in enumerate(content):
        if block["type"] == "tool_use":
            content[number] = {**block, "id": f"toolu_{number}"}
    reasons = ("end_turn", "tool_use", "max_tokens", "refusal", "pause_turn")
    return {
        "id": "msg_01AbC",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": draw(st.sampled_from(reasons)),
        "usage": draw(usages),
    }


# The blocks that grow: the field of their content, and the type and field of their deltas.
GROWING = {
    "text": ("text", "text_delta", "text"),
    "thinking": ("thinking", "thinking_delta", "thinking"),
    "tool_use": ("input", "input_json_delta", "partial_json"),
}


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@st.composite
def _block_events(draw: st.DrawFn, index: int, block: Json) -> list[Json]:
    shown = dict(block)
    deltas: list[Json] = []
    if block["type"] in GROWING:
        field, kind, key = GROWING[block["type"]]
        content = block[field]
        shown[field] = "" if isinstance(content, str) else {}
        if not isinstance(content, str):
            content = compact(content) if content else ""
        cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
        pieces = zip([0, *cuts], [*cuts, len(content)], strict=True)
        deltas = [{"type": kind, key: content[begin:end]} for begin, end in pieces]
    if block["type"] == "thinking":
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        shown["signature"] = ""
    return [
        {"type": "content_block_start", "index": index, "content_block": shown},
        *({"type": "content_block_delta", "index": index, "delta": each} for each in deltas),
        {"type": "content_block_stop", "index": index},
    ]


@st.composite
def _streams(draw: st.DrawFn, message: Json) -> list[Json]:
    """The events of `message`; neighboring calls can grow in turns."""
    events: list[Json] = []
    together: list[list[Json]] = []
    for index, block in enumerate(message["content"]):
        if block["type"] != "tool_use" or not draw(st.booleans()):
            events += _in_turns(together)
            together = []
        together.append(draw(_block_events(index, block)))
    events += _in_turns(together)
    start = {**message, "content": [], "stop_reason": None}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events = [
        {"type": "message_start", "message": start},
        *events,
        {"type": "message_delta", "delta": delta, "usage": message["usage"]},
    ]
    for kind in draw(st.lists(st.sampled_from(("ping", "of the future")), max_size=3)):
        events.insert(draw(st.integers(0, len(events))), {"type": kind})
    return [*events, {"type": "message_stop"}]


def _in_turns(together: list[list[Json]]) -> list[Json]:
    merged: list[Json] = []
    while together := [events for events in together if events]:
        merged += [events.pop(0) for events in together]
    return merged


streamed_messages = messages().flatmap(
    lambda message: st.tuples(st.just(message), _streams(message))
)


def wire(events: list[Json]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )

"""Chat completions requests, junk within them, and messages of the upstream, as strategies."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tornadoproxy.openai.chat_completions import FIELDS, Capabilities
from tornadoproxy.testing import message_document

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

# -- requests

NAMES = st.sampled_from(("weather", "clock", "a-b_C9"))
words = st.text(min_size=1, max_size=20)
texts = words | st.sampled_from(["", " ", "\n\t"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
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


def of(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Objects of a type."""
    return st.fixed_dictionaries({"type": st.just(kind), **fields})


def part(kind: str, content: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Content parts, some with a cache mark."""
    return st.builds(lambda each, mark: {**each, **mark}, of(kind, **{kind: content}), marks)


def file_data(content: bytes) -> Json:
    return {"file_data": base64.b64encode(content).decode()}


urls = ("https://example.com/a.png", "data:image/png;base64,iVBORw0KGgoA", "data:;base64,UklGRAAA")
text_parts = part("text", texts)
image_parts = part("image_url", st.sampled_from(urls).map(lambda url: {"url": url}))
file_parts = part(
    "file",
    st.sampled_from(
        [file_data(b"text"), file_data(b"%PDF-1.7"), {"file_id": "file_1", "filename": "a.pdf"}]
    ),
)
result_contents = texts | st.none() | st.lists(text_parts | image_parts, max_size=3)
thoughts = st.just({"type": "redacted_thinking", "data": "ZGF0YQ=="}) | of(
    "thinking",
    thinking=st.text(max_size=10),
    signature=st.just("c2ln"),
    text_before=st.integers(0, 30),
    calls_before=st.integers(0, 4),
)
spoken = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": texts | st.none() | st.lists(text_parts | part("refusal", words), max_size=3),
        "refusal": st.none() | texts,
        "thinking_blocks": st.none() | st.lists(thoughts, max_size=3),
    }
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Valid messages of every role."""
    kinds = st.sampled_from(("system", "developer", "user", "assistant", "tools", "function"))
    messages: list[Json] = []
    for number, kind in enumerate(draw(st.lists(kinds)) or ["user"]):
        if kind in ("system", "developer"):
            content = texts | st.lists(text_parts, max_size=3)
            messages.append({"role": kind, "content": draw(content)})
        elif kind == "user":
            content = texts | st.lists(text_parts | image_parts | file_parts, max_size=4)
            messages.append({"role": "user", "content": draw(content), **draw(marks)})
        elif kind == "assistant":
            messages.append(draw(spoken))
        elif kind == "tools":
            messages += draw(_exchanges(number))
        else:
            name = draw(NAMES)
            call = {"name": name, "arguments": "{}"}
            messages.append({**draw(spoken), "function_call": call})
            messages.append({"role": "function", "name": name, "content": draw(texts)})
    return messages


@st.composite
def _exchanges(draw: st.DrawFn, number: int) -> list[Json]:
    """A message with calls, and all their results in any order."""
    tails = draw(st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True))
    ids = [f"{number}:{tail}" if tail else f"call_{number}" for tail in tails]
    arguments = objects.map(json.dumps) | st.sampled_from(("", "{}", None))
    functions = st.fixed_dictionaries({"name": NAMES, "arguments": arguments})
    calls = [{"id": each, "type": "function", "function": draw(functions)} for each in ids]
    results = [
        {"role": "tool", "tool_call_id": each, "content": draw(result_contents)}
        for each in draw(st.permutations(ids))
    ]
    return [{**draw(spoken), "tool_calls": calls}, *results]


schemas = st.sampled_from(
    [
        {"type": "string", "minLength": 1},
        {"anyOf": [{"enum": ["a", 1, None]}, {"type": "object", "properties": {"a": {}}}]},
        {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
    ]
)
functions = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "description": texts,
        "parameters": schemas.map(lambda schema: {"properties": {"a": schema}}),
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
    json_schema=st.fixed_dictionaries({"name": st.just("x"), "schema": schemas}),
)
limits = st.integers(1, 100_000)
plain_fields = st.fixed_dictionaries(
    {"model": st.sampled_from(("claude-test", "gpt-5"))},
    optional={
        "max_tokens": limits,
        "max_completion_tokens": limits | st.none(),
        "stop": texts | st.lists(texts, max_size=4) | st.none(),
        "temperature": st.floats(0, 2) | st.none(),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(0, 100),
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.sampled_from((None, "none", "minimal", "low", "high", "max")),
        "response_format": formats,
        "user": texts,
        "metadata": st.dictionaries(words, words, max_size=2),
        "service_tier": st.sampled_from(("auto", "default", "flex", "standard_only")),
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
    max_tokens=st.none() | limits,
    structured_outputs=st.booleans(),
    forced_tools=st.booleans(),
    thinking=st.frozensets(st.sampled_from(("adaptive", "enabled", "disabled", "between_tools"))),
    efforts=st.sampled_from(((), ("low", "medium", "high"), ("low", "medium", "high", "max"))),
)

# -- junk

KEYS = [
    *(*sorted(FIELDS), "role", "content", "type", "text", "image_url", "url", "file", "file_data"),
    *("name", "tool_calls", "tool_call_id", "function", "arguments", "parameters", "schema"),
    *("strict", "thinking_blocks", "signature", "cache_control", "properties", "json_schema"),
    *("include_usage", "user_id", "items", "anyOf", "$ref", "$defs", "enum"),
]
WORDS = [
    *("user", "assistant", "system", "tool", "function", "auto", "required", "json_schema", "low"),
    *("data:image/png;base64,aGk=", "data:", "#/$defs/x", "", '{"a": NaN}', "1e999", "\ud800"),
]
NUMBERS = [2**63, 10**400, -0.0, 0.5, float("inf"), float("nan")]
any_text = st.text(st.characters(), max_size=8)  # with halves of surrogate pairs
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text | st.sampled_from([*WORDS, *NUMBERS]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(any_text | st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=15,
)


def places(document: object, path: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value within `document`."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn) -> Json:
    """A valid request with junk in some of its places."""
    document: Json = json.loads(json.dumps(draw(requests)))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(document))[1:]))
        holder: Any = document  # Any: a JSON object or list
        for step in way:
            holder = holder[step]
        holder[last] = draw(junk)
    return document


# -- messages of the upstream

counts = st.integers(0, 10**6)
usages = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts},
    optional={"cache_read_input_tokens": counts | st.none()},
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
stop_reasons = st.sampled_from(("end_turn", "tool_use", "max_tokens", "refusal", "pause_turn"))


def numbered(content: list[Json]) -> list[Json]:
    """Blocks whose calls have ids."""
    return [
        {**block, "id": f"toolu_{number}"} if block["type"] == "tool_use" else block
        for number, block in enumerate(content)
    ]


messages = st.builds(
    message_document,
    content=st.lists(blocks, max_size=6).map(numbered),
    stop_reason=stop_reasons,
    usage=usages,
)

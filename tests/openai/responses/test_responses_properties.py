"""Properties of requests: what the types allow is accepted upstream, or refused by its place."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from properties import holds_of
from response_requests import SEARCHED, THOUGHT, Json, output, translate
from typed_values import values_of
from typing_extensions import get_type_hints

from tornadoproxy.errors import ClientError
from tornadoproxy.openai import responses
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses.calls import CALLS, OUTPUTS
from tornadoproxy.openai.responses.carrier import pack, pack_summary
from tornadoproxy.openai.responses.items import ITEMS
from tornadoproxy.openai.treatment import Treatment

REFUSED = {name for name, (treatment, _) in ITEMS.items() if treatment is Treatment.REFUSED}

# Values that mean something, for fields whose type is any string.
CARRIERS = [pack([THOUGHT]), pack(SEARCHED), pack([{**THOUGHT, "signature": ""}]), "gAAAAABn", ""]
MEANINGFUL: dict[str, list[Any]] = {
    "image_url": ["https://x.test/a.png", "data:image/png;base64,iVBORw0KGgoA"],
    "file_url": ["https://x.test/a.pdf"],
    "file_data": ["JVBERi0xLjcK", "data:text/plain;base64,aGk="],
    "arguments": ["{}", '{"a": 1}', "", "[", "null"],
    "call_id": ["a", "b", "call:1", "x" * 200],
    "tools": [
        [],
        [{"type": "function", "name": "f"}],
        [{"type": "function", "name": "f", "strict": True}],
        [{"type": "custom", "name": "exec"}],
    ],
}
SUMMARY = pack_summary("So far.")

IDS = st.sampled_from(("a", "b", "call:1"))
ABLE = st.builds(
    Capabilities,
    structured_outputs=st.booleans(),
    forced_tools=st.booleans(),
    system_messages=st.booleans(),
    thinking=st.frozensets(st.sampled_from(("adaptive", "enabled", "disabled"))),
)
HINTS = get_type_hints(ResponseCreateParamsNonStreaming, include_extras=True)
# of these, any value that the types allow has a place of its own in the tests
APART = {"input", "model", "tools", "tool_choice", "stream"}
FIELDS = st.fixed_dictionaries(
    {}, optional={name: values_of(hint) for name, hint in HINTS.items() if name not in APART}
)


def kind_of(item: Any) -> str:  # Any: a typed dictionary
    hint = get_type_hints(item)["type"]
    return str(get_args(hint)[0] if isinstance(get_args(hint)[0], str) else "item_reference")


MEMBERS = get_args(ResponseInputItemParam)
KINDS = {
    kind: st.one_of([values_of(each) for each in MEMBERS if kind_of(each) == kind])
    for kind in ITEMS
}


def with_meaning(draw: st.DrawFn, value: Any, *, always: bool) -> Any:  # Any: JSON
    """Return a value with fields that mean something in it, and images and files with content."""
    if isinstance(value, list):
        return [with_meaning(draw, each, always=always) for each in value]
    if not isinstance(value, dict):
        return value
    known = {
        name: draw(st.sampled_from(MEANINGFUL[name]))
        for name in value
        if name in MEANINGFUL and (always or draw(st.booleans()))
    }
    if value.get("type") in ("input_image", "input_file") and always:
        known["file_id"] = "file_1"
    if value.get("type") in ("compaction", "reasoning") and always:
        known["encrypted_content"] = draw(
            st.sampled_from(CARRIERS) if value["type"] == "reasoning" else st.just(SUMMARY)
        )
    rest = {
        name: with_meaning(draw, each, always=always)
        for name, each in value.items()
        if name not in known
    }
    return {**rest, **known}


@st.composite
def inputs(draw: st.DrawFn, *, served: bool) -> list[Json]:
    """Return input items as OpenAI's types allow them.

    :param served: only items that are served, each with what it needs.
    """
    apart = REFUSED | {"item_reference", "compaction_trigger"} if served else set()
    kinds = [values for kind, values in KINDS.items() if kind not in apart]
    items = draw(st.lists(st.one_of(kinds), min_size=1, max_size=8))
    items = [with_meaning(draw, item, always=served) for item in items]
    return answered(items) if served else items


def answered(items: list[Json]) -> list[Json]:
    """Return items in which each call has an output behind it, and each output its call.

    Images and files are in messages of the user's only.
    """
    found: list[Json] = []
    waiting: list[str] = []
    for number, item in enumerate(items):
        if item.get("type") in CALLS:
            item = {**item, "call_id": f"call{number}"}
            waiting.append(item["call_id"])
        elif item.get("type") in OUTPUTS:
            if not waiting:
                continue
            item = {**item, "call_id": waiting.pop()}
        elif "input_" in json.dumps(item.get("content")):
            item = {**item, "role": "user"}
        found.append(item)
    return found + [output(call_id) for call_id in waiting]


def error_of(*items: Json, **more: Any) -> ClientError | None:  # Any: as `translate`
    try:
        translate(*items, **more)
    except ClientError as error:
        return error
    return None


@holds_of(inputs(served=True), ABLE)
def test_served_items_become_a_request_that_the_upstream_accepts(
    items: list[Json], able: Capabilities
) -> None:
    body = json.loads(translate(*items, able=able).body)
    calls = [item for item in items if item.get("type") in CALLS]
    blocks = [
        block
        for turn in body["messages"]
        if isinstance(turn["content"], list)
        for block in turn["content"]
    ]
    assert len([block for block in blocks if block["type"] == "tool_use"]) == len(calls)
    assert len([block for block in blocks if block["type"] == "tool_result"]) == len(calls)


@holds_of(inputs(served=False), ABLE)
def test_items_of_any_type_are_accepted_or_refused_by_place(
    items: list[Json], able: Capabilities
) -> None:
    error = error_of(*items, able=able)
    assert error is None or (str(error.param).startswith("input[") and error.status in (400, 404))


@holds_of(FIELDS, ABLE)
def test_any_fields_of_the_types_are_accepted_or_refused_by_name(
    fields: Json, able: Capabilities
) -> None:
    error = error_of(able=able, **fields)
    assert error is None or str(error.param).partition(".")[0].partition("[")[0] in fields


@holds_of(inputs(served=True), st.none() | st.sampled_from(MEANINGFUL["tools"]), ABLE)
def test_translation_ignores_capabilities_it_does_not_need(
    items: list[Json], tools: list[Json] | None, able: Capabilities
) -> None:
    fields: Json = {"max_output_tokens": 5, "tools": tools}
    document = {"model": "claude-test", "input": items, **fields}
    if not responses.needs(document, Options()).capabilities:
        assert translate(*items, able=able, **fields) == translate(*items, **fields)

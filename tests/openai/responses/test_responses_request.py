"""Requests of the Responses API: references, reasoning, formats, and what a response repeats."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response
from response_requests import (
    TAKES_SYSTEM,
    Json,
    call,
    developer,
    message,
    output,
    reasoning,
    refused,
    said,
    sent,
    text,
    tool_result,
    tool_use,
    translate,
    turns,
    user,
)

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import responses
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses.carrier import pack_summary
from tornadoproxy.openai.responses.conversation import SUMMARIZE, SUMMARY

CLOCK: Json = {"type": "function", "name": "clock"}
REFERENCE = {"type": "item_reference", "id": "msg_1"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
FORMAT = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
BUDGET = Capabilities(thinking=frozenset({"enabled", "disabled"}), efforts=())


# -- what is stored


def test_references_are_what_has_to_be_looked_up() -> None:
    document = {"previous_response_id": "resp_1", "input": [REFERENCE, user("x"), {"id": "rs_1"}]}
    assert responses.needs(document, Options())[:2] == ("resp_1", ("msg_1", "rs_1"))
    assert responses.needs({"input": "x"}, Options())[:2] == (None, ())
    for fields, param in (
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": 1}]}, "input[0].id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            responses.needs(fields, Options())
        assert caught.value.param == param


def test_reference_stands_for_the_stored_item() -> None:
    translation = translate("a", REFERENCE, "b", known={"msg_1": said("stored")}, has_store=True)
    assert json.loads(translation.body)["messages"][1] == {"role": "assistant", "content": "stored"}
    assert translation.input[1] == said("stored")
    assert translation.kept


@pytest.mark.parametrize(
    ("has_store", "why"),
    [(True, "unknown, was not stored, or has expired"), (False, "RESPONSES_STORE")],
)
def test_unknown_reference_is_refused(has_store: bool, why: str) -> None:
    error = refused("a", REFERENCE, has_store=has_store)
    assert (error.status, error.param) == (404, "input[1].id")
    assert error.message.startswith("Item with id 'msg_1' not found. ")
    assert why in error.message
    error = refused("b", previous_response_id="resp_1", has_store=has_store)
    assert (error.status, error.code) == (400, "previous_response_not_found")
    assert error.message.startswith("Previous response with id 'resp_1' not found. ")
    assert why in error.message


def test_earlier_responses_come_before_the_input() -> None:
    more: Json = {"previous_response_id": "resp_1", "has_store": True, "able": TAKES_SYSTEM}
    earlier = [user("a"), reasoning(), call("c")]
    items = [output("c"), developer("Be brief.")]
    assert turns(*items, earlier=earlier, **more) == turns(*earlier, *items, able=TAKES_SYSTEM)
    translation = translate(*items, earlier=earlier, **more)
    assert translation.previous == translation.echo["previous_response_id"] == "resp_1"
    assert [each["type"] for each in translation.input] == ["function_call_output", "message"]
    assert refused("b", earlier=earlier, **more).param == "previous_response_id"


def test_input_items_are_whole_and_have_ids() -> None:
    bare = {"role": "assistant", "content": "c"}
    items = [{"role": "user", "content": "a"}, said("b"), bare, user("d"), call("e"), output("e")]
    assert translate(*items).input == ()
    given = translate(*items, has_store=True).input
    assert given == tuple(items)
    shown = [responses.shown(item, "resp_1", index) for index, item in enumerate(given)]
    assert shown[1] == said("b")
    assert [each["type"] for each in shown][:4] == ["message"] * 4
    assert [each["content"][0]["type"] for each in shown[:4]] == [
        *("input_text", "output_text", "output_text", "input_text"),
    ]
    ids = [each["id"] for each in shown]
    assert len(set(ids)) == len(ids)
    assert responses.place_of(ids[3]) == ("resp_1", 3)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"has_store": True}, True),
        ({"has_store": True, "store": True}, True),
        ({"has_store": True, "store": False}, False),
        ({"has_store": False, "store": True}, False),
    ],
)
def test_response_is_kept_unless_the_client_declines(fields: Json, kept: bool) -> None:
    translation = translate(**fields)
    assert translation.kept is translation.echo["store"] is kept


# -- compaction


def test_request_for_compaction_becomes_one_for_a_summary() -> None:
    document = {
        "model": "m", "input": "b", "instructions": "Be.", "previous_response_id": "resp_1",
        "stream": True,
    }  # fmt: skip
    request = responses.compaction_request(document, [user("a")])
    translation = responses.translate_request(request, has_store=True)
    body = json.loads(translation.body)
    assert translation.compacts
    assert not translation.stream
    assert not translation.kept
    assert body["system"] == "Be."
    assert body["messages"][0]["content"] == [text("a"), text("b"), text(SUMMARIZE)]
    assert [each["type"] for each in translation.input] == [
        *("message", "message", "compaction_trigger"),
    ]


def test_request_for_compaction_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        responses.compaction_request({"model": "m"})
    assert caught.value.param == "input"


def test_compaction_stands_for_the_responses_before_it() -> None:
    summary = {"type": "compaction", "encrypted_content": pack_summary("So far.")}
    trigger = {"type": "compaction_trigger"}
    tools = {"type": "additional_tools", "role": "developer", "tools": [CLOCK]}
    earlier = [
        *(tools, developer("Be."), user("a"), said("x"), call("c"), output("c")),
        *(trigger, summary, user("b"), call("d")),
    ]
    body = sent(output("d"), earlier=earlier, previous_response_id="resp_1", has_store=True)
    assert body["system"] == "Be."
    assert [tool["name"] for tool in body["tools"]] == ["clock"]
    assert body["messages"] == [
        {"role": "user", "content": [text("a"), text(f"{SUMMARY}So far."), text("b")]},
        {"role": "assistant", "content": [tool_use("d")]},
        {"role": "user", "content": [tool_result("d")]},
    ]


# -- reasoning and formats


@pytest.mark.parametrize(
    ("able", "given", "expected"),
    [
        (None, {}, {}),
        (None, {"effort": None, "summary": None}, {}),
        (None, {"summary": "auto"}, {"thinking": {"type": "adaptive", "display": "summarized"}}),
        (
            None,
            {"effort": "high"},
            {
                "thinking": {"type": "adaptive", "display": "omitted"},
                "output_config": {"effort": "high"},
            },
        ),
        (
            None,
            {"effort": "minimal", "generate_summary": "detailed"},
            {
                "thinking": {"type": "adaptive", "display": "summarized"},
                "output_config": {"effort": "low"},
            },
        ),
        (BUDGET, {"summary": "auto"}, {}),
        (BUDGET, {"effort": "none"}, {"thinking": {"type": "disabled"}}),
        (BUDGET, {"effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
    ],
)
def test_reasoning_becomes_effort_and_thinking(
    able: Capabilities | None, given: Json, expected: Json
) -> None:
    body = sent(able=able, reasoning=given)
    assert {name: body[name] for name in ("thinking", "output_config") if name in body} == expected


def test_format_becomes_that_of_the_upstream() -> None:
    body = sent(text={"format": FORMAT}, reasoning={"effort": "low"})
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["schema"]["required"] == ["x"]
    assert "output_config" not in sent(text={"format": {"type": "text"}})
    assert "single JSON object" in sent(text={"format": {"type": "json_object"}})["system"]


def test_format_that_cannot_be_enforced_is_asked_for() -> None:
    able = Capabilities(structured_outputs=False)
    translation = translate(developer("a"), "Hi", text={"format": FORMAT}, able=able)
    assert translation.ignored == ("text.format.strict",)
    assert json.loads(translation.body)["system"].startswith("a\nAnswer with a single JSON object")


def test_tools_get_the_grammar_that_the_format_leaves() -> None:
    optional = {"type": "object", "properties": {f"x{i}": {"type": "string"} for i in range(20)}}
    tool = {"type": "function", "name": "f", "parameters": optional, "strict": True}
    format_ = {"type": "json_schema", "name": "x", "schema": optional}
    translation = translate(text={"format": format_}, tools=[tool])
    assert translation.ignored == ("tools.strict",)


# -- limits, caching, capabilities


@pytest.mark.parametrize(
    ("fields", "is_cached"),
    [
        ({}, False),
        ({"prompt_cache_key": "key"}, True),
        ({"prompt_cache_key": ""}, False),
        ({"tools": [{"type": "function", "name": "f"}]}, True),
        ({"prompt_cache_key": "key", "options": Options(cache="off")}, False),
        ({"prompt_cache_key": "key", "prompt_cache_options": {"mode": "explicit"}}, False),
    ],
)
def test_request_is_cached_if_another_turn_is_likely(fields: Json, is_cached: bool) -> None:
    assert ("cache_control" in sent(**fields)) is is_cached


def test_default_limit_is_the_models_own_maximum() -> None:
    able = Capabilities(max_tokens=128_000)
    assert sent(able=able)["max_tokens"] == 128_000
    assert sent(able=able, max_output_tokens=7)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("fields", "depends"),
    [
        ({}, True),
        ({"max_output_tokens": 5}, False),
        ({"max_output_tokens": 5, "text": {}}, True),
        ({"max_output_tokens": 5, "previous_response_id": "resp_1"}, True),
        ({"max_output_tokens": 5, "input": [{"type": "item_reference", "id": "rs_1"}]}, True),
        ({"max_output_tokens": 5, "input": [developer("x")]}, True),
        ({"max_output_tokens": 5, "input": [{"type": "configuration_update"}]}, True),
    ],
)
def test_capabilities_are_looked_up_where_they_count(fields: Json, depends: bool) -> None:
    document = {"model": "m", "input": [user("x")], **fields}
    assert responses.needs(document, Options()).capabilities is depends
    limited = responses.needs(document, Options(default_max_tokens=5)).capabilities
    assert limited is (depends and bool(fields))


@pytest.mark.parametrize(
    ("name", "takes_system"),
    [
        ("claude-opus-4-8", True),
        ("claude-opus-5-5", True),
        ("claude-opus-4-8-20260528", True),
        ("claude-fable-5", True),
        ("claude-opus-4-7", False),
        ("claude-opus-4-80", False),
        ("claude-sonnet-5", False),
    ],
)
def test_system_messages_are_for_the_models_that_take_them(name: str, takes_system: bool) -> None:
    listed = {"id": name, "capabilities": {"batch": {"supported": True}}}
    assert Capabilities.of_model(listed).system_messages is takes_system
    assert not Capabilities.of_model({"id": name}).system_messages, "not of Anthropic's own list"


# -- what a response repeats


def test_response_repeats_what_open_responses_requires() -> None:
    echo = translate(tools=[{"type": "function", "name": "f", "strict": None}]).echo
    assert echo == {
        "object": "response",
        "background": False,
        "frequency_penalty": 0.0,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [
            {
                "type": "function",
                "name": "f",
                "description": None,
                "parameters": None,
                "strict": False,
            }
        ],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
    }


def test_response_repeats_what_the_request_says() -> None:
    namespace = {
        "type": "namespace",
        "name": "n",
        "description": "d",
        "tools": [{"type": "function", "name": "g"}],
    }
    given: Json = {
        "instructions": "Be.",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "temperature": 0.5,
        "text": {"format": FORMAT, "verbosity": "low"},
        "tool_choice": {"type": "custom", "name": "c"},
        "tools": [{"type": "custom", "name": "c"}, namespace],
        "top_p": 0.5,
        "user": "u",
    }
    echo = translate(**given).echo
    assert {**echo, **given, "tools": echo["tools"]} == echo
    assert echo["tools"][0] == given["tools"][0]
    assert echo["tools"][1]["tools"][0]["strict"] is False
    whole = {**echo, "id": "resp_1", "created_at": 0, "model": "m", "output": []}
    assert Response.model_validate(whole, strict=True).tools[1].type == "namespace"


def test_codex_is_known_by_its_metadata() -> None:
    assert translate(client_metadata={"x-codex-turn-metadata": "{}"}).for_codex
    assert not translate(client_metadata={"session": "x"}).for_codex
    document = {"model": "m", "input": [message("user", "Hi")]}
    assert responses.translate_request(document, is_codex=True).for_codex

"""Fields and items of the Responses API: each has one treatment, which the documentation names."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types.beta import message_create_params as anthropic_beta_params
from openai.types.responses import response_create_params as openai_params
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from response_requests import Json, refused, translate
from typing_extensions import get_type_hints

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses import FIELDS, ITEMS
from tornadoproxy.openai.treatment import Table, Treatment

# Anthropic's SDK sends these fields as headers; both APIs have a field of the last name.
NOT_PASSED = {"betas", "user_profile_id", "workspace_id", "context_management"}


def treated(named: Table, treatment: Treatment) -> list[str]:
    return sorted(name for name, (each, _) in named.items() if each is treatment)


def fields_of(*params: type) -> set[str]:
    return {name for each in params for name in get_type_hints(each)}


def test_every_field_of_openais_api_has_a_treatment() -> None:
    known = fields_of(
        openai_params.ResponseCreateParamsNonStreaming, openai_params.ResponseCreateParamsStreaming
    )
    assert len(known) > 30
    assert known - FIELDS.keys() == set()
    for treatment in (Treatment.TRANSLATED, Treatment.REFUSED, Treatment.STORED):
        assert set(treated(FIELDS, treatment)) <= known


def test_every_field_of_anthropics_api_has_a_treatment() -> None:
    known = fields_of(
        anthropic_params.MessageCreateParamsNonStreaming,
        anthropic_beta_params.MessageCreateParamsNonStreaming,
    )
    assert known - FIELDS.keys() == NOT_PASSED - {"context_management"}
    # older models accept this one, which the types no longer have
    assert set(treated(FIELDS, Treatment.PASSED)) - known == {"top_k"}


def test_every_type_of_items_has_a_treatment() -> None:
    known = {
        get_args(hint)[0]
        for each in get_args(ResponseInputItemParam)
        for hint in [get_type_hints(each)["type"]]
    }
    known = {get_args(each)[0] if get_args(each) else each for each in known}
    assert len(known) > 28
    assert known == ITEMS.keys()


UNNAMED = {"stream_options"}


@pytest.mark.parametrize("name", [*treated(FIELDS, Treatment.IGNORED)])
def test_ignored_field_is_dropped_named_and_refused_if_strict(name: str) -> None:
    fields: Json = {name: ["x"]}
    translation = translate(**fields)
    assert translation.body == translate().body
    assert translation.ignored == (() if name in UNNAMED else (name,))
    if name not in UNNAMED:
        with pytest.raises(InvalidRequest, match="CHAT_STRICT") as caught:
            translate(options=Options(strict=True), **fields)
        assert caught.value.param == name


@pytest.mark.parametrize(
    "fields",
    [
        {"client_metadata": {"x-codex-installation-id": "x"}, "new_field": 1},
        {"stream_options": {"include_obfuscation": False}},
        {"text": {"verbosity": "low"}},
        {"reasoning": {"context": "all_turns", "mode": "standard"}},
        {"include": ["reasoning.encrypted_content"], "truncation": "disabled"},
        {"metadata": {"a": "b"}, "frequency_penalty": 0, "store": True, "background": False},
    ],
)
def test_field_that_requests_nothing_is_not_named(fields: Json) -> None:
    translation = translate(options=Options(strict=True), **fields)
    assert translation.body == translate().body


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"context": "current_turn"}}, "reasoning.context"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"prompt_cache_retention": "12h"}, "prompt_cache_retention"),
    ],
)
def test_value_without_counterpart_is_dropped_and_named(fields: Json, name: str) -> None:
    translation = translate(**fields)
    assert translation.body == translate().body
    assert translation.ignored == (name,)


VALUES: Json = {
    "cache_control": {"type": "ephemeral"},
    "inference_geo": "us",
    "speed": "fast",
    "top_k": 5,
}


@pytest.mark.parametrize("name", treated(FIELDS, Treatment.PASSED))
def test_passed_field_goes_upstream_unchanged(name: str) -> None:
    body = json.loads(translate(**{name: VALUES.get(name, {"type": "disabled"})}).body)
    assert body[name] == VALUES.get(name, {"type": "disabled"})


def test_context_management_of_anthropics_form_is_passed() -> None:
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    assert json.loads(translate(context_management=edits).body)["context_management"] == edits


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"model": ""}, "model"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"instructions": ["x"]}, "instructions"),
        ({"stream": "yes"}, "stream"),
        ({"store": "yes"}, "store"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": "x"}, "max_tool_calls"),
        ({"metadata": "x"}, "metadata"),
        ({"prompt_cache_key": 1}, "prompt_cache_key"),
        ({"include": "all"}, "include"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": "tiny"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"reasoning": {"generate_summary": "long"}}, "reasoning.generate_summary"),
        ({"text": []}, "text"),
        ({"text": {"verbosity": "x"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_invalid_field_is_refused_with_its_place(fields: Json, param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize("name", ["model", "input"])
def test_request_without_model_or_input_is_refused(name: str) -> None:
    fields: dict[str, Any] = {name: None}
    assert refused(**fields).message == f"'{name}' is required."

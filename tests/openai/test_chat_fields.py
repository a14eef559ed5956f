"""Fields of chat completions: each has one treatment, which the documentation names.

Run as a program, this writes the table of the documentation.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types.beta import message_create_params as anthropic_beta_params
from openai.types.chat import completion_create_params as openai_params

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import FIELDS, Options, Translation, Treatment

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

PAGE = Path(__file__).parents[2] / "docs" / "openai.md"
BEGIN, END = "<!-- fields: made by tests/openai/test_chat_fields.py -->", "<!-- end of fields -->"

TOOL: Json = {"type": "function", "function": {"name": "f"}}

# A value for each field, and what it becomes upstream.
TRANSLATED: dict[str, tuple[Json, Json]] = {
    "messages": (
        {"messages": [{"role": "developer", "content": "Be."}, {"role": "user", "content": "a"}]},
        {"system": "Be.", "messages": [{"role": "user", "content": "a"}]},
    ),
    "model": ({"model": "gpt-5"}, {"model": "claude-mapped"}),
    "max_completion_tokens": ({"max_completion_tokens": 7}, {"max_tokens": 7}),
    "max_tokens": ({"max_tokens": 7}, {"max_tokens": 7}),
    "stop": ({"stop": "x"}, {"stop_sequences": ["x"]}),
    "temperature": ({"temperature": 0.5}, {"temperature": 0.5}),
    "top_p": ({"top_p": 0.5}, {"top_p": 0.5}),
    "tools": (
        {"tools": [TOOL]},
        {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]},
    ),
    "functions": (
        {"functions": [{"name": "f"}]},
        {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]},
    ),
    "tool_choice": (
        {"tools": [TOOL], "tool_choice": "required"},
        {"tool_choice": {"type": "any"}},
    ),
    "function_call": (
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tool_choice": {"type": "none"}},
    ),
    "parallel_tool_calls": (
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    "response_format": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "string"}},
            }
        },
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "string"}}}},
    ),
    "reasoning_effort": ({"reasoning_effort": "low"}, {"output_config": {"effort": "low"}}),
    "prompt_cache_options": (
        {"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ),
    "prompt_cache_retention": (
        {"prompt_cache_retention": "24h"},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ),
    "user": ({"user": "u"}, {"metadata": {"user_id": "u"}}),
    "safety_identifier": ({"safety_identifier": "u"}, {"metadata": {"user_id": "u"}}),
    "metadata": ({"metadata": {"user_id": "u"}}, {"metadata": {"user_id": "u"}}),
    "stream": ({"stream": True}, {"stream": True}),
    "stream_options": ({"stream": True, "stream_options": {"include_usage": True}}, {}),
    "service_tier": ({"service_tier": "standard_only"}, {"service_tier": "standard_only"}),
}

REFUSED: dict[str, object] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "logprobs": True,
    "modalities": ["audio"],
    "n": 2,
    "top_logprobs": 1,
}

# Anthropic's SDK sends these fields as headers.
HEADERS = {"betas", "user_profile_id", "workspace_id"}


def treated(treatment: Treatment) -> list[str]:
    return [name for name, (each, _) in FIELDS.items() if each is treatment]


def translate(*, strict: bool = False, **fields: Any) -> Translation:  # Any: JSON
    document = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    options = Options(models={"gpt-5": "claude-mapped"}, strict=strict)
    return chat_completions.translate_request(document, options=options)


def fields_of(*params: type) -> set[str]:
    return {name for each in params for name in typing.get_type_hints(each)}


def test_every_field_of_openais_api_has_a_treatment() -> None:
    known = fields_of(
        openai_params.CompletionCreateParamsNonStreaming,
        openai_params.CompletionCreateParamsStreaming,
    )
    assert len(known) > 30
    assert known - FIELDS.keys() == set()
    assert set(treated(Treatment.TRANSLATED)) <= known
    assert set(treated(Treatment.REFUSED)) <= known


def test_every_field_of_anthropics_api_has_a_treatment() -> None:
    known = fields_of(
        anthropic_params.MessageCreateParamsNonStreaming,
        anthropic_beta_params.MessageCreateParamsNonStreaming,
    )
    assert len(known) > 20
    assert known - FIELDS.keys() == HEADERS
    # older models accept this one, which the types no longer have
    assert set(treated(Treatment.PASSED)) - known == {"top_k"}


@pytest.mark.parametrize("name", treated(Treatment.TRANSLATED))
def test_translated_field_changes_the_request_as_shown(name: str) -> None:
    fields, shown = TRANSLATED[name]
    translation = translate(strict=True, **fields)
    body = json.loads(translation.body)
    assert {key: body[key] for key in shown} == shown
    assert translation.include_usage == (name == "stream_options")
    without = translate(**{key: value for key, value in fields.items() if key != name})
    assert (without.body, without.include_usage) != (translation.body, translation.include_usage)


@pytest.mark.parametrize("name", treated(Treatment.IGNORED))
def test_ignored_field_is_dropped_named_and_refused_if_strict(name: str) -> None:
    fields: Json = {name: "x"}
    translation = translate(**fields)
    assert translation.ignored == (name,)
    assert translation.body == translate().body
    with pytest.raises(InvalidRequest) as caught:
        translate(strict=True, **fields)
    assert caught.value.param == name


@pytest.mark.parametrize("name", treated(Treatment.REFUSED))
def test_refused_field_is_named(name: str) -> None:
    fields: Json = {name: REFUSED[name]}
    with pytest.raises(InvalidRequest) as caught:
        translate(**fields)
    assert caught.value.param == name


@pytest.mark.parametrize("name", treated(Treatment.PASSED))
def test_passed_field_goes_upstream_unchanged(name: str) -> None:
    value = 5 if name == "top_k" else {"type": "a"}
    fields: Json = {name: value}
    translation = translate(strict=True, **fields)
    assert json.loads(translation.body)[name] == value


def table() -> str:
    """The table of fields for the documentation."""
    lines = ["| field | treatment | what becomes of it |", "|---|---|---|"]
    for treatment in Treatment:
        for name in sorted(treated(treatment)):
            lines.append(f"| `{name}` | {treatment.value} | {FIELDS[name][1]} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{table()}\n{end}{after}"


def test_documentation_has_the_table_of_fields() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == with_table(page), "run: python tests/openai/test_chat_fields.py"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

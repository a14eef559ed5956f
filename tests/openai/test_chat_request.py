"""Fields of chat completions besides messages and tools: limits, sampling, reasoning, formats."""

from __future__ import annotations

import hashlib
import json

import pytest
from chat_requests import (
    ALWAYS_THINKS,
    HI,
    OTHER,
    PLAIN,
    THOUGHT,
    TOOL,
    Json,
    assistant,
    call,
    result,
    sent,
    system,
    text,
    translate,
    user,
)

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options

ALL_CAN = Capabilities(
    thinking=frozenset({"adaptive", "enabled", "disabled"}),
    efforts=("low", "medium", "high", "xhigh", "max"),
)
WITH_BUDGET = Capabilities(thinking=frozenset({"enabled", "disabled"}), efforts=())
BETWEEN_TOOLS = Capabilities(thinking=frozenset({"adaptive", "between_tools"}), forced_tools=False)


def test_request_of_one_message_is_translated() -> None:
    assert sent() == {"model": "claude-test", "max_tokens": 32000, "messages": [HI]}


def test_document_stays_unchanged() -> None:
    document = {
        "model": "claude-test",
        "messages": [assistant("a ", thinking_blocks=[]), user([text("b")])],
        "tools": [TOOL],
        "top_k": 3,
        "output_config": {"effort": "low"},
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
    }
    before = json.dumps(document)
    chat_completions.translate_request(document, capabilities=PLAIN)
    assert json.dumps(document) == before


def test_model_is_required_and_mapped() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_completions.translate_request({"messages": [HI]})
    assert caught.value.param == "model"
    options = Options(models={"gpt-5": "claude-opus-5-5", "*": "claude-sonnet-5-5"})
    for name, expected in (
        ("gpt-5", "claude-opus-5-5"),
        ("gpt-4.1-mini", "claude-sonnet-5-5"),
        ("claude-haiku-4-5", "claude-haiku-4-5"),
    ):
        document = {"model": name, "messages": [HI]}
        translation = chat_completions.translate_request(document, options=options)
        assert json.loads(translation.body)["model"] == options.model(name) == expected
    assert Options().model("gpt-5") == "gpt-5"


@pytest.mark.parametrize(
    ("fields", "options", "depends"),
    [
        ({}, Options(), True),
        ({"max_tokens": None}, Options(), True),
        ({"max_tokens": 5}, Options(), False),
        ({"max_completion_tokens": 5}, Options(), False),
        ({}, Options(default_max_tokens=5), False),
        *(
            ({"max_tokens": 5, name: "x"}, Options(), True)
            for name in ("function_call", "reasoning_effort", "response_format", "tool_choice")
        ),
        ({"max_tokens": 5, "tool_choice": None}, Options(), False),
    ],
)
def test_translation_depends_on_capabilities(fields: Json, options: Options, depends: bool) -> None:
    assert chat_completions.depends_on_capabilities(fields, options) is depends


# -- limits, sampling, users


@pytest.mark.parametrize(
    ("default", "model", "budget", "limit"),
    [
        (None, None, None, 32_000),
        (None, 4096, None, 4096),
        (None, 64_000, None, 64_000),
        (100, 64_000, None, 100),
        (100, 50, None, 50),
        (None, None, 10_000, 32_000),
        (None, None, 32_000, 64_000),
        (100, None, 10_000, 20_000),
        (100, 15_000, 10_000, 15_000),
        (None, 64_000, 60_000, 64_000),
        (None, None, 10**4300 - 1, 10_000_000),  # twice of it is too long for JSON
    ],
)
def test_limit_of_request_without_one_is_above_its_budget(
    default: int | None, model: int | None, budget: int | None, limit: int
) -> None:
    fields = {} if budget is None else {"thinking": {"type": "enabled", "budget_tokens": budget}}
    options, able = Options(default_max_tokens=default), Capabilities(max_tokens=model)
    translation = translate(options=options, able=able, max_tokens=None, **fields)
    assert json.loads(translation.body)["max_tokens"] == limit


def test_limit_of_a_request_goes_upstream() -> None:
    assert sent(max_tokens=5)["max_tokens"] == 5
    assert sent(max_tokens=5, max_completion_tokens=7)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("stop", "sequences", "ignored"),
    [
        ("END", ["END"], ()),
        (["a", "b c"], ["a", "b c"], ()),
        (["\n", "END"], ["END"], ("stop",)),
        ("\n\n", None, ("stop",)),
        ("", None, ()),
        ([], None, ()),
        (None, None, ()),
    ],
)
def test_blank_stop_sequences_are_dropped_and_named(
    stop: object, sequences: object, ignored: tuple[str, ...]
) -> None:
    translation = translate(stop=stop)
    assert json.loads(translation.body).get("stop_sequences") == sequences
    assert translation.ignored == ignored


@pytest.mark.parametrize(
    ("given", "kept", "ignored"),
    [
        ({"temperature": 0, "top_k": 5}, {"temperature": 0, "top_k": 5}, ()),
        ({"temperature": None, "top_p": None}, {}, ()),
        ({"temperature": 1.7, "top_p": 1}, {}, ()),
        ({"temperature": 1.0, "top_p": 0.5}, {"top_p": 0.5}, ()),
        ({"temperature": 0.5, "top_p": 1.0}, {"temperature": 0.5}, ()),
        ({"temperature": 0, "top_p": 0}, {"temperature": 0}, ("top_p",)),
    ],
)
def test_sampling_goes_upstream_without_defaults(
    given: Json, kept: Json, ignored: tuple[str, ...]
) -> None:
    translation = translate(**given)
    body = json.loads(translation.body)
    assert {key: body[key] for key in ("temperature", "top_p", "top_k") if key in body} == kept
    assert (translation.samples, translation.ignored) == (bool(kept), ignored)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, Options(drop_sampling=True)),
        ({"reasoning_effort": "low"}, None),
        ({"thinking": {"type": "adaptive"}}, None),
    ],
)
def test_sampling_with_thinking_is_dropped_and_named(fields: Json, options: Options | None) -> None:
    translation = translate(temperature=0, top_p=0.5, top_k=1, options=options, **fields)
    assert not translation.samples
    assert not {"temperature", "top_p", "top_k"} & json.loads(translation.body).keys()
    assert translation.ignored == ("temperature", "top_p", "top_k")
    assert translate(temperature=0, thinking={"type": "disabled"}).samples


@pytest.mark.parametrize(
    ("fields", "user_id"),
    [
        ({"user": "a", "metadata": {"user_id": "b"}, "safety_identifier": "c"}, "a"),
        ({"metadata": {"user_id": "b"}, "safety_identifier": "c"}, "b"),
        ({"user": "", "safety_identifier": "c"}, "c"),
        ({"user": "a" * 256}, "a" * 256),
        ({"user": "3f0c7a0e-1c1d-4f7e-9a4e-123456789012"}, "3f0c7a0e-1c1d-4f7e-9a4e-123456789012"),
        ({"user": "123456"}, "123456"),
    ],
)
def test_user_is_the_first_that_is_named(fields: Json, user_id: str) -> None:
    assert sent(**fields)["metadata"] == {"user_id": user_id}


@pytest.mark.parametrize(
    "user_id",
    [
        *("a" * 257, "é" * 1_000_000, "ann@example.com", "app:ann.b+c@mail.example.co.uk"),
        *("+1 (555) 010-9999", "5550109999", "a@b.c\ud800"),
    ],
    ids=lambda user_id: ascii(user_id[:20]),
)
def test_user_that_upstream_refuses_is_sent_as_digest(user_id: str) -> None:
    digest = hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()
    translation = translate(user=user_id)
    assert json.loads(translation.body)["metadata"] == {"user_id": digest}
    assert translation.ignored == ()


def test_other_metadata_is_dropped_and_named() -> None:
    translation = translate(metadata={"user_id": "b", "team": "x"})
    assert translation.ignored == ("metadata",)
    assert json.loads(translation.body)["metadata"] == {"user_id": "b"}
    assert translate(metadata={}).ignored == ()


@pytest.mark.parametrize(
    ("tier", "expected", "ignored"),
    [
        ("standard_only", "standard_only", ()),
        ("auto", None, ()),
        ("default", None, ()),
        ("flex", None, ("service_tier",)),
    ],
)
def test_service_tier_of_openai_is_dropped(
    tier: str, expected: str | None, ignored: tuple[str, ...]
) -> None:
    translation = translate(service_tier=tier)
    assert json.loads(translation.body).get("service_tier") == expected
    assert translation.ignored == ignored


@pytest.mark.parametrize(
    ("fields", "stream", "usage"),
    [
        ({}, False, False),
        ({"stream": False, "stream_options": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_stream_and_its_usage_are_requested(fields: Json, stream: bool, usage: bool) -> None:
    translation = translate(**fields)
    assert (translation.stream, translation.include_usage) == (stream, usage)
    assert json.loads(translation.body).get("stream", False) is stream


# -- reasoning

ADAPTIVE = {"thinking": {"type": "adaptive", "display": "summarized"}}


@pytest.mark.parametrize(
    ("able", "effort", "expected"),
    [
        (None, "high", {"output_config": {"effort": "high"}, **ADAPTIVE}),
        (None, "none", {"output_config": {"effort": "low"}}),
        (ALL_CAN, "minimal", {"output_config": {"effort": "low"}, **ADAPTIVE}),
        (ALL_CAN, "none", {"thinking": {"type": "disabled"}}),
        (BETWEEN_TOOLS, "none", {"thinking": {"type": "between_tools"}}),
        (ALWAYS_THINKS, "max", {"output_config": {"effort": "high"}, **ADAPTIVE}),
        (WITH_BUDGET, "medium", {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
        (WITH_BUDGET, "none", {"thinking": {"type": "disabled"}}),
    ],
)
def test_reasoning_effort_is_translated(
    able: Capabilities | None, effort: str, expected: Json
) -> None:
    translation = translate(reasoning_effort=effort, able=able)
    body = json.loads(translation.body)
    assert {key: body[key] for key in ("output_config", "thinking") if key in body} == expected
    assert translation.ignored == ()


def test_budget_leaves_half_of_the_limit() -> None:
    body = sent(reasoning_effort="max", max_tokens=4000, able=WITH_BUDGET)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2000}


def test_impossible_reasoning_is_dropped_and_named() -> None:
    for translation in (
        translate(reasoning_effort="high", able=PLAIN),
        translate(reasoning_effort="high", max_tokens=2000, able=WITH_BUDGET),
    ):
        assert not {"output_config", "thinking"} & json.loads(translation.body).keys()
        assert translation.ignored == ("reasoning_effort",)


CALLED = (HI, assistant(None, call("a")), result("a"))


@pytest.mark.parametrize(
    ("messages", "has_budget"),
    [
        (CALLED, False),
        (CALLED[1:], False),
        ((HI, assistant(None, call("a"), thinking_blocks=[THOUGHT]), result("a")), True),
        ((*CALLED, assistant("Done."), HI), True),
        ((HI, assistant("x"), user([text("a"), text("b")])), True),
    ],
)
def test_results_of_calls_without_thinking_take_no_budget(
    messages: tuple[Json, ...], has_budget: bool
) -> None:
    translation = translate(*messages, reasoning_effort="high", able=WITH_BUDGET)
    assert ("thinking" in json.loads(translation.body)) is has_budget
    assert translation.ignored == (() if has_budget else ("reasoning_effort",))


@pytest.mark.parametrize("wanted", ["required", OTHER])
def test_forced_call_comes_without_thinking(wanted: object) -> None:
    body = sent(tools=[OTHER], tool_choice=wanted, reasoning_effort="high")
    assert "thinking" not in body
    assert body["output_config"] == {"effort": "high"}


def test_clients_own_thinking_and_effort_win() -> None:
    own = {"type": "enabled", "budget_tokens": 2000}
    body = sent(thinking=own, reasoning_effort="high", output_config={"effort": "max"})
    assert (body["thinking"], body["output_config"]) == (own, {"effort": "max"})
    assert translate(thinking=own, reasoning_effort="high", able=PLAIN).ignored == ()


# -- formats

OPEN: Json = {"type": "object", "additionalProperties": True}
CLOSED: Json = {"type": "object", "properties": {"a": {"type": "string"}}}


def schema_format(schema: Json, **more: object) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("schema", "more", "able", "ignored"),
    [
        (OPEN, {}, None, ()),
        (OPEN, {"strict": True}, None, ("response_format.json_schema.strict",)),
        (CLOSED, {}, PLAIN, ()),
    ],
)
def test_format_that_is_not_enforced_is_requested_in_the_prompt(
    schema: Json, more: Json, able: Capabilities | None, ignored: tuple[str, ...]
) -> None:
    response_format = schema_format(schema, **more)
    translation = translate(system("Be."), HI, able=able, response_format=response_format)
    body = json.loads(translation.body)
    assert "output_config" not in body
    assert body["system"].startswith("Be.\n")
    assert json.dumps(schema, separators=(",", ":")) in body["system"]
    assert translation.ignored == ignored


def test_json_object_is_requested_in_the_prompt() -> None:
    assert "JSON" in sent(response_format={"type": "json_object"})["system"]
    assert "system" not in sent(response_format={"type": "text"})
    assert "system" not in sent(response_format=None)


def test_format_and_effort_are_merged_with_output_config() -> None:
    body = sent(
        response_format=schema_format(CLOSED),
        reasoning_effort="low",
        output_config={"task_budget": {"type": "tokens", "total": 9}},
    )
    assert body["output_config"].keys() == {"format", "effort", "task_budget"}
    assert body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {**CLOSED, "additionalProperties": False},
    }


# -- dropped fields


def test_each_dropped_field_is_named_once() -> None:
    messages = ({**HI, "name": "a"}, {**HI, "name": "b"})
    translation = translate(*messages, seed=0, frequency_penalty=0.5, new_field="x")
    assert translation.ignored == ("seed", "frequency_penalty", "new_field", "messages.name")
    assert json.loads(translation.body).keys() == {"model", "max_tokens", "messages"}


def test_field_that_requests_nothing_is_not_named() -> None:
    fields: Json = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "store": False,
        "verbosity": None,
        "new_field": None,
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
    }
    assert translate(**fields).ignored == ()


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "é", "a" * 65, "a, b", "\ud800", ""])
def test_field_name_that_fits_no_header_is_unknown(name: str) -> None:
    fields: Json = {name: 1}
    assert translate(**fields).ignored == ("unknown",)


def test_dropped_fields_beyond_the_limit_are_one_name() -> None:
    fields: Json = {f"f{n}": 1 for n in range(1000)}
    assert translate(**fields).ignored == (*(f"f{n}" for n in range(32)), "more")


def test_strict_refuses_a_field_to_drop() -> None:
    with pytest.raises(InvalidRequest, match="CHAT_STRICT") as caught:
        translate(seed=7, options=Options(strict=True))
    assert caught.value.param == "seed"
    translate(temperature=1, stop="x", options=Options(strict=True))

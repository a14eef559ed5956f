"""Fields of chat completions besides messages and tools: what each becomes upstream."""

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

from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options
from tornadoproxy.openai.messages_request import SAMPLING

THINKING = {"thinking": {"type": "adaptive"}}
USER_B = {"metadata": {"user_id": "b"}}
NAMES = ("a" * 256, "123456", "3f0c7a0e-1c1d-4f7e-9a4e-123456789012")


@pytest.mark.parametrize(
    ("fields", "expected", "ignored"),
    [
        ({"max_tokens": 1}, {"max_tokens": 1}, ()),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}, ()),
        ({"stop": "END"}, {"stop_sequences": ["END"]}, ()),
        ({"stop": ["\n", "a", "b c"]}, {"stop_sequences": ["a", "b c"]}, ("stop",)),
        ({"stop": ["", "END"]}, {"stop_sequences": ["END"]}, ()),
        ({"stop": "\n\n"}, {}, ("stop",)),
        ({"temperature": 0, "top_k": 0}, {"temperature": 0, "top_k": 0}, ()),
        ({"temperature": 2, "top_p": 1}, {}, ()),
        ({"temperature": 1.0, "top_p": 0.5}, {"top_p": 0.5}, ()),
        ({"temperature": 0.5, "top_p": None}, {"temperature": 0.5}, ()),
        ({"temperature": 0, "top_p": 0}, {"temperature": 0}, ("top_p",)),
        ({"temperature": 0, "top_k": 1} | THINKING, THINKING, ("temperature", "top_k")),
        ({"user": "b", "metadata": {"user_id": "a"}}, USER_B, ()),
        ({"metadata": {"user_id": "b"}, "safety_identifier": "c"}, USER_B, ()),
        ({"user": "", "safety_identifier": "b"}, USER_B, ()),
        *(({"user": name}, {"metadata": {"user_id": name}}, ()) for name in NAMES),
        ({"metadata": {"team": "x"}}, {}, ("metadata",)),
        ({"service_tier": "standard_only"}, {"service_tier": "standard_only"}, ()),
        ({"service_tier": "auto"}, {}, ()),
        ({"service_tier": "default"}, {}, ()),
        ({"service_tier": "flex"}, {}, ("service_tier",)),
        ({"stream": False, "stream_options": None}, {}, ()),
        ({"stream": True, "stream_options": {"include_usage": None}}, {"stream": True}, ()),
        ({"response_format": {"type": "text"}}, {}, ()),
        # these request nothing
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "top_logprobs": 0}, {}, ()),
        ({"store": False, "logprobs": False, "n": 1, "modalities": ["text"]}, {}, ()),
        ({"logit_bias": {}, "metadata": {}, "verbosity": None, "new_field": None}, {}, ()),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_field_is_translated(fields: Json, expected: Json, ignored: tuple[str, ...]) -> None:
    translation = translate(**fields)
    body = json.loads(translation.body)
    assert body == {**sent(), **expected}
    assert translation.ignored == ignored
    assert translation.samples == bool(body.keys() & SAMPLING)
    assert (translation.stream, translation.include_usage) == ("stream" in body, False)


@pytest.mark.parametrize(
    "user_id",
    ["a" * 257, "app:ann.b+c@mail.example.co.uk", "+1 (555) 010-9999", "5550109", "a@b.c\ud800"],
)
def test_user_that_upstream_refuses_is_sent_as_digest(user_id: str) -> None:
    digest = hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()
    translation = translate(user=user_id)
    assert json.loads(translation.body)["metadata"] == {"user_id": digest}
    assert translation.ignored == ()


@pytest.mark.parametrize(
    ("default", "model", "budget", "limit"),
    [
        (None, None, None, 32_000),
        (None, 4096, None, 4096),
        (None, 64_000, None, 64_000),
        (100, 50, None, 50),
        (None, None, 32_000, 64_000),
        (100, 50_000, 10_000, 20_000),
        (100, 15_000, 10_000, 15_000),
        (None, None, 10**4300 - 1, 10_000_000),  # twice of it is too long for JSON
    ],
    ids=lambda value: str(value)[:8],
)
def test_limit_of_request_without_one_is_above_its_budget(
    default: int | None, model: int | None, budget: int | None, limit: int
) -> None:
    fields = {} if budget is None else {"thinking": {"type": "enabled", "budget_tokens": budget}}
    options, able = Options(default_max_tokens=default), Capabilities(max_tokens=model)
    translation = translate(options=options, able=able, max_tokens=None, **fields)
    assert json.loads(translation.body)["max_tokens"] == limit


@pytest.mark.parametrize(
    ("fields", "options", "depends"),
    [
        ({"max_tokens": None}, Options(), True),
        ({"max_tokens": 5, "tool_choice": None}, Options(), False),
        ({"max_completion_tokens": 5}, Options(), False),
        ({}, Options(default_max_tokens=5), False),
        *(
            ({"max_tokens": 5, name: "x"}, Options(), True)
            for name in (
                "function_call",
                "reasoning_effort",
                "response_format",
                "tool_choice",
                "tools",
            )
        ),
    ],
)
def test_translation_depends_on_capabilities(fields: Json, options: Options, depends: bool) -> None:
    assert chat_completions.depends_on_capabilities(fields, options) is depends


ALL_CAN = Capabilities(
    thinking=frozenset({"adaptive", "enabled", "disabled"}),
    efforts=("low", "medium", "high", "xhigh", "max"),
)
WITH_BUDGET = Capabilities(thinking=frozenset({"enabled", "disabled"}), efforts=())
BETWEEN_TOOLS = Capabilities(thinking=frozenset({"adaptive", "between_tools"}), forced_tools=False)
ADAPTIVE = {"thinking": {"type": "adaptive", "display": "summarized"}}
OWN = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
CALLED = (HI, assistant(None, call("a")), result("a"))


def effort(level: str) -> Json:
    return {"output_config": {"effort": level}}


def budget(tokens: int) -> Json:
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


@pytest.mark.parametrize(
    ("able", "wanted", "fields", "expected"),
    [
        (None, "high", {}, effort("high") | ADAPTIVE),
        (None, "none", {}, effort("low")),
        (ALL_CAN, "minimal", {}, effort("low") | ADAPTIVE),
        (ALL_CAN, "none", {}, {"thinking": {"type": "disabled"}}),
        (BETWEEN_TOOLS, "none", {}, {"thinking": {"type": "between_tools"}}),
        (ALWAYS_THINKS, "max", {}, effort("high") | ADAPTIVE),
        (WITH_BUDGET, "medium", {}, budget(8192)),
        (WITH_BUDGET, "max", {"max_tokens": 4000}, budget(2000)),
        (WITH_BUDGET, "max", {"max_tokens": 2048}, budget(1024)),
        (WITH_BUDGET, "max", {"max_tokens": 2047}, {}),
        (WITH_BUDGET, "none", {}, {"thinking": {"type": "disabled"}}),
        (PLAIN, "high", {}, {}),
        # the client's own
        (None, "high", OWN | effort("max"), OWN | effort("max")),
        (PLAIN, "high", OWN, OWN),
        # a forced call comes without thinking
        (None, "high", {"tools": [OTHER], "tool_choice": "required"}, effort("high")),
        (None, "high", {"tools": [OTHER], "tool_choice": OTHER}, effort("high")),
    ],
)
def test_reasoning_effort_is_translated(
    able: Capabilities | None, wanted: str, fields: Json, expected: Json
) -> None:
    translation = translate(reasoning_effort=wanted, able=able, **fields)
    body = json.loads(translation.body)
    assert {key: body[key] for key in ("output_config", "thinking") if key in body} == expected
    assert translation.ignored == (() if expected else ("reasoning_effort",))


@pytest.mark.parametrize(
    ("messages", "has_budget"),
    [
        (CALLED, False),
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


OPEN: Json = {"type": "object", "additionalProperties": True}
CLOSED: Json = {"type": "object", "properties": {"a": {"type": "string"}}}


def schema_format(schema: Json, **more: object) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("wanted", "able", "ignored"),
    [
        ({"type": "json_object"}, None, ()),
        (schema_format(OPEN), None, ()),
        (schema_format(OPEN, strict=True), None, ("response_format.json_schema.strict",)),
        (schema_format(CLOSED), PLAIN, ()),
    ],
)
def test_format_that_is_not_enforced_is_requested_in_the_prompt(
    wanted: Json, able: Capabilities | None, ignored: tuple[str, ...]
) -> None:
    translation = translate(system("Be."), HI, able=able, response_format=wanted)
    body = json.loads(translation.body)
    assert "output_config" not in body
    assert body["system"].startswith("Be.\nAnswer with a single JSON object")
    schema = wanted.get("json_schema", {"schema": ""})["schema"]
    assert not schema or json.dumps(schema, separators=(",", ":")) in body["system"]
    assert translation.ignored == ignored


def test_format_and_effort_are_merged_with_output_config() -> None:
    own = {"task_budget": {"type": "tokens", "total": 9}}
    body = sent(response_format=schema_format(CLOSED), reasoning_effort="low", output_config=own)
    fitted = {"type": "json_schema", "schema": {**CLOSED, "additionalProperties": False}}
    assert body["output_config"] == {"format": fitted, "effort": "low", **own}


def test_each_dropped_field_is_named_once() -> None:
    messages = ({**HI, "name": "a"}, {**HI, "name": "b"})
    translation = translate(*messages, seed=0, frequency_penalty=0.5)
    assert translation.ignored == ("seed", "frequency_penalty", "messages.name")
    assert json.loads(translation.body) == sent(HI, HI)


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "é", "a" * 65, "a, b", "\ud800", ""])
def test_field_name_that_fits_no_header_is_unknown(name: str) -> None:
    fields: Json = {name: 1}
    assert translate(**fields).ignored == ("unknown",)


def test_dropped_fields_beyond_the_limit_are_one_name() -> None:
    most: Json = {f"f{n}": 1 for n in range(32)}
    assert translate(**most).ignored == (*most,)
    assert translate(**most, x=1, y=1).ignored == (*most, "more")

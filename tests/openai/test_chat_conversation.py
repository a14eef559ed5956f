"""Messages of chat completions: system prompts, turns, calls with results, thinking."""

from __future__ import annotations

import json
import re

import pytest
from chat_requests import (
    HI,
    THOUGHT,
    Json,
    assistant,
    call,
    function_call,
    function_result,
    image,
    result,
    sent,
    system,
    text,
    translate,
    turns,
    user,
)

from tornadoproxy.openai.chat_completions import Options
from tornadoproxy.openai.reading import MAX_VALUES
from tornadoproxy.openai.turns import CONTINUING, OPENING

LINK = image("https://a.example/")
REDACTED: Json = {"type": "redacted_thinking", "data": "ZGF0YQ=="}


def test_system_and_developer_messages_are_one_prompt() -> None:
    developer = {"role": "developer", "content": [text("Two.")]}
    body = sent(system("One."), HI, developer, user("More"), system("  "))
    assert body["system"] == "One.\nTwo."
    assert body["messages"] == [user([text("Hi"), text("More")])]
    marked = {**text("Long."), "cache_control": {"type": "ephemeral"}}
    assert sent(system([marked]), system("b"), HI)["system"] == [marked, text("b")]


def test_missing_first_user_message_is_made_up() -> None:
    said = assistant([text("Welcome."), text("!")])
    assert turns(assistant("Welcome."), assistant("!"), HI) == [user(OPENING), said, HI]
    assert sent(system("Be."))["messages"] == [user(OPENING)]


@pytest.mark.parametrize("empty", [" \n", None, [], [text(" ")]])
def test_blank_content_is_left_out(empty: object) -> None:
    expected = {"role": "user", "content": [text("Hi"), text("b")]}
    assert turns(HI, assistant(empty), user(empty), user("b")) == [expected]
    assert turns(HI, assistant(thinking_blocks=[THOUGHT, REDACTED]), user("b")) == [expected]


@pytest.mark.parametrize("last", [(), (user(""),), (system("Be brief."),)])
def test_assistant_message_last_asks_for_a_new_message(last: tuple[Json, ...]) -> None:
    prefill = Options(prefill=bool(last))  # another message follows the assistant's
    messages = json.loads(translate(HI, assistant("It is \n"), *last, options=prefill).body)
    assert messages["messages"][-2:] == [assistant("It is \n"), user(CONTINUING)]


@pytest.mark.parametrize("blank", [(), (assistant(" "),)])
def test_prefill_is_continued_from_its_last_letter(blank: tuple[Json, ...]) -> None:
    translation = translate(HI, assistant("It is \n"), *blank, options=Options(prefill=True))
    assert json.loads(translation.body)["messages"][1:] == [assistant("It is")]


def test_refusals_of_an_assistant_are_text() -> None:
    parts = [text("a"), {"type": "refusal", "refusal": "b"}]
    content = turns(HI, assistant(parts, refusal="c"), HI)[1]["content"]
    assert content == [text(each) for each in "abc"]


def test_parallel_calls_and_their_results_are_two_turns() -> None:
    _, asked, answered = turns(
        HI,
        assistant("See.", call("a", "weather", '{"city": "Zürich"}'), call("b", "clock", "")),
        result("b"),
        result("a", [text("x"), LINK]),
        user("And?"),
    )
    assert asked["content"] == [
        text("See."),
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Zürich"}},
        {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
    ]
    linked = {"type": "image", "source": {"type": "url", "url": "https://a.example/"}}
    assert answered["content"] == [
        {"type": "tool_result", "tool_use_id": "b", "content": "fine"},
        {"type": "tool_result", "tool_use_id": "a", "content": [text("x"), linked]},
        text("And?"),
    ]


@pytest.mark.parametrize("arguments", ["  ", "{}", None, "null", "[]"])
@pytest.mark.parametrize("content", [None, [], "  "])
def test_call_and_result_can_be_empty(arguments: object, content: object) -> None:
    _, asked, answered = turns(
        HI, assistant("", call("a", arguments=arguments)), result("a", content)
    )
    assert asked["content"] == [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]
    assert answered["content"] == [{"type": "tool_result", "tool_use_id": "a"}]


@pytest.mark.parametrize(
    "arguments",
    [
        *("city", '"null"', "[[]]", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000),
        '{"a":' * 300 + "1" + "}" * 300,
        "[" + "[]," * (MAX_VALUES + 1) + "[]]",
    ],
    ids=lambda arguments: str(arguments)[:12],
)
def test_invalid_arguments_are_wrapped_in_an_object(arguments: str) -> None:
    legacy = (function_call("f", arguments=arguments), function_result("f"))
    found = turns(HI, assistant(None, call("a", arguments=arguments)), result("a"), *legacy)
    inputs = [turn["content"][0]["input"] for turn in found[1::2]]
    assert inputs == [{"INVALID_JSON": arguments}] * 2
    half = assistant(None, call("a", arguments="\ud800"), call("b", arguments='{"a": "\udfff"}'))
    inputs = [block["input"] for block in turns(HI, half, result("a"), result("b"))[1]["content"]]
    assert inputs == [{"INVALID_JSON": "\ufffd"}, {"a": "\ufffd"}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.b c", "a_b_c"), ("", "_"), ('x" />', "x____"), ("é" * 200, "_" * 128), ("\ud800", "_")],
)
def test_name_that_no_tool_can_have_is_replaced(name: str, expected: str) -> None:
    calls = (assistant(None, call("a", name)), result("a"), function_call(name))
    body = sent(HI, *calls, function_result(name))
    assert [turn["content"][0]["name"] for turn in body["messages"][1::2]] == [expected] * 2
    assert [tool["name"] for tool in body["tools"]] == [expected]
    assert body["tool_choice"] == {"type": "none"}


def test_ids_of_an_earlier_turn_are_replaced_the_same_each_time() -> None:
    exchange = (assistant(None, call("a"), call("b c")), result("b c"), result("a"))
    legacy = (function_call("f"), function_result("f"))
    history = (HI, *exchange, *exchange, HI, *legacy, *legacy)
    found = turns(*history)
    calls = [block["id"] for turn in found[1::2] for block in turn["content"]]
    blocks = [block for turn in found[2::2] for block in turn["content"]]
    results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    assert (len(set(calls)), calls[0], sorted(results)) == (6, "a", sorted(calls))
    assert turns(*history, HI)[1::2] == found[1::2]


def test_ids_that_the_upstream_refuses_are_replaced() -> None:
    odd = ("functions.weather:0", "é" * 200, "a" * 129, "a" * 128)
    calls = assistant(None, *(call(each) for each in odd))
    asked = turns(HI, calls, *(result(each) for each in odd))[1]["content"]
    assert {block["id"] for block in asked} & {*odd} == {odd[3]}
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", block["id"]) for block in asked)


def test_thinking_goes_back_to_its_place() -> None:
    thoughts = [
        {**THOUGHT, "index": 0},
        REDACTED,
        {**THOUGHT, "text_before": 3},
        {**THOUGHT, "text_before": 6, "calls_before": 1},
    ]
    said = assistant("OneTwo", call("a"), call("b"), thinking_blocks=thoughts)
    content = turns(HI, {**said, "reasoning_content": "Hm."}, result("a"), result("b"))[1][
        "content"
    ]
    found = [block.get("text") or block.get("id") or block["type"] for block in content]
    assert " ".join(found) == "thinking redacted_thinking One thinking Two a thinking b"
    assert content[:2] == [THOUGHT, REDACTED]


@pytest.mark.parametrize(
    ("text_before", "calls_before", "kept"), [(10**30, 10**30, 1), (0, 0, 3), (1, 0, 3), (0, 1, 3)]
)
def test_thinking_whose_place_is_gone_loses_no_text(
    text_before: int, calls_before: int, kept: int
) -> None:
    moved = {**THOUGHT, "text_before": text_before, "calls_before": calls_before}
    said = assistant(" x ", call("a"), thinking_blocks=[THOUGHT, moved, THOUGHT])
    content = turns(HI, said, result("a"))[1]["content"]
    kinds = [block["type"] for block in content]
    assert kinds.count("thinking") == kept  # the upstream refuses thinking at the end of a turn
    assert kinds.count("tool_use") == 1
    texts = [block["text"] for block in content if block["type"] == "text"]
    assert "".join(texts).strip() == "x"
    assert all(each.strip() for each in texts)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "Hm."},
        {**THOUGHT, "signature": ""},
        {**THOUGHT, "text_before": 1, "calls_before": 1},  # nothing follows it
        {"type": "redacted_thinking", "data": ""},
    ],
)
def test_thinking_that_upstream_refuses_is_dropped_and_named(block: Json) -> None:
    for said in (assistant("a", call("a")), assistant(None, call("a"))):
        translation = translate(HI, {**said, "thinking_blocks": [block]}, result("a"))
        assert translation.ignored == ("messages.thinking_blocks",)
        assert json.loads(translation.body)["messages"] == turns(HI, said, result("a"))


def test_reasoning_without_signature_is_dropped_and_named() -> None:
    translation = translate(HI, assistant("a", reasoning_content="Hm."), HI)
    assert "Hm." not in translation.body.decode()
    assert translation.ignored == ("messages.reasoning_content",)

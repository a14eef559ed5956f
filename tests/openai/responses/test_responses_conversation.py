"""Items of the Responses API: turns, calls with their outputs, carried blocks, compaction."""

from __future__ import annotations

import json
from typing import Any

import pytest
from response_requests import (
    SEARCHED,
    TAKES_SYSTEM,
    THOUGHT,
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

from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses.carrier import pack_summary, unpack
from tornadoproxy.openai.responses.conversation import SUMMARIZE, SUMMARY, UNREADABLE
from tornadoproxy.openai.turns import CONTINUING, OPENING

PNG = "data:image/png;base64,iVBORw0KGgoA"
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgoA"},
}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["Hi"], [("user", "Hi")]),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, "c"],
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (["a", "b"], [("user", [text("a"), text("b")])]),
        (
            ["a", said("b", phase="commentary"), "c"],
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (
            [said("a"), said("b"), "c"],
            [("user", OPENING), ("assistant", [text("a"), text("b")]), ("user", "c")],
        ),
        (["a", said("b")], [("user", "a"), ("assistant", "b"), ("user", CONTINUING)]),
        (
            ["a", message("assistant", [{"type": "refusal", "refusal": "No."}]), "b"],
            [("user", "a"), ("assistant", "No."), ("user", "b")],
        ),
        (["a", user(" "), message("assistant", ""), "b"], [("user", [text("a"), text("b")])]),
    ],
)
def test_messages_become_turns(items: list[Json | str], expected: list[tuple[str, object]]) -> None:
    assert turns(*items) == expected


def test_last_assistant_message_is_continued_with_chat_prefill() -> None:
    options = Options(prefill=True)
    assert turns("a", said("b "), options=options) == [("user", "a"), ("assistant", "b")]
    ends = turns("a", call("c"), said("b"), output("c"), options=options)
    assert [role for role, _ in ends] == ["user", "assistant", "user"]


def test_input_that_is_a_string_is_a_message_of_the_users() -> None:
    translation = translate(input="Hi", has_store=True)
    assert json.loads(translation.body)["messages"] == [{"role": "user", "content": "Hi"}]
    assert translation.input == ({"type": "message", "role": "user", "content": "Hi"},)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "input_image", "image_url": PNG, "detail": "auto"}, IMAGE),
        (
            {"type": "input_image", "image_url": "https://x.test/a.png"},
            {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
        ),
        (
            {"type": "input_image", "file_id": "file_1", "image_url": None},
            {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        ),
        (
            {"type": "input_file", "file_url": "https://x.test/a.pdf"},
            {"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}},
        ),
        (
            {"type": "input_file", "file_data": "aGk=", "filename": "a.txt"},
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "hi"},
                "title": "a.txt",
            },
        ),
        (
            {"type": "input_text", "text": "Hi", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {**text("Hi"), "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ),
    ],
)
def test_images_and_files_become_blocks_anywhere(part: Json, expected: Json) -> None:
    assert turns(user([part, {"type": "input_text", "text": "?"}])) == [
        ("user", [expected, text("?")])
    ]
    result = turns(call("a"), output("a", [part]))[-1][1]
    assert result == [tool_result("a", [expected])]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {}}, "type"),
        ({"type": "input_image"}, "image_url"),
        ({"type": "input_image", "image_url": "ftp://x"}, "image_url"),
        ({"type": "input_file"}, "file_data"),
        ({"type": "input_file", "file_url": "data:x"}, "file_url"),
        ({"type": "input_text"}, "text"),
        ("x", ""),
    ],
)
def test_part_that_claude_cannot_read_is_refused(part: object, param: str) -> None:
    where = f"input[1].content[0].{param}".rstrip(".")
    assert refused("Hi", user([part])).param == where


def test_interleaved_turn_keeps_its_order() -> None:
    answer = [reasoning(THOUGHT), said("x"), call("a"), reasoning(THOUGHT), call("b"), said("y")]
    found = turns("Hi", *answer, output("a"), output("b", ""), "Go on.")
    assert found[1:] == [
        (
            "assistant",
            [THOUGHT, text("x"), tool_use("a"), THOUGHT, tool_use("b"), text("y")],
        ),
        (
            "user",
            [
                tool_result("a"),
                {"type": "tool_result", "tool_use_id": "b"},
                text("Go on."),
            ],
        ),
    ]


def test_output_stands_first_in_the_turn_after_its_call() -> None:
    found = turns("Hi", call("a"), call("b"), output("b"), "Wait.", said("x"), output("a"), "y")
    assert found[2:] == [
        ("user", [tool_result("a"), tool_result("b"), text("Wait.")]),
        ("assistant", "x"),
        ("user", "y"),
    ]


def test_reused_ids_of_calls_pair_with_the_next_output() -> None:
    found = turns("Hi", call("1"), output("1", "one"), call("1"), output("1", "two"))
    assert found[2] == ("user", [tool_result("1", "one")])
    ((_, [second]),) = found[4:]
    assert second["content"] == "two"
    assert second["tool_use_id"] != "1"


@pytest.mark.parametrize(
    ("items", "param", "complaint"),
    [
        ([call("a")], "input[0]", "has no output: no item after it has the call_id 'a'"),
        (
            [output("a"), call("a")],
            "input[0]",
            "has no call: no item before it has the call_id 'a'",
        ),
        ([call("a"), output("a"), output("a")], "input[2]", "has no call"),
        ([call("a"), output("a", 1)], "input[1].output", "must be a string or a list of parts"),
        ([{**call("a"), "call_id": None}], "input[0].call_id", "must be a string"),
        ([{"type": "computer_call"}], "input[0]", "(a computer_call) is not supported"),
        ([{"type": "compaction_trigger"}, "x"], "input[0]", "must be the last item"),
        ([{"type": "novelty"}], "input[0].type", "(novelty) is not a known type of item"),
        ([{}], "input[0].type", "must be a string"),
        ([message("tool", "x")], "input[0].role", "must be one of user, assistant"),
    ],
)
def test_item_that_cannot_stand_there_is_refused(
    items: list[Json], param: str, complaint: str
) -> None:
    error = refused(*items)
    assert (error.status, error.param) == (400, param)
    assert complaint in error.message


def test_local_shells_output_may_have_its_calls_id_as_its_own() -> None:
    action = {"type": "exec", "command": ["ls"], "env": {}}
    item = {"type": "local_shell_call", "id": "lsh_1", "call_id": "a", "action": action}
    found = turns("Hi", item, {"type": "local_shell_call_output", "id": "a", "output": "x"})
    assert found[2] == ("user", [tool_result("a", "x")])


# -- carried blocks

OTHER_SEARCH: list[Json] = [{**SEARCHED[0], "id": "s2"}, {**SEARCHED[1], "tool_use_id": "s2"}]


def carried_by(item: Json) -> list[Json]:
    return unpack(item["encrypted_content"], "") or [] if "encrypted_content" in item else []


SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}


@pytest.mark.parametrize(
    ("items", "ignored"),
    [
        ([SEARCH, reasoning(*SEARCHED)], ()),
        ([SEARCH, SEARCH, reasoning(*SEARCHED, *OTHER_SEARCH)], ()),
        ([SEARCH, SEARCH, reasoning(*SEARCHED)], ("input.web_search_call",)),
        ([SEARCH, reasoning(THOUGHT)], ("input.web_search_call",)),
        ([SEARCH], ("input.web_search_call",)),
    ],
)
def test_search_goes_back_if_it_is_carried(items: list[Json], ignored: tuple[str, ...]) -> None:
    translation = translate("Hi", *items, said("x"), "y")
    assert translation.ignored == ignored
    _, turn, _ = json.loads(translation.body)["messages"]
    searches = [each for item in items[-1:] for each in carried_by(item)]
    assert turn["content"] == ([*searches, text("x")] if searches else "x")


def test_paused_search_goes_on_unless_the_user_speaks() -> None:
    paused = reasoning(THOUGHT, SEARCHED[0])
    translation = translate("Hi", SEARCH, paused)
    assert json.loads(translation.body)["messages"][1:] == [
        {"role": "assistant", "content": [THOUGHT, SEARCHED[0]]}
    ]
    assert translation.ignored == ()
    goes_on = turns("Hi", SEARCH, paused, reasoning(SEARCHED[1]), said("x"), "y")
    assert goes_on[1] == ("assistant", [THOUGHT, *SEARCHED, text("x")])
    assert turns("Hi", SEARCH, said("x"), paused, "y")[1:] == [("assistant", "x"), ("user", "y")]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABn"},
        reasoning({**THOUGHT, "signature": ""}),
        reasoning(SEARCHED[0]),
        reasoning(SEARCHED[1]),
    ],
)
def test_reasoning_that_cannot_go_back_is_dropped_and_named(item: Json) -> None:
    translation = translate("Hi", item, said("x"), "y")
    assert json.loads(translation.body)["messages"][1] == {"role": "assistant", "content": "x"}
    assert translation.ignored == ("input.reasoning",)


def test_thinking_at_the_end_of_a_turn_is_dropped_and_named() -> None:
    translation = translate("Hi", reasoning(THOUGHT), "y")
    assert json.loads(translation.body)["messages"] == [
        {"role": "user", "content": [text("Hi"), text("y")]}
    ]
    assert translation.ignored == ("input.reasoning",)


def test_damaged_carrier_is_refused_with_its_place() -> None:
    error = refused("Hi", {"type": "reasoning", "encrypted_content": "tp1.AAAA"})
    assert error.param == "input[1].encrypted_content"


# -- system and developer messages


def test_leading_instructions_are_the_system_prompt() -> None:
    body = sent(message("system", "b"), developer("c"), "Hi", instructions="a")
    assert body["system"] == "a\nb\nc"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


LATER: list[Json | str] = ["Hi", said("x"), developer("Be brief."), developer("Be kind."), "y"]


def test_later_instructions_follow_users_turn_if_model_accepts() -> None:
    body = sent(developer("a"), *LATER, able=TAKES_SYSTEM)
    assert body["system"] == "a"
    assert body["messages"][2:] == [
        {"role": "user", "content": "y"},
        {"role": "system", "content": [text("Be brief."), text("Be kind.")]},
    ]
    assert sent(developer("a"), *LATER)["system"] == "a\nBe brief.\nBe kind."


@pytest.mark.parametrize(
    ("items", "roles"),
    [
        (["a", developer("s")], ["user", "system"]),
        (["a", developer("s"), said("x"), "b"], ["user", "system", "assistant", "user"]),
        (["a", developer("s"), reasoning(THOUGHT), "b"], ["user", "system"]),
        (
            ["a", said("x"), developer("s"), said("y"), "b"],
            ["user", "assistant", "user", "system", "assistant", "user"],
        ),
        (
            ["a", call("c"), developer("s"), output("c"), said("x"), "b"],
            ["user", "assistant", "user", "system", "assistant", "user"],
        ),
    ],
)
def test_system_message_stands_only_where_the_upstream_takes_it(
    items: list[Json | str], roles: list[str]
) -> None:
    assert [role for role, _ in turns(*items, able=TAKES_SYSTEM)] == roles


# -- compaction


def test_trigger_asks_for_a_summary_without_calls() -> None:
    tools = [{"type": "function", "name": "weather"}]
    trigger = {"type": "compaction_trigger"}
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    translation = translate(
        "Hi", call("a"), output("a"), trigger, tools=tools, tool_choice="required",
        text={"format": schema},
    )  # fmt: skip
    body = json.loads(translation.body)
    assert translation.compacts
    assert body["messages"][-1]["content"] == [tool_result("a"), text(SUMMARIZE)]
    assert body["tool_choice"] == {"type": "none"}
    assert body.keys() & {"output_config", "cache_control"} == set()
    assert not translate("Hi").compacts


def test_compaction_item_becomes_the_summary() -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": pack_summary("So far.")}
    assert turns("Hi", item) == [("user", [text("Hi"), text(f"{SUMMARY}So far.")])]


def test_foreign_compaction_becomes_a_note_and_is_named() -> None:
    translation = translate("Hi", {"type": "compaction", "encrypted_content": "COMPACTED"})
    assert json.loads(translation.body)["messages"][0]["content"][-1] == text(UNREADABLE)
    assert translation.ignored == ("input.compaction",)


def test_calls_without_tools_get_tools_that_may_not_be_called() -> None:
    body = sent("Hi", call("a"), output("a"), tools=[], parallel_tool_calls=False)
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "none"}


# -- tools and settings in items


EXEC = {"type": "custom", "name": "exec"}


def test_tools_in_items_join_the_offer() -> None:
    search = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
    found = {"type": "namespace", "name": "mcp__x", "tools": [{"type": "function", "name": "add"}]}
    items: list[Any] = [
        {"type": "additional_tools", "role": "developer", "tools": [EXEC]},
        "Hi",
        {"type": "tool_search_call", "call_id": "a", "execution": "client", "arguments": {}},
        {"type": "tool_search_output", "call_id": "a", "execution": "client", "tools": [found]},
        call("b", "add", namespace="mcp__x"),
        output("b"),
    ]
    translation = translate(*items, tools=[search])
    body = json.loads(translation.body)
    assert [tool["name"] for tool in body["tools"]] == ["tool_search", "exec", "mcp__x__add"]
    assert translation.origins["mcp__x__add"][1:] == ("add", "mcp__x")
    assert body["messages"][-2]["content"][0]["name"] == "mcp__x__add"
    bad = {"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]}
    assert refused(bad, "Hi").param == "input[0].tools[0].type"


def test_last_configuration_update_counts() -> None:
    updates = [
        {"type": "configuration_update", "reasoning": {"effort": "high"}},
        {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {}},
    ]
    translation = translate("Hi", *updates, reasoning={"effort": "medium"})
    assert json.loads(translation.body)["output_config"] == {"effort": "low"}
    assert translation.echo["reasoning"]["effort"] == "low"
    updates[1]["reasoning"] = {"effort": "tiny"}
    assert refused("Hi", *updates).param == "input[2].reasoning.effort"

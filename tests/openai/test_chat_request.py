"""Chat completions requests: given this, upstream is sent that, or the client is told why not.

Expectations come from the two APIs' references. Each case is a request beside what becomes of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
from typing import Any

import pytest

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, Translation
from tornadoproxy.openai.chat_completions.conversation import CONTINUING
from tornadoproxy.openai.reading import MAX_BACKSLASHES, MAX_DEPTH, MAX_VALUES

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

HI: Json = {"role": "user", "content": "Hi"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
PDF = base64.b64encode(b"%PDF-1.7 and so on").decode()
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
OTHER: Json = {"type": "function", "function": {"name": "clock"}}

ALL_CAN = Capabilities(
    thinking=frozenset({"adaptive", "enabled", "disabled"}),
    efforts=("low", "medium", "high", "xhigh", "max"),
)
WITH_BUDGET = Capabilities(thinking=frozenset({"enabled", "disabled"}), efforts=())
ALWAYS_THINKS = Capabilities(forced_tools=False)
BETWEEN_TOOLS = Capabilities(thinking=frozenset({"adaptive", "between_tools"}), forced_tools=False)
PLAIN = Capabilities(structured_outputs=False, thinking=frozenset(), efforts=())


def translate(
    *messages: Json,
    options: Options | None = None,
    able: Capabilities | None = None,
    **fields: Any,  # Any: JSON
) -> Translation:
    document = {"model": "claude-test", "messages": list(messages or (HI,)), **fields}
    return chat_completions.translate_request(
        chat_completions.parse(json.dumps(document).encode()),
        options=options,
        capabilities=able,
    )


def sent(*messages: Json, able: Capabilities | None = None, **fields: Any) -> Json:  # Any: JSON
    """What upstream is sent."""
    body: Json = json.loads(translate(*messages, able=able, **fields).body)
    return body


def turns(*messages: Json) -> list[Json]:
    """The messages that upstream is sent."""
    found: list[Json] = sent(*messages)["messages"]
    return found


def refused(*messages: Json, able: Capabilities | None = None, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        translate(*messages, able=able, **fields)
    assert caught.value.status == 400
    return caught.value


def user(content: object) -> Json:
    return {"role": "user", "content": content}


def assistant(content: object = None, *calls: Json, **more: Any) -> Json:  # Any: JSON
    message: Json = {"role": "assistant", "content": content, **more}
    return {**message, "tool_calls": list(calls)} if calls else message


def call(call_id: str, name: str = "weather", arguments: object = "{}") -> Json:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def result(call_id: str, content: object = "fine") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def image(url: str, **more: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def file(**fields: str) -> Json:
    return {"type": "file", "file": fields}


# The shortest request


def test_a_request_of_one_message() -> None:
    assert sent() == {
        "model": "claude-test",
        "max_tokens": 32000,
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_the_document_is_left_as_it_is() -> None:
    document = {
        "model": "claude-test",
        "messages": [assistant("a ", thinking_blocks=[]), user([{"type": "text", "text": "b"}])],
        "tools": [TOOL],
        "top_k": 3,
        "output_config": {"effort": "low"},
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
    }
    before = json.dumps(document)
    chat_completions.translate_request(document, capabilities=PLAIN)
    assert json.dumps(document) == before


# System prompts


def test_system_and_developer_messages_are_one_prompt_wherever_they_stand() -> None:
    body = sent(
        {"role": "system", "content": "One."},
        HI,
        {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        assistant("Hello"),
        user("More"),
        {"role": "system", "content": "  "},
    )
    assert body["system"] == "One.\nTwo."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]


def test_a_system_prompt_with_a_cache_breakpoint_stays_in_blocks() -> None:
    part = {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}
    body = sent({"role": "system", "content": [part]}, {"role": "system", "content": "b"}, HI)
    assert body["system"] == [part, {"type": "text", "text": "b"}]


def test_a_system_prompt_alone_is_followed_by_a_user() -> None:
    body = sent({"role": "system", "content": "Be."})
    assert body["system"] == "Be."
    assert [turn["role"] for turn in body["messages"]] == ["user"]


def test_a_system_prompt_holds_text_alone() -> None:
    error = refused({"role": "system", "content": [image("https://a.example/b.png")]}, HI)
    assert error.param == "messages[0].content[0].type"


# Turns


def test_neighbours_under_one_role_are_one_turn() -> None:
    assert turns(user("a"), user("b"), assistant("c"), assistant("d"), user("e")) == [
        {"role": "user", "content": [{"type": "text", "text": c} for c in "ab"]},
        {"role": "assistant", "content": [{"type": "text", "text": c} for c in "cd"]},
        {"role": "user", "content": "e"},
    ]


def test_an_assistant_that_speaks_first_has_a_user_before_it() -> None:
    roles = [turn["role"] for turn in turns(assistant("Welcome."), HI)]
    assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize("empty", ["", " \n", None, [], [{"type": "text", "text": " "}]])
def test_what_is_blank_is_left_out(empty: object) -> None:
    assert turns(HI, assistant(empty), user(empty), user("b")) == [
        {"role": "user", "content": [{"type": "text", "text": c} for c in ("Hi", "b")]}
    ]


@pytest.mark.parametrize("last", [user(""), {"role": "system", "content": "Be brief."}])
def test_an_answer_that_stands_last_only_after_translation_is_not_continued(last: Json) -> None:
    assert turns(HI, assistant("Hello"), last)[-1]["role"] == "user"


def test_assistant_message_last_asks_for_new_message() -> None:
    assert turns(HI, assistant("The answer is \n"))[-2:] == [
        {"role": "assistant", "content": "The answer is \n"},
        {"role": "user", "content": CONTINUING},
    ]


@pytest.mark.parametrize("blank", [(), (assistant(" "),)])
def test_prefill_is_continued_from_its_last_letter(blank: tuple[Json, ...]) -> None:
    translation = translate(
        HI, assistant("The answer is \n"), *blank, options=Options(prefill=True)
    )
    assert json.loads(translation.body)["messages"][1:] == [
        {"role": "assistant", "content": "The answer is"}
    ]


def test_names_are_dropped_and_told() -> None:
    translation = translate({"role": "user", "content": "Hi", "name": "ann"})
    assert json.loads(translation.body)["messages"] == [HI]
    assert translation.ignored == ("messages.name",)


def test_refusals_of_an_assistant_are_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    told = turns(HI, assistant(parts, refusal="c"), HI)[1]["content"]
    assert told == [{"type": "text", "text": c} for c in "abc"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hi", "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "owner", "content": "Hi"}, "messages[0].role"),
        ({"role": ["user"], "content": "Hi"}, "messages[0].role"),
        (user(7), "messages[0].content"),
        (user({"type": "text", "text": "a"}), "messages[0].content"),
        (user(["a"]), "messages[0].content[0]"),
        (user([{"type": "text"}]), "messages[0].content[0].text"),
        (user([{"type": "text", "text": None}]), "messages[0].content[0].text"),
        (user([{"type": ["text"]}]), "messages[0].content[0].type"),
        (user([{"type": "refusal", "refusal": "no"}]), "messages[0].content[0].type"),
        (user([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type"),
        ({**HI, "name": 7}, "messages[0].name"),
        (assistant([image("https://a.example/")]), "messages[0].content[0].type"),
        (assistant(refusal=7), "messages[0].refusal"),
        (assistant(audio={"id": "a"}), "messages[0].audio"),
        ({**HI, "cache_control": "yes"}, "messages[0].cache_control"),
    ],
)
def test_a_message_that_is_wrong_is_named(message: Any, param: str) -> None:  # Any: wrong JSON
    assert refused(message).param == param


@pytest.mark.parametrize("messages", [None, [], {}, "Hi"])
def test_messages_must_be_a_list_with_something_in_it(messages: object) -> None:
    document = {"model": "claude-test", "messages": messages}
    with pytest.raises(InvalidRequest) as caught:
        chat_completions.translate_request(document)
    assert caught.value.param == "messages"


def test_messages_and_model_must_be_there() -> None:
    for document, param in (({"model": "m"}, "messages"), ({"messages": [HI]}, "model")):
        with pytest.raises(InvalidRequest) as caught:
            chat_completions.translate_request(document)
        assert caught.value.param == param


# Images and files


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://a.example/b.png", {"type": "url", "url": "https://a.example/b.png"}),
        ("HTTP://a.example/", {"type": "url", "url": "HTTP://a.example/"}),
        (
            f"data:image/png;base64,{PNG}",
            {"type": "base64", "media_type": "image/png", "data": PNG},
        ),
        (
            "DATA:image/GIF;charset=x;BASE64,AAAA",
            {"type": "base64", "media_type": "image/gif", "data": "AAAA"},
        ),
        # clients name types wrongly, and upstream looks
        (
            f"data:image/jpeg;base64,{PNG}",
            {"type": "base64", "media_type": "image/png", "data": PNG},
        ),
        (
            "data:image/jpg;base64,/9j/4AAQ",
            {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4AAQ"},
        ),
        (f"data:;base64,{PNG}", {"type": "base64", "media_type": "image/png", "data": PNG}),
    ],
)
def test_images(url: str, source: Json) -> None:
    (turn,) = turns(user([image(url), {"type": "text", "text": "What is it?"}]))
    assert turn["content"] == [
        {"type": "image", "source": source},
        {"type": "text", "text": "What is it?"},
    ]


def test_an_image_can_be_a_bare_url() -> None:
    (turn,) = turns(user([{"type": "image_url", "image_url": "https://a.example/"}]))
    assert turn["content"][0]["source"]["url"] == "https://a.example/"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a.example/b.png",
        "/etc/passwd",
        "data:image/png,AAAA",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,A",
        "data:image/png;base64,AAA=A===",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,äöüß",
        "data:image/bmp;base64,AAAA",
        "data:text/plain;base64,AAAA",
        f"data:image/png;base64,{PDF}",
    ],
)
def test_images_that_are_none(url: str) -> None:
    param = refused(user([image(url)])).param
    assert param == "messages[0].content[0].image_url.url"


def test_the_detail_of_an_image_is_told_to_be_dropped() -> None:
    at = "https://a.example/"
    assert translate(user([image(at, detail="high")])).ignored == ("image_url.detail",)
    assert translate(user([image(at, detail="auto")])).ignored == ()


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        (
            {"file_data": f"data:application/pdf;base64,{PDF}"},
            {"type": "base64", "media_type": "application/pdf", "data": PDF},
        ),
        (
            {"file_data": PDF},
            {"type": "base64", "media_type": "application/pdf", "data": PDF},
        ),
        (
            {"file_data": f"data:application/octet-stream;base64,{PDF}"},
            {"type": "base64", "media_type": "application/pdf", "data": PDF},
        ),
        (
            {"file_data": "data:text/csv;base64," + base64.b64encode("ä,b".encode()).decode()},
            {"type": "text", "media_type": "text/plain", "data": "ä,b"},
        ),
        (
            {"file_data": "data:application/json;base64," + base64.b64encode(b"{}").decode()},
            {"type": "text", "media_type": "text/plain", "data": "{}"},
        ),
        (
            {"file_data": base64.b64encode(b"plain").decode()},
            {"type": "text", "media_type": "text/plain", "data": "plain"},
        ),
        ({"file_id": "file_01"}, {"type": "file", "file_id": "file_01"}),
    ],
)
def test_files(fields: dict[str, str], source: Json) -> None:
    (turn,) = turns(user([file(**fields)]))
    assert turn["content"] == [{"type": "document", "source": source}]
    (turn,) = turns(user([file(**fields, filename="a" * 600)]))
    assert turn["content"][0]["title"] == "a" * 500
    (turn,) = turns(user([file(**fields, filename="")]))
    assert "title" not in turn["content"][0]


@pytest.mark.parametrize(
    "data",
    [
        "",
        "not base64",
        "data:application/pdf,AAAA",
        "data:image/png;base64," + PNG,
        "data:application/zip;base64,AAAA",
        base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_files_that_are_none(data: str) -> None:
    assert refused(user([file(file_data=data)])).param == "messages[0].content[0].file.file_data"


def test_a_large_image_is_copied_a_few_times_at_most() -> None:
    data = "A" * 8_000_000
    document = {"model": "m", "messages": [user([image(f"data:image/png;base64,{data}")])]}
    tracemalloc.start()
    body = chat_completions.translate_request(document).body
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.encode() in body
    assert peak < 5 * len(data)


# Prompt caching


def test_cache_breakpoints_on_parts_messages_and_tools() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    body = sent(
        user([{"type": "text", "text": "a", "cache_control": mark}]),
        assistant("b", cache_control=mark),
        {**user("c"), "prompt_cache_breakpoint": {"mode": "explicit"}},
        tools=[
            {**TOOL, "cache_control": mark},
            {"type": "function", "function": {"name": "clock", "cache_control": mark}},
        ],
        cache_control=mark,
    )
    marked = [turn["content"][0]["cache_control"] for turn in body["messages"]]
    marked += [tool["cache_control"] for tool in body["tools"]]
    assert [*marked, body["cache_control"]] == [mark] * 6


@pytest.mark.parametrize(
    ("ttl", "ignored"), [("30m", ()), ("12h", ("prompt_cache_breakpoint.ttl",))]
)
def test_a_breakpoint_lasts_an_hour(ttl: str, ignored: tuple[str, ...]) -> None:
    marked = {
        "type": "text",
        "text": "a",
        "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl},
    }
    translation = translate(user([marked]))
    (turn,) = json.loads(translation.body)["messages"]
    assert turn["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert translation.ignored == ignored


FIVE_MINUTES: Json = {"type": "ephemeral"}
ONE_HOUR: Json = {"type": "ephemeral", "ttl": "1h"}
AGAIN = (HI, assistant("Hello"), HI)
MARKED = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}


@pytest.mark.parametrize(
    ("messages", "fields", "auto", "always"),
    [
        ((), {}, None, FIVE_MINUTES),
        (({"role": "system", "content": "Be."}, HI), {}, None, FIVE_MINUTES),
        ((), {"tools": [TOOL]}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"cache_control": None}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"prompt_cache_retention": "in_memory"}, FIVE_MINUTES, FIVE_MINUTES),
        ((), {"prompt_cache_retention": "24h"}, ONE_HOUR, ONE_HOUR),
        (AGAIN, {"prompt_cache_options": {"ttl": "30m"}}, ONE_HOUR, ONE_HOUR),
        (AGAIN, {"prompt_cache_options": {"mode": "implicit"}}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"prompt_cache_options": {"mode": "explicit"}}, None, None),
    ],
)
def test_request_that_marks_nothing_is_cached_by_its_mode(
    messages: tuple[Json, ...], fields: Json, auto: Json | None, always: Json | None
) -> None:
    for cache, wanted in (("auto", auto), ("always", always), ("off", None)):
        translation = translate(*messages, options=Options(cache=cache), **fields)
        assert json.loads(translation.body).get("cache_control") == wanted
        asked_in_vain = wanted is None and any(
            "24h" in str(v) or "30m" in str(v) for v in fields.values()
        )
        assert bool(translation.ignored) == asked_in_vain


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        (AGAIN, MARKED),
        (AGAIN, {"tools": [{**TOOL, **MARKED}]}),
        (({**HI, **MARKED}, assistant("Hello"), HI), {}),
        (({"role": "system", "content": "Be.", **MARKED}, *AGAIN), {}),
        ((*AGAIN[:2], user([{"type": "text", "text": "a", **MARKED}])), {}),
        ((*AGAIN[:2], {**HI, "prompt_cache_breakpoint": {"mode": "explicit"}}), {}),
        ((HI, assistant(None, call("a")), {**result("a"), **MARKED}), {}),
        (
            (
                HI,
                assistant(None, call("a")),
                result("a", [{"type": "text", "text": "a", **MARKED}]),
            ),
            {},
        ),
    ],
)
def test_request_that_marks_what_to_cache_is_left_alone(
    messages: tuple[Json, ...], fields: Json
) -> None:
    translation = translate(
        *messages, options=Options(cache="always"), prompt_cache_retention="24h", **fields
    )
    assert translation.body.count(b'"cache_control":') == 1
    assert translation.ignored == ("prompt_cache_retention",)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"prompt_cache_retention": "7d"}, "prompt_cache_retention"),
        ({"prompt_cache_options": {"ttl": "7d"}}, "prompt_cache_options.ttl"),
    ],
)
def test_unknown_cache_lifetime_is_named(fields: Json, ignored: str) -> None:
    translation = translate(*AGAIN, **fields)
    assert json.loads(translation.body)["cache_control"] == FIVE_MINUTES
    assert translation.ignored == (ignored,)


# Calls and their results


def test_parallel_calls_their_results_and_the_next_words_are_two_turns() -> None:
    _, asked, answered = turns(
        HI,
        assistant(
            "Let me see.", call("a", "weather", '{"city": "Zürich"}'), call("b", "clock", "")
        ),
        result("b"),
        result("a", [{"type": "text", "text": "x"}, image("https://a.example/")]),
        user("And?"),
    )
    assert asked == {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Zürich"}},
            {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
        ],
    }
    assert answered == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "b", "content": "fine"},
            {
                "type": "tool_result",
                "tool_use_id": "a",
                "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image", "source": {"type": "url", "url": "https://a.example/"}},
                ],
            },
            {"type": "text", "text": "And?"},
        ],
    }


@pytest.mark.parametrize("content", ["", None, [], "  "])
def test_a_result_can_be_empty(content: object) -> None:
    _, _, answered = turns(HI, assistant(None, call("a")), result("a", content))
    assert answered["content"] == [{"type": "tool_result", "tool_use_id": "a"}]


@pytest.mark.parametrize("arguments", ["", "  ", "{}", None, "null", "[]"])
def test_a_call_can_have_no_arguments(arguments: object) -> None:
    _, asked, _ = turns(HI, assistant("", call("a", arguments=arguments)), result("a"))
    assert asked["content"] == [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]


@pytest.mark.parametrize(
    "arguments",
    [
        "city",
        "7",
        '"null"',
        "[[]]",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": -Infinity}',
        '{"a": 1',
        "[" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300,
        "[" + "[]," * (MAX_VALUES + 1) + "[]]",
    ],
    ids=lambda arguments: str(arguments)[:12],
)
def test_invalid_arguments_are_wrapped_in_an_object(arguments: str) -> None:
    legacy = {"name": "f", "arguments": arguments}
    _, asked, _, asked_before_tools, _ = turns(
        HI,
        assistant(None, call("a", arguments=arguments)),
        result("a"),
        assistant(function_call=legacy),
        {"role": "function", "name": "f", "content": "fine"},
    )
    for turn in (asked, asked_before_tools):
        assert turn["content"][0]["input"] == {"INVALID_JSON": arguments}


@pytest.mark.parametrize("arguments", [{}, 7])
def test_arguments_that_are_no_text_are_refused(arguments: object) -> None:
    error = refused(HI, assistant(None, call("a", arguments=arguments)), result("a"))
    assert error.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.b c", "a_b_c"), ("", "_"), ('x" />', "x____"), ("é" * 200, "_" * 128), ("\ud800", "_")],
)
def test_name_that_no_tool_can_have_is_replaced(name: str, told: str) -> None:
    body = sent(
        HI,
        assistant(None, call("a", name)),
        result("a"),
        assistant(function_call={"name": name}),
        {"role": "function", "name": name, "content": "fine"},
    )
    assert [turn["content"][0]["name"] for turn in body["messages"][1::2]] == [told, told]
    assert [tool["name"] for tool in body["tools"]] == [told]


def test_ids_used_again_in_a_later_turn_are_replaced() -> None:
    exchange = (assistant(None, call("a"), call("b c")), result("b c"), result("a"))
    legacy = (
        assistant(function_call={"name": "f"}),
        {"role": "function", "name": "f", "content": "fine"},
    )
    told = turns(HI, *exchange, *exchange, HI, *legacy, *legacy, *exchange)
    calls = [block["id"] for turn in told[1::2] for block in turn["content"]]
    results = [
        block["tool_use_id"]
        for turn in told[2::2]
        for block in turn["content"][:2]
        if block["type"] == "tool_result"
    ]
    assert len(set(calls)) == 8
    assert calls[0] == "a"
    assert sorted(results) == sorted(calls)
    again = turns(HI, *exchange, *exchange, HI, *legacy, *legacy, *exchange, HI)
    assert [again[1], again[3], again[9]] == [told[1], told[3], told[9]]


def test_ids_that_upstream_does_not_take_are_replaced_the_same_everywhere() -> None:
    odd = ("functions.weather:0", "é" * 200, "a" * 129, "call_1")
    _, asked, answered = turns(
        HI, assistant(None, *(call(each) for each in odd)), *(result(each) for each in odd)
    )
    used = [block["id"] for block in asked["content"]]
    assert used == [block["tool_use_id"] for block in answered["content"]]
    assert len(set(used)) == len(odd)
    assert used[-1] == "call_1"
    for each in used:
        assert each.replace("_", "").replace("-", "").isalnum()
        assert each.isascii()
        assert len(each) <= 128


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([HI, result("a")], "messages[1].tool_call_id"),
        ([HI, assistant("x"), result("a")], "messages[2].tool_call_id"),
        (
            [HI, assistant(None, call("a")), result("a"), result("a")],
            "messages[3].tool_call_id",
        ),
        ([HI, assistant(None, call("a")), result("b")], "messages[2].tool_call_id"),
        ([HI, assistant(None, call("a"))], "messages[1].tool_calls[0]"),
        ([HI, assistant(None, call("a")), HI, result("a")], "messages[1].tool_calls[0]"),
        (
            [HI, assistant(None, call("a"), call("b")), result("a"), assistant("x")],
            "messages[1].tool_calls[1]",
        ),
        ([HI, assistant(None, call("a"), call("a"))], "messages[1].tool_calls[1].id"),
        (
            [HI, assistant(None, call("a")), result("a"), assistant(None, call("a"))],
            "messages[3].tool_calls[0]",
        ),
        ([HI, assistant(None, call(""))], "messages[1].tool_calls[0].id"),
        (
            [HI, assistant(None, {**call("a"), "function": {}})],
            "messages[1].tool_calls[0].function.name",
        ),
        ([HI, assistant(None, {"id": "a"})], "messages[1].tool_calls[0].function"),
        ([HI, assistant(None, {**call("a"), "type": "custom"})], "messages[1].tool_calls[0].type"),
        ([HI, assistant(tool_calls={})], "messages[1].tool_calls"),
        ([HI, assistant(tool_calls=["a"])], "messages[1].tool_calls[0]"),
        ([HI, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
    ],
)
def test_calls_and_results_belong_together(messages: list[Json], param: str) -> None:
    assert refused(*messages).param == param


def test_tools_are_made_up_where_calls_remain_without_them() -> None:
    body = sent(HI, assistant(None, call("a"), call("b")), result("a"), result("b"))
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "none"}


# Thinking that comes back

THOUGHT: Json = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
REDACTED: Json = {"type": "redacted_thinking", "data": "ZGF0YQ=="}


def test_thinking_stands_first_in_its_turn() -> None:
    _, asked, _ = turns(
        HI,
        assistant(
            "Let me see.",
            call("a"),
            reasoning_content="Hm.",
            thinking_blocks=[{**THOUGHT, "index": 0}, REDACTED],
        ),
        result("a"),
    )
    assert [block["type"] for block in asked["content"]] == [
        "thinking",
        "redacted_thinking",
        "text",
        "tool_use",
    ]
    assert asked["content"][:2] == [THOUGHT, REDACTED]


def test_thinking_goes_back_to_where_it_stood() -> None:
    _, asked, _ = turns(
        HI,
        assistant(
            "OneTwo",
            call("a"),
            call("b"),
            thinking_blocks=[
                THOUGHT,
                {**THOUGHT, "text_before": 3},
                {**THOUGHT, "text_before": 6, "calls_before": 1},
            ],
        ),
        result("a"),
        result("b"),
    )
    told = [block.get("text") or block.get("id") or block["type"] for block in asked["content"]]
    assert told == ["thinking", "One", "thinking", "Two", "a", "thinking", "b"]


@pytest.mark.parametrize(
    ("text_before", "calls_before", "kept"),
    [(99, 99, 1), (0, 0, 3), (1, 0, 3), (0, 1, 3), (10**30, 10**30, 1)],
)
def test_thinking_whose_place_is_gone_loses_nothing(
    text_before: int, calls_before: int, kept: int
) -> None:
    moved = {**THOUGHT, "text_before": text_before, "calls_before": calls_before}
    _, asked, _ = turns(
        HI, assistant(" x ", call("a"), thinking_blocks=[THOUGHT, moved, THOUGHT]), result("a")
    )
    kinds = [block["type"] for block in asked["content"]]
    assert kinds.count("thinking") == kept  # at the end of a turn, upstream takes none
    assert kinds.count("tool_use") == 1
    assert all(block["text"].strip() for block in asked["content"] if block["type"] == "text")
    assert "x" in "".join(block.get("text", "") for block in asked["content"])


@pytest.mark.parametrize(
    ("blocks", "param"),
    [
        ("Hm.", "thinking_blocks"),
        (["Hm."], "thinking_blocks[0]"),
        ([{}], "thinking_blocks[0].type"),
        ([{"type": ["thinking"]}], "thinking_blocks[0].type"),
        ([{"type": "text", "text": "a"}], "thinking_blocks[0].type"),
        ([{**THOUGHT, "signature": 7}], "thinking_blocks[0].signature"),
        ([{**THOUGHT, "text_before": -1}], "thinking_blocks[0].text_before"),
        ([{**THOUGHT, "calls_before": "1"}], "thinking_blocks[0].calls_before"),
    ],
)
def test_thinking_that_is_wrong_is_named(blocks: object, param: str) -> None:
    assert refused(HI, assistant("a", thinking_blocks=blocks)).param == f"messages[1].{param}"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "Hm."},
        {**THOUGHT, "signature": ""},
        {**THOUGHT, "signature": None},
        {**THOUGHT, "text_before": 1, "calls_before": 1},  # nothing comes after it
        {"type": "redacted_thinking", "data": ""},
    ],
)
def test_thinking_that_upstream_refuses_is_dropped_and_named(block: Json) -> None:
    for said in (assistant("a", call("a")), assistant(None, call("a"))):
        messages = (HI, {**said, "thinking_blocks": [block]}, result("a"))
        translation = translate(*messages)
        assert translation.ignored == ("messages.thinking_blocks",)
        assert json.loads(translation.body)["messages"] == turns(HI, said, result("a"))


def test_thinking_alone_is_no_turn() -> None:
    assert turns(HI, assistant(thinking_blocks=[THOUGHT, REDACTED]), user("b")) == [
        {"role": "user", "content": [{"type": "text", "text": c} for c in ("Hi", "b")]}
    ]


def test_reasoning_without_signatures_is_dropped_and_told() -> None:
    translation = translate(HI, assistant("a", reasoning_content="Hm."), HI)
    assert "Hm." not in translation.body.decode()
    assert translation.ignored == ("messages.reasoning_content",)


# Tools and the choice among them


def test_tools() -> None:
    strict = {
        "type": "function",
        "function": {"name": "clock", "strict": True, "parameters": {"properties": {}}},
    }
    bare = {"type": "function", "function": {"name": "bare", "parameters": None}}
    assert sent(tools=[TOOL, strict, bare])["tools"] == [
        {
            "name": "weather",
            "description": "Tells the weather.",
            "input_schema": TOOL["function"]["parameters"],
        },
        {
            "name": "clock",
            "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": True,
        },
        {"name": "bare", "input_schema": {"type": "object", "properties": {}}},
    ]


def strict_tool(**parameters: object) -> Json:
    function = {"name": "clock", "strict": True, "parameters": {"type": "object", **parameters}}
    return {"type": "function", "function": function}


def test_the_schema_of_a_strict_tool_is_fitted() -> None:
    (tool,) = sent(tools=[strict_tool(properties={"a": {"type": "integer", "minimum": 1}})])[
        "tools"
    ]
    assert tool["strict"] is True
    assert tool["input_schema"] == {
        "type": "object",
        "properties": {"a": {"type": "integer", "description": '{"minimum": 1}'}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("tool", "able"),
    [
        (strict_tool(properties={}), PLAIN),
        (strict_tool(properties={}, additionalProperties=True), None),
    ],
)
def test_a_tool_that_cannot_be_strict_is_a_plain_one(tool: Json, able: Capabilities | None) -> None:
    translation = translate(tools=[tool], able=able)
    (told,) = json.loads(translation.body)["tools"]
    assert "strict" not in told
    assert told["input_schema"] == tool["function"]["parameters"]
    assert translation.ignored == ("tools.strict",)


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ("", "tools"),
        (["a"], "tools[0]"),
        ([{"type": "custom", "custom": {"name": "a"}}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a.b"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a" * 129}}], "tools[0].function.name"),
        ([TOOL, {"type": "function", "function": {"name": "weather"}}], "tools"),
        (
            [{"type": "function", "function": {"name": "a", "description": 7}}],
            "tools[0].function.description",
        ),
        (
            [{"type": "function", "function": {"name": "a", "parameters": []}}],
            "tools[0].function.parameters",
        ),
        (
            [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}],
            "tools[0].function.parameters.type",
        ),
        (
            [{"type": "function", "function": {"name": "a", "strict": "yes"}}],
            "tools[0].function.strict",
        ),
    ],
)
def test_a_tool_that_is_wrong_is_named(tools: object, param: str) -> None:
    assert refused(tools=tools).param == param


def test_tool_listed_twice_in_the_same_words_is_one() -> None:
    body = sent(tools=[TOOL, OTHER, TOOL], functions=[OTHER["function"]])
    assert [tool["name"] for tool in body["tools"]] == ["weather", "clock"]


@pytest.mark.parametrize(
    ("wanted", "choice"),
    [
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "clock"}}, {"type": "tool", "name": "clock"}),
    ],
)
def test_tool_choices(wanted: object, choice: Json) -> None:
    body = sent(tools=[TOOL, OTHER], tool_choice=wanted)
    assert body["tool_choice"] == choice
    assert len(body["tools"]) == 2
    body = sent(tools=[TOOL, OTHER], tool_choice=wanted, parallel_tool_calls=True)
    assert body["tool_choice"] == choice
    body = sent(tools=[TOOL, OTHER], tool_choice=wanted, parallel_tool_calls=False)
    single = {} if wanted == "none" else {"disable_parallel_tool_use": True}
    assert body["tool_choice"] == {**choice, **single}


def test_one_call_at_a_time_without_a_choice() -> None:
    body = sent(tools=[TOOL], parallel_tool_calls=False)
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert "tool_choice" not in sent(tools=[TOOL])
    assert "tool_choice" not in sent(parallel_tool_calls=False)


@pytest.mark.parametrize(("mode", "kind"), [("auto", "auto"), ("required", "any")])
def test_allowed_tools_are_the_only_ones_that_are_sent(mode: str, kind: str) -> None:
    allowed = {"mode": mode, "tools": [OTHER]}
    body = sent(
        tools=[TOOL, OTHER], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
    )
    assert [tool["name"] for tool in body["tools"]] == ["clock"]
    assert body["tool_choice"] == {"type": kind}


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ("sometimes", "tool_choice"),
        (7, "tool_choice"),
        ({}, "tool_choice.type"),
        ({"type": "custom", "custom": {"name": "a"}}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
        ({"type": "function", "function": {"name": "stock"}}, "tool_choice.function.name"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [OTHER]}},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "stock"}}]},
            },
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
    ],
)
def test_a_choice_that_is_wrong_is_named(wanted: object, param: str) -> None:
    assert refused(tools=[TOOL, OTHER], tool_choice=wanted).param == param


def test_a_choice_needs_tools() -> None:
    assert refused(tool_choice="required").param == "tool_choice"
    assert refused(function_call={"name": "a"}).param == "function_call"
    assert "tool_choice" not in sent(tool_choice="none")
    assert "tool_choice" not in sent(tool_choice="auto", tools=[])


@pytest.mark.parametrize("value", ["yes", 1])
def test_parallel_tool_calls_is_true_or_false(value: object) -> None:
    assert refused(parallel_tool_calls=value).param == "parallel_tool_calls"


def test_a_model_that_cannot_be_forced_is_asked() -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    translation = translate(
        {"role": "system", "content": "Be."},
        HI,
        tools=[TOOL, OTHER],
        tool_choice=named,
        parallel_tool_calls=False,
        able=ALWAYS_THINKS,
    )
    body = json.loads(translation.body)
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert body["system"] == "Be.\nCall the tool clock now."
    assert translation.ignored == ("tool_choice",)
    body = sent(tools=[TOOL], tool_choice="required", able=ALWAYS_THINKS)
    assert body["system"] == "Call at least one of the tools now."
    assert sent(tools=[TOOL], tool_choice="none", able=ALWAYS_THINKS)["tool_choice"] == {
        "type": "none"
    }


# Legacy functions


def test_legacy_functions() -> None:
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    translation = translate(
        HI,
        assistant(None, function_call={"name": "weather", "arguments": "{}"}),
        {"role": "function", "name": "weather", "content": "fine"},
        assistant(None, function_call={"name": "weather", "arguments": ""}),
        {"role": "function", "name": "weather", "content": "bad"},
        functions=[function],
        function_call={"name": "weather"},
    )
    body = json.loads(translation.body)
    assert translation.legacy_functions
    assert body["tools"] == [{"name": "weather", "input_schema": function["parameters"]}]
    assert body["tool_choice"] == {
        "type": "tool",
        "name": "weather",
        "disable_parallel_tool_use": True,
    }
    used = [turn["content"][0] for turn in body["messages"][1:]]
    assert used[0]["id"] == used[1]["tool_use_id"]
    assert used[2]["id"] == used[3]["tool_use_id"]
    assert used[0]["id"] != used[2]["id"]


def test_tools_beside_functions_make_the_client_a_new_one() -> None:
    translation = translate(tools=[TOOL], functions=[{"name": "clock"}])
    assert not translation.legacy_functions
    assert [tool["name"] for tool in json.loads(translation.body)["tools"]] == ["weather", "clock"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([HI, {"role": "function", "name": "f", "content": ""}], "messages[1].name"),
        (
            [
                HI,
                assistant(None, function_call={"name": "f"}),
                {"role": "function", "name": "g", "content": ""},
            ],
            "messages[2].name",
        ),
        ([HI, assistant(None, function_call={"name": "f"}), HI], "messages"),
        ([HI, assistant(None, function_call="f")], "messages[1].function_call"),
    ],
)
def test_function_calls_and_results_belong_together(messages: list[Json], param: str) -> None:
    assert refused(*messages).param == param


# Plain fields


def test_limits_on_the_answer() -> None:
    assert sent(max_tokens=5)["max_tokens"] == 5
    assert sent(max_tokens=5, max_completion_tokens=7)["max_tokens"] == 7
    assert sent(max_tokens=None)["max_tokens"] == 32000


@pytest.mark.parametrize(
    ("default", "model", "budget", "limit"),
    [
        (None, None, None, 32_000),
        (None, 4096, None, 4096),
        (None, 64_000, None, 64_000),
        (100, None, None, 100),
        (100, 64_000, None, 100),
        (100, 50, None, 50),
        (None, None, 10_000, 32_000),
        (None, None, 32_000, 64_000),
        (100, None, 10_000, 20_000),
        (100, 15_000, 10_000, 15_000),
        (None, 64_000, 60_000, 64_000),
        (None, None, 10**4300 - 1, 10_000_000),  # twice of it is no number that JSON can have
    ],
)
def test_limit_of_request_without_one_is_above_its_budget(
    default: int | None, model: int | None, budget: int | None, limit: int
) -> None:
    fields = {} if budget is None else {"thinking": {"type": "enabled", "budget_tokens": budget}}
    translation = translate(
        options=Options(default_max_tokens=default), able=Capabilities(max_tokens=model), **fields
    )
    assert json.loads(translation.body)["max_tokens"] == limit


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, [], 1e999])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_a_whole_number(name: str, value: object) -> None:
    document = {"model": "m", "messages": [HI], name: value}
    with pytest.raises(InvalidRequest) as caught:
        chat_completions.translate_request(document)
    assert caught.value.param == name


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
def test_stop(stop: object, sequences: object, ignored: tuple[str, ...]) -> None:
    translation = translate(stop=stop)
    assert json.loads(translation.body).get("stop_sequences") == sequences
    assert translation.ignored == ignored


def test_stop_that_is_wrong() -> None:
    assert refused(stop=7).param == "stop"
    assert refused(stop=["a", 7]).param == "stop[1]"


def test_sampling() -> None:
    translation = translate(temperature=0, top_k=5)
    body = json.loads(translation.body)
    assert (body["temperature"], body["top_k"]) == (0, 5)
    assert translation.samples
    assert not translate(temperature=None, top_p=None).samples


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept", "ignored"),
    [
        (1, None, {}, ()),
        (1.0, 1.0, {}, ()),
        (1.7, 1, {}, ()),
        (None, 1, {}, ()),
        (1, 0.5, {"top_p": 0.5}, ()),
        (0.5, 1, {"temperature": 0.5}, ()),
        (0.5, 0.5, {"temperature": 0.5}, ("top_p",)),
        (0, 0, {"temperature": 0}, ("top_p",)),
    ],
)
def test_temperature_and_top_p_do_not_go_together(
    temperature: float | None, top_p: float | None, kept: Json, ignored: tuple[str, ...]
) -> None:
    translation = translate(temperature=temperature, top_p=top_p)
    body = json.loads(translation.body)
    assert {name: body[name] for name in ("temperature", "top_p") if name in body} == kept
    assert (translation.samples, translation.ignored) == (bool(kept), ignored)


def test_sampling_is_dropped_and_told_where_it_is_not_wanted() -> None:
    for translation in (
        translate(temperature=0, top_p=0.5, top_k=1, options=Options(drop_sampling=True)),
        translate(temperature=0, top_p=0.5, top_k=1, reasoning_effort="low"),
        translate(temperature=0, top_p=0.5, top_k=1, thinking={"type": "adaptive"}),
    ):
        assert not translation.samples
        assert not {"temperature", "top_p", "top_k"} & json.loads(translation.body).keys()
        assert translation.ignored == ("temperature", "top_p", "top_k")
    assert translate(temperature=0, thinking={"type": "disabled"}).samples


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 1.1),
        ("top_p", []),
        ("top_k", -1),
        ("top_k", 0.5),
        ("n", 0),
        ("n", "1"),
        ("logprobs", "no"),
        ("modalities", "text"),
        ("stream", "yes"),
        ("user", 7),
        ("safety_identifier", 7),
        ("metadata", 7),
        ("prompt_cache_options", 7),
        ("service_tier", 7),
        ("thinking", "on"),
        ("output_config", []),
        ("reasoning_effort", "most"),
        ("reasoning_effort", 7),
        ("response_format", "json"),
        ("model", 7),
        ("model", ""),
    ],
)
def test_a_field_of_the_wrong_type_is_named(name: str, value: object) -> None:
    fields: Json = {name: value}
    assert refused(**fields).param == name


@pytest.mark.parametrize(
    ("fields", "user_id"),
    [
        ({"user": "a"}, "a"),
        ({"user": "a", "metadata": {"user_id": "b"}, "safety_identifier": "c"}, "a"),
        ({"metadata": {"user_id": "b"}, "safety_identifier": "c"}, "b"),
        ({"safety_identifier": "c"}, "c"),
        ({"user": "", "safety_identifier": "c"}, "c"),
        ({"user": "a" * 256}, "a" * 256),
        ({"user": "3f0c7a0e-1c1d-4f7e-9a4e-123456789012"}, "3f0c7a0e-1c1d-4f7e-9a4e-123456789012"),
        ({"user": "123456"}, "123456"),
    ],
)
def test_users(fields: Json, user_id: str) -> None:
    assert sent(**fields)["metadata"] == {"user_id": user_id}


@pytest.mark.parametrize(
    "user_id",
    [
        "a" * 257,
        "é" * 1_000_000,
        "ann@example.com",
        "app:ann.b+c@mail.example.co.uk",
        "+1 (555) 010-9999",
        "5550109999",
        "a@b.c\ud800",
    ],
    ids=lambda user_id: ascii(user_id[:20]),
)
@pytest.mark.parametrize("name", ["user", "safety_identifier", "metadata"])
def test_user_that_upstream_refuses_is_sent_as_digest(name: str, user_id: str) -> None:
    fields: Json = {name: {"user_id": user_id} if name == "metadata" else user_id}
    digest = hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()
    translation = translate(**fields)
    assert json.loads(translation.body)["metadata"] == {"user_id": digest}
    assert translation.ignored == ()


def test_other_metadata_is_told() -> None:
    translation = translate(metadata={"user_id": "b", "team": "x"})
    assert translation.ignored == ("metadata",)
    assert json.loads(translation.body)["metadata"] == {"user_id": "b"}
    assert translate(metadata={}).ignored == ()


@pytest.mark.parametrize(
    ("tier", "told", "ignored"),
    [
        ("standard_only", "standard_only", ()),
        ("auto", None, ()),
        ("default", None, ()),
        ("flex", None, ("service_tier",)),
        ("priority", None, ("service_tier",)),
    ],
)
def test_service_tiers(tier: str, told: str | None, ignored: tuple[str, ...]) -> None:
    translation = translate(service_tier=tier)
    assert json.loads(translation.body).get("service_tier") == told
    assert translation.ignored == ignored


def test_streams() -> None:
    plain = translate()
    assert (plain.stream, plain.include_usage) == (False, False)
    assert "stream" not in json.loads(plain.body)
    streamed = translate(stream=True)
    assert json.loads(streamed.body)["stream"] is True
    assert (streamed.stream, streamed.include_usage) == (True, False)
    assert translate(stream=True, stream_options={"include_usage": True}).include_usage
    assert not translate(stream=True, stream_options={"include_usage": None}).include_usage
    assert translate(stream=False, stream_options=None).stream is False
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    error = refused(stream=True, stream_options={"include_usage": "yes"})
    assert error.param == "stream_options.include_usage"


def test_model_names() -> None:
    options = Options(models={"gpt-5": "claude-opus-5-5", "*": "claude-sonnet-5-5"})
    assert options.model("gpt-5") == "claude-opus-5-5"
    assert options.model("gpt-4.1-mini") == "claude-sonnet-5-5"
    assert options.model("claude-haiku-4-5") == "claude-haiku-4-5"
    assert Options().model("gpt-5") == "gpt-5"
    named = chat_completions.translate_request(
        {"model": "gpt-5", "messages": [HI]}, options=options
    )
    assert json.loads(named.body)["model"] == "claude-opus-5-5"


# Reasoning


@pytest.mark.parametrize(
    ("able", "effort", "told"),
    [
        (
            None,
            "high",
            {
                "output_config": {"effort": "high"},
                "thinking": {"type": "adaptive", "display": "summarized"},
            },
        ),
        (None, "none", {"output_config": {"effort": "low"}}),
        (
            ALL_CAN,
            "minimal",
            {
                "output_config": {"effort": "low"},
                "thinking": {"type": "adaptive", "display": "summarized"},
            },
        ),
        (ALL_CAN, "none", {"thinking": {"type": "disabled"}}),
        (BETWEEN_TOOLS, "none", {"thinking": {"type": "between_tools"}}),
        (ALWAYS_THINKS, "none", {"output_config": {"effort": "low"}}),
        (
            ALWAYS_THINKS,
            "max",
            {
                "output_config": {"effort": "high"},
                "thinking": {"type": "adaptive", "display": "summarized"},
            },
        ),
        (WITH_BUDGET, "medium", {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
        (WITH_BUDGET, "none", {"thinking": {"type": "disabled"}}),
    ],
)
def test_reasoning_efforts(able: Capabilities | None, effort: str, told: Json) -> None:
    translation = translate(reasoning_effort=effort, able=able)
    body = json.loads(translation.body)
    assert {key: body[key] for key in ("output_config", "thinking") if key in body} == told
    assert translation.ignored == ()


def test_a_budget_leaves_half_of_the_answer() -> None:
    body = sent(reasoning_effort="max", max_tokens=4000, able=WITH_BUDGET)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2000}


def test_reasoning_that_is_not_possible_is_told() -> None:
    for translation in (
        translate(reasoning_effort="high", able=PLAIN),
        translate(reasoning_effort="high", max_tokens=2000, able=WITH_BUDGET),
    ):
        assert not {"output_config", "thinking"} & json.loads(translation.body).keys()
        assert translation.ignored == ("reasoning_effort",)


def test_no_budget_in_a_turn_of_tools_that_came_without_thinking() -> None:
    without = (HI, assistant(None, call("a")), result("a"))
    translation = translate(*without, reasoning_effort="high", able=WITH_BUDGET)
    assert "thinking" not in json.loads(translation.body)
    assert translation.ignored == ("reasoning_effort",)
    with_it = (HI, assistant(None, call("a"), thinking_blocks=[THOUGHT]), result("a"))
    assert (
        sent(*with_it, reasoning_effort="high", able=WITH_BUDGET)["thinking"]["type"] == "enabled"
    )
    over = (*without, assistant("Done."), HI)
    assert sent(*over, reasoning_effort="high", able=WITH_BUDGET)["thinking"]["type"] == "enabled"


@pytest.mark.parametrize(
    "wanted", ["required", {"type": "function", "function": {"name": "clock"}}]
)
def test_a_call_that_is_forced_comes_without_thinking(wanted: object) -> None:
    body = sent(tools=[OTHER], tool_choice=wanted, reasoning_effort="high")
    assert "thinking" not in body
    assert body["output_config"] == {"effort": "high"}


def test_the_clients_own_thinking_goes_first() -> None:
    own = {"type": "enabled", "budget_tokens": 2000}
    body = sent(thinking=own, reasoning_effort="high", output_config={"effort": "max"})
    assert body["thinking"] == own
    assert body["output_config"] == {"effort": "max"}


def test_capabilities_are_read_from_the_models_entry() -> None:
    yes, no = {"supported": True}, {"supported": False}
    told = {
        "id": "claude-test",
        "max_tokens": 128000,
        "capabilities": {
            "structured_outputs": yes,
            "effort": {"supported": True, "low": yes, "medium": yes, "max": no, "xhigh": None},
            "thinking": {
                "supported": True,
                "types": {"adaptive": yes, "enabled": no, "disabled": no, "between_tools": yes},
            },
        },
    }
    assert Capabilities.of_model(told) == Capabilities(
        max_tokens=128000,
        structured_outputs=True,
        forced_tools=False,
        thinking=frozenset({"adaptive", "between_tools"}),
        efforts=("low", "medium"),
    )
    can_stop = {"capabilities": {"thinking": {"types": {"adaptive": yes, "disabled": yes}}}}
    assert Capabilities.of_model(can_stop).forced_tools
    assert Capabilities.of_model({"capabilities": {"effort": no}}) == PLAIN
    for unknown in ({}, {"capabilities": None}, {"max_tokens": "many", "capabilities": []}):
        assert Capabilities.of_model(unknown) == Capabilities()


# Formats


def schema_format(schema: Json, **more: object) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


def test_format_of_an_unfit_schema_is_asked_for_in_the_prompt() -> None:
    schema: Json = {"type": "object", "additionalProperties": True}
    translation = translate(response_format=schema_format(schema))
    body = json.loads(translation.body)
    assert "output_config" not in body
    assert json.dumps(schema, separators=(",", ":")) in body["system"]
    assert translation.ignored == ()
    strict = translate(response_format=schema_format(schema, strict=True))
    assert strict.ignored == ("response_format.json_schema.strict",)


def test_formats_for_a_model_without_structured_output() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    body = sent(
        {"role": "system", "content": "Be."},
        HI,
        response_format=schema_format(schema),
        able=PLAIN,
    )
    assert body["system"].startswith("Be.\n")
    assert json.dumps(schema, separators=(",", ":")) in body["system"]
    assert "output_config" not in body


def test_other_formats() -> None:
    assert "JSON" in sent(response_format={"type": "json_object"})["system"]
    assert "system" not in sent(response_format={"type": "text"})
    assert "system" not in sent(response_format=None)


def test_effort_and_format_share_their_place_with_the_clients_own() -> None:
    schema = {"type": "object", "properties": {}}
    body = sent(
        response_format=schema_format(schema),
        reasoning_effort="low",
        output_config={"task_budget": {"type": "tokens", "total": 9}},
    )
    assert body["output_config"].keys() == {"format", "effort", "task_budget"}


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "a"}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_format_that_is_wrong_is_named(response_format: Json, param: str) -> None:
    assert refused(response_format=response_format).param == param


# What is dropped


def test_what_is_dropped_is_told_once_each() -> None:
    translation = translate(
        {**HI, "name": "a"}, {**HI, "name": "b"}, seed=7, frequency_penalty=0.5, new_field="x"
    )
    assert translation.ignored == ("seed", "frequency_penalty", "new_field", "messages.name")
    assert json.loads(translation.body).keys() == {"model", "max_tokens", "messages"}


def test_a_field_that_asks_for_what_holds_anyway_is_not_worth_a_word() -> None:
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
    # these ask for something
    assert translate(seed=0).ignored == ("seed",)
    assert translate(web_search_options={}).ignored == ("web_search_options",)


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "é", "a" * 65, "a, b", "\ud800", ""])
def test_a_field_whose_name_does_not_fit_a_header_is_told_as_unknown(name: str) -> None:
    fields: Json = {name: 1}
    assert translate(**fields).ignored == ("unknown",)


def test_only_so_much_is_told() -> None:
    fields: Json = {f"f{n}": 1 for n in range(1000)}
    assert len(translate(**fields).ignored) == 33


def test_strict_refuses_what_would_be_dropped() -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(seed=7, options=Options(strict=True))
    assert caught.value.param == "seed"
    assert "CHAT_STRICT" in caught.value.message
    translate(temperature=1, stop="x", options=Options(strict=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"modalities": ["text", "audio"]},
    ],
)
def test_what_is_impossible_is_refused(fields: Json) -> None:
    assert refused(**fields).param == next(iter(fields))


# Hostile JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"null",
        b"\xff",
        b'{"model": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1,}',
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "\x01"}',
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        chat_completions.parse(body)


def test_json_up_to_the_bounds_is_read() -> None:
    deep = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert chat_completions.parse(deep)
    wide = b'{"a":[' + b"1," * (MAX_VALUES - 10) + b"1]}"
    assert len(chat_completions.parse(wide)["a"]) == MAX_VALUES - 9
    assert chat_completions.parse(b'{"a": 1, "a": 2}') == {"a": 2}


def test_signs_within_strings_do_not_count() -> None:
    text = '[{,"\\' * MAX_VALUES
    body = json.dumps({"a": text}).encode()
    assert chat_completions.parse(body) == {"a": text}


def test_json_of_too_many_escapes_is_refused() -> None:
    most = b'{"a":"' + b'\\"' * MAX_BACKSLASHES + b'"}'
    assert chat_completions.parse(most) == {"a": '"' * MAX_BACKSLASHES}
    with pytest.raises(InvalidRequest, match="backslashes"):
        chat_completions.parse(most[:-2] + b'\\t"}')


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"[]," * 10_000_000 + b"[]]}",
        b'{"a":[' + b'"",' * 10_000_000 + b'""]}',
        b'{"a":[' + b'"\\"",' * 6_000_000 + b'""]}',
        b'{"a":[' + b"{}," * 10_000_000 + b"{}]}",
        b'{"a":[' + b"1.5," * 8_000_000 + b"1]}",
        b'{"a":[' + b'"ab",' * 6_000_000 + b'""]}',
    ],
    ids=lambda body: body[6:16].decode(),
)
def test_wide_json_is_refused_without_the_memory_that_it_would_take(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="values"):
        chat_completions.parse(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * len(body)


def test_half_a_surrogate_pair_is_replaced() -> None:
    document = chat_completions.parse(
        b'{"model": "m", "messages": [{"role": "user", "content": "a\\ud83d \\ud83d\\ude00"},'
        b'{"role": "assistant", "tool_calls": [{"id": "\\udc00", "function":'
        b'{"name": "f", "arguments": "{\\"\\\\ud800\\": 1}"}}]},'
        b'{"role": "tool", "tool_call_id": "\\udc00", "content": "\\udfff"}]}'
    )
    first, asked, answered = json.loads(chat_completions.translate_request(document).body)[
        "messages"
    ]
    assert first["content"] == "a\ufffd 😀"
    assert asked["content"][0]["input"] == {"\ufffd": 1}
    assert answered["content"][0]["content"] == "\ufffd"


def test_a_number_over_all_bounds_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="too large"):
        chat_completions.parse(
            b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "diagnostics": 1e999}'
        )


def test_messages_quote_little_of_the_client() -> None:
    long = "x" * 100_000
    for messages in (
        (HI, result(long)),
        (HI, assistant(None, call(long))),
        (HI, assistant(function_call={"name": long})),
    ):
        assert len(refused(*messages).message) < 300

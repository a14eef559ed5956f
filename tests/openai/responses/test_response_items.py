"""The output of a response: the upstream's blocks, and the items and events they become."""

from __future__ import annotations

import json

import pytest
from response_events import (
    CREATED,
    ECHO,
    REDACTED,
    between,
    called,
    carried,
    output_of,
    read,
    response_of,
)
from upstream_events import (
    END,
    PING,
    START,
    STOP,
    Json,
    closed,
    delta,
    fragment,
    opened,
    stopped,
    text,
    tool,
)

from tornadoproxy.openai.responses.translation import Origin, ToolKind

# -- transcripts


def test_text_becomes_one_message_between_begin_and_end() -> None:
    events = read(START, opened(0), PING, text(0, "Hello"), text(0, " ä😀\n"), closed(0), *END)
    response = {
        "id": "resp_01AbC",
        "created_at": CREATED,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": "claude-test",
        "output": [],
        "usage": None,
        **ECHO,
    }
    begun = [
        {"type": f"response.{name}", "response": response} for name in ("created", "in_progress")
    ]
    assert [{**each, "sequence_number": number} for number, each in enumerate(begun)] == events[:2]
    place = {"item_id": "msg_01AbC0", "output_index": 0}
    item = {"id": "msg_01AbC0", "type": "message", "role": "assistant"}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = {**empty, "text": "Hello ä😀\n"}
    done = {**item, "status": "completed", "content": [whole]}
    part = {**place, "content_index": 0}
    said = {"type": "response.output_text.delta", **part, "logprobs": []}
    assert between(events) == [
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **part, "part": empty},
        {**said, "delta": "Hello"},
        {**said, "delta": " ä😀\n"},
        {"type": "response.output_text.done", **part, "text": "Hello ä😀\n", "logprobs": []},
        {"type": "response.content_part.done", **part, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]
    last = events[-1]["response"]
    assert last["completed_at"] >= CREATED
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    }
    ended = {"status": "completed", "completed_at": last["completed_at"], "usage": usage}
    assert last == {**response, **ended, "output": [done]}


def test_calls_are_streamed_and_done_before_what_follows() -> None:
    events = read(
        *(START, tool(0, "a"), fragment(0, '{"city":'), fragment(0, '"Bern"}'), closed(0)),
        *(tool(1, "b", city="Biel"), closed(1), tool(2, "c"), stopped("tool_use"), STOP),
    )
    name = "response.function_call_arguments"
    told = [
        (each["type"], each["output_index"], each.get("delta", each.get("arguments")))
        for each in between(events)
        if "item" not in each
    ]
    assert told == [
        *((f"{name}.delta", 0, '{"city":'), (f"{name}.delta", 0, '"Bern"}')),
        *((f"{name}.done", 0, '{"city":"Bern"}'), (f"{name}.delta", 1, '{"city":"Biel"}')),
        *((f"{name}.done", 1, '{"city":"Biel"}'), (f"{name}.delta", 2, "{}")),
        (f"{name}.done", 2, "{}"),
    ]
    assert events[-1]["response"]["output"] == [
        {
            "type": "function_call",
            "id": f"fc_01AbC{number}",
            "call_id": call_id,
            "name": "weather",
            "status": "completed",
            "arguments": arguments,
        }
        for number, (call_id, arguments) in enumerate(
            [("a", '{"city":"Bern"}'), ("b", '{"city":"Biel"}'), ("c", "{}")]
        )
    ]


def test_thinking_is_shown_and_carried() -> None:
    events = read(
        *(START, opened(0, "thinking", thinking="", signature="")),
        *(delta(0, "thinking_delta", thinking="H"), delta(0, "thinking_delta", thinking="m")),
        *(delta(0, "signature_delta", signature="c2ln"), closed(0)),
        *(opened(1, "redacted_thinking", data="ZGF0YQ=="), closed(1)),
        opened(2, "thinking", thinking="", signature="b21pdHRlZA=="),
        *(closed(2), opened(3), text(3, "So."), closed(3), *END),
    )
    *thoughts, _ = events[-1]["response"]["output"]
    assert [each["summary"] for each in thoughts] == [
        [{"type": "summary_text", "text": "Hm"}],
        [],
        [],
    ]
    assert [carried(each) for each in thoughts] == [
        [{"type": "thinking", "thinking": "Hm", "signature": "c2ln"}],
        [REDACTED],
        [{"type": "thinking", "thinking": "", "signature": "b21pdHRlZA=="}],
    ]
    kinds = [each["type"].partition(".")[2] for each in between(events)]
    text_delta = "reasoning_summary_text.delta"
    assert kinds[:9] == [
        *("output_item.added", "reasoning_summary_part.added", text_delta, text_delta),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "output_item.done"),
    ]


def test_thinking_without_signature_is_not_carried() -> None:
    (thought,) = output_of(
        START, opened(0, "thinking", thinking="Hm"), closed(0), stopped("max_tokens"), STOP
    )
    assert thought == {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}


def test_text_and_thinking_keep_their_order_around_calls() -> None:
    output = output_of(
        *(START, opened(0, "thinking", thinking="a", signature="c2ln"), closed(0)),
        *(opened(1), text(1, "One"), closed(1), opened(2, text=" two"), closed(2)),
        *(tool(3, "x"), closed(3), opened(4), closed(4), opened(5, **REDACTED), closed(5)),
        *(opened(6, text="Three"), closed(6), tool(7, "y"), closed(7), stopped("tool_use"), STOP),
    )
    texts = [part["text"] for item in output for part in item.get("content", [])]
    assert texts == ["One two", "Three"]
    assert [item["type"] for item in output] == [
        *("reasoning", "message", "function_call", "reasoning", "message", "function_call"),
    ]


# -- the client's tools


ORIGINS = {
    "patch": Origin(ToolKind.CUSTOM, "apply_patch"),
    "mcp__demo__add": Origin(ToolKind.FUNCTION, "add", "mcp__demo"),
    "exec": Origin(ToolKind.CUSTOM, "exec", "functions"),
    "find": Origin(ToolKind.TOOL_SEARCH, "tool_search"),
    "sh": Origin(ToolKind.SHELL, "shell"),
    "local": Origin(ToolKind.LOCAL_SHELL, "local_shell"),
    "edit": Origin(ToolKind.APPLY_PATCH, "apply_patch"),
}


def test_input_of_a_custom_tool_is_streamed_as_text() -> None:
    written = json.dumps({"input": "*** ä\n😀\\"})
    events = read(
        *(START, *called(0, "patch", *written), *called(1, "exec")),
        *(stopped("tool_use"), STOP),
        origins=ORIGINS,
    )
    name = "response.custom_tool_call_input"
    deltas = [each["delta"] for each in events if each["type"] == f"{name}.delta"]
    assert deltas == [*"*** ä\n😀\\"]
    assert [each["input"] for each in events if each["type"] == f"{name}.done"] == [
        "*** ä\n😀\\",
        "",
    ]
    first, second = events[-1]["response"]["output"]
    assert first == {
        "type": "custom_tool_call",
        "id": "ctc_01AbC0",
        "call_id": "toolu_0",
        "name": "apply_patch",
        "status": "completed",
        "input": "*** ä\n😀\\",
    }
    assert (second["name"], second["namespace"]) == ("exec", "functions")


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        (
            "mcp__demo__add",
            '{"a": 1}',
            {"type": "function_call", "name": "add", "namespace": "mcp__demo"}
            | {"arguments": '{"a": 1}'},
        ),
        (
            "find",
            '{"query": "x"}',
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "x"}},
        ),
        ("sh", '{"commands": ["ls"]}', {"type": "shell_call", "action": {"commands": ["ls"]}}),
        (
            "local",
            '{"command": ["ls"]}',
            {"type": "local_shell_call"}
            | {"action": {"type": "exec", "command": ["ls"], "env": {}}},
        ),
        (
            "edit",
            '{"type": "delete_file", "path": "a"}',
            {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}},
        ),
    ],
)
def test_call_has_the_form_of_the_clients_tool(name: str, written: str, expected: Json) -> None:
    half = len(written) // 2
    fragments = (written[:half], written[half:])
    events = (*called(0, name, *fragments), stopped("tool_use"), STOP)
    (item,) = output_of(START, *events, origins=ORIGINS)
    assert item == {"call_id": "toolu_0", "status": "completed", **expected}


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
@pytest.mark.parametrize("name", ["weather", "patch", "sh"])
@pytest.mark.parametrize("has_end", [True, False])
def test_cut_call_is_never_done(reason: str, name: str, has_end: bool) -> None:
    cut = [*called(1, name, '{"input": "rm -rf /t')]
    events = read(
        *(START, *called(0, name, "{}"), *cut[: None if has_end else -1]),
        *(stopped(reason), STOP),
        origins=ORIGINS,
    )
    *_, last = events
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    calls = [item["call_id"] for item in done if "call_id" in item]
    assert calls == ["toolu_0"]
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"] == done


# -- web search


def search(index: int, search_id: str, query: str) -> list[Json]:
    return [
        opened(index, "server_tool_use", id=search_id, name="web_search", input={}),
        *(fragment(index, each) for each in json.dumps({"query": query})),
        closed(index),
    ]


def found(index: int, search_id: str, content: object) -> list[Json]:
    block = opened(index, "web_search_tool_result", tool_use_id=search_id, content=content)
    return [block, closed(index)]


def page(url: str) -> Json:
    secret = {"encrypted_content": "c2Vj", "page_age": None}
    return {"type": "web_search_result", "url": url, "title": "T", **secret}


def used(search_id: str, query: str) -> Json:
    fields = {"id": search_id, "name": "web_search", "input": {"query": query}}
    return {"type": "server_tool_use", **fields}


def result(search_id: str, content: object) -> Json:
    return {"type": "web_search_tool_result", "tool_use_id": search_id, "content": content}


PAGES = [page("https://a.example/"), page("https://b.example/")]
NO_MORE = {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}


def searched(query: str, status: str = "completed", *urls: str) -> Json:
    action: Json = {"type": "search", "query": query, "queries": [query]}
    if status == "completed":
        action["sources"] = [{"type": "url", "url": url} for url in urls]
    return {"type": "web_search_call", "status": status, "action": action}


def test_web_search_is_shown_and_carried() -> None:
    events = read(
        *(START, opened(0, text="I search."), closed(0)),
        *(*search(1, "srv_1", "x"), *found(2, "srv_1", PAGES), *END),
    )
    _, shown, hidden = events[-1]["response"]["output"]
    urls = [each["url"] for each in PAGES]
    assert shown == {"id": "ws_01AbC1", **searched("x", "completed", *urls)}
    assert hidden["summary"] == []
    assert carried(hidden) == [used("srv_1", "x"), result("srv_1", PAGES)]
    steps = [each for each in between(events) if "web_search_call" in each["type"]]
    assert steps == [
        {"type": f"response.web_search_call.{step}", "item_id": "ws_01AbC1", "output_index": 1}
        for step in ("in_progress", "searching", "completed")
    ]


def test_parallel_searches_are_carried_in_their_order() -> None:
    *shown, hidden = output_of(
        *(START, *search(0, "srv_1", "x"), *search(1, "srv_2", "y")),
        *(*found(2, "srv_2", NO_MORE), *found(3, "srv_1", PAGES[:1]), *END),
    )
    assert shown == [searched("x", "completed", PAGES[0]["url"]), searched("y", "failed")]
    assert carried(hidden) == [
        *(used("srv_1", "x"), used("srv_2", "y")),
        *(result("srv_2", NO_MORE), result("srv_1", PAGES[:1])),
    ]


@pytest.mark.parametrize(("reason", "is_carried"), [("pause_turn", True), ("max_tokens", False)])
def test_search_without_result_is_carried_if_it_goes_on(reason: str, is_carried: bool) -> None:
    response = response_of(START, *search(0, "srv_1", "x"), stopped(reason), STOP)
    assert response["status"] == ("completed" if is_carried else "incomplete")
    shown, *hidden = response["output"]
    assert shown["status"] == "incomplete"
    assert [carried(each) for each in hidden] == ([[used("srv_1", "x")]] if is_carried else [])


def test_result_of_a_search_that_paused_before_is_carried() -> None:
    late = found(0, "srv_0", PAGES[:1])
    hidden, message = output_of(START, *late, opened(1, text="So."), closed(1), *END)
    assert carried(hidden) == [result("srv_0", PAGES[:1])]
    assert message["type"] == "message"


def cited(url: str | None) -> Json:
    fields = {"url": url, "title": None, "encrypted_index": "x", "cited_text": "y"}
    return {"type": "web_search_result_location", **fields}


FILE = {"type": "char_location", "file_id": "file_1", "document_index": 2, "document_title": "A"}


def test_citations_annotate_the_text_of_their_block() -> None:
    events = read(
        *(START, opened(0, citations=[]), text(0, "😀 first"), closed(0)),
        *(opened(1), delta(1, "citations_delta", citation=cited("https://a.example/"))),
        *(text(1, "sec"), text(1, "ond"), delta(1, "citations_delta", citation=FILE), closed(1)),
        opened(2, text="third", citations=[cited("https://b.example/")]),
        *(closed(2), opened(3), delta(3, "citations_delta", citation={"type": "future"})),
        *(delta(3, "citations_delta", citation=cited(None)), closed(3), *END),
    )
    (message,) = events[-1]["response"]["output"]
    (part,) = message["content"]
    assert part["text"] == "😀 firstsecondthird"
    assert part["annotations"] == [
        {
            "type": "url_citation",
            "url": "https://a.example/",
            "title": "",
            "start_index": 7,
            "end_index": 13,
        },
        {"type": "file_citation", "file_id": "file_1", "filename": "A", "index": 2},
        {
            "type": "url_citation",
            "url": "https://b.example/",
            "title": "",
            "start_index": 13,
            "end_index": 18,
        },
    ]
    added = [each for each in events if each["type"] == "response.output_text.annotation.added"]
    assert [each["annotation"] for each in added] == part["annotations"]
    assert [each["annotation_index"] for each in added] == [0, 1, 2]

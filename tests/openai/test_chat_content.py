"""Content parts of chat completions: images, files and cache marks."""

from __future__ import annotations

import base64
import json
import tracemalloc

import pytest
from chat_requests import (
    HI,
    TOOL,
    Json,
    assistant,
    call,
    image,
    result,
    sent,
    system,
    text,
    translate,
    turns,
    user,
)

from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Options


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
PDF = encoded(b"%PDF-1.7 and so on")


def source(media_type: str, data: str) -> Json:
    return {"type": "base64", "media_type": media_type, "data": data}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/b.png", {"type": "url", "url": "https://a.example/b.png"}),
        ("HTTP://a.example/", {"type": "url", "url": "HTTP://a.example/"}),
        (f"data:image/png;base64,{PNG}", source("image/png", PNG)),
        ("DATA:image/GIF;charset=x;BASE64,AAAA", source("image/gif", "AAAA")),
        # clients name types wrongly, which the upstream refuses
        (f"data:image/jpeg;base64,{PNG}", source("image/png", PNG)),
        ("data:image/jpg;base64,/9j/4AAQ", source("image/jpeg", "/9j/4AAQ")),
        (f"data:;base64,{PNG}", source("image/png", PNG)),
    ],
)
def test_image_is_translated(url: str, expected: Json) -> None:
    (turn,) = turns(user([image(url), text("What is it?")]))
    assert turn["content"] == [{"type": "image", "source": expected}, text("What is it?")]
    (turn,) = turns(user([{"type": "image_url", "image_url": url}]))
    assert turn["content"] == [{"type": "image", "source": expected}]


def test_detail_of_an_image_is_dropped_and_named() -> None:
    url = "https://a.example/"
    assert translate(user([image(url, detail="high")])).ignored == ("image_url.detail",)
    assert translate(user([image(url, detail="auto")])).ignored == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(
            ({"file_data": beginning + PDF}, source("application/pdf", PDF))
            for beginning in (
                *("", "data:application/pdf;base64,"),
                "data:application/octet-stream;base64,",
            )
        ),
        *(
            (
                {"file_data": beginning + encoded("ä,{}".encode())},
                {"type": "text", "media_type": "text/plain", "data": "ä,{}"},
            )
            for beginning in ("", "data:text/csv;base64,", "data:application/json;base64,")
        ),
        ({"file_id": "file_01"}, {"type": "file", "file_id": "file_01"}),
    ],
)
def test_file_becomes_a_document(fields: dict[str, str], expected: Json) -> None:
    for name, title in ((None, {}), ("a" * 600, {"title": "a" * 500}), ("", {})):
        (turn,) = turns(user([{"type": "file", "file": {**fields, "filename": name}}]))
        assert turn["content"] == [{"type": "document", "source": expected, **title}]


def test_large_image_is_copied_a_few_times_at_most() -> None:
    data = "A" * 8_000_000
    document = {"model": "m", "messages": [user([image(f"data:image/png;base64,{data}")])]}
    tracemalloc.start()
    body = chat_completions.translate_request(document).body
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.encode() in body
    assert peak < 5 * len(data)


# -- prompt caching

FIVE_MINUTES: Json = {"type": "ephemeral"}
ONE_HOUR: Json = {"type": "ephemeral", "ttl": "1h"}
AGAIN = (HI, assistant("Hello"), HI)
MARK = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}


def test_cache_marks_of_parts_messages_and_tools_go_upstream() -> None:
    mark: Json = {"cache_control": ONE_HOUR}
    clock = {"type": "function", "function": {"name": "clock", **mark}}
    body = sent(
        user([{**text("a"), **mark}]),
        assistant("b", **mark),
        {**user("c"), **BREAKPOINT},
        tools=[{**TOOL, **mark}, clock],
        **mark,
    )
    marked = [turn["content"][0]["cache_control"] for turn in body["messages"]]
    marked += [tool["cache_control"] for tool in body["tools"]]
    assert [*marked, body["cache_control"]] == [ONE_HOUR] * 6


@pytest.mark.parametrize(
    ("ttl", "ignored"), [("30m", ()), ("12h", ("prompt_cache_breakpoint.ttl",))]
)
def test_breakpoint_becomes_one_hour(ttl: str, ignored: tuple[str, ...]) -> None:
    marked = {**text("a"), "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}
    translation = translate(user([marked]))
    (turn,) = json.loads(translation.body)["messages"]
    assert turn["content"][0]["cache_control"] == ONE_HOUR
    assert translation.ignored == ignored


@pytest.mark.parametrize(
    ("messages", "fields", "auto", "always"),
    [
        ((), {}, None, FIVE_MINUTES),
        ((system("Be."), HI), {}, None, FIVE_MINUTES),
        ((), {"tools": [TOOL]}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"cache_control": None}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"prompt_cache_retention": "in_memory"}, FIVE_MINUTES, FIVE_MINUTES),
        ((), {"prompt_cache_retention": "24h"}, ONE_HOUR, ONE_HOUR),
        (AGAIN, {"prompt_cache_options": {"ttl": "30m"}}, ONE_HOUR, ONE_HOUR),
        (AGAIN, {"prompt_cache_options": {"mode": "implicit"}}, FIVE_MINUTES, FIVE_MINUTES),
        (AGAIN, {"prompt_cache_options": {"mode": "explicit"}}, None, None),
    ],
)
def test_request_without_marks_is_cached_by_mode(
    messages: tuple[Json, ...], fields: Json, auto: Json | None, always: Json | None
) -> None:
    for cache, wanted in (("auto", auto), ("always", always), ("off", None)):
        translation = translate(*messages, options=Options(cache=cache), **fields)
        assert json.loads(translation.body).get("cache_control") == wanted
        lifetime = any(each in str(fields) for each in ("24h", "30m"))
        assert bool(translation.ignored) == (wanted is None and lifetime)


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        (AGAIN, MARK),
        (AGAIN, {"tools": [{**TOOL, **MARK}]}),
        (({**HI, **MARK}, assistant("Hello"), HI), {}),
        ((system("Be.", **MARK), *AGAIN), {}),
        ((*AGAIN[:2], user([{**text("a"), **MARK}])), {}),
        ((*AGAIN[:2], {**HI, **BREAKPOINT}), {}),
        ((HI, assistant(None, call("a")), {**result("a"), **MARK}), {}),
        ((HI, assistant(None, call("a")), result("a", [{**text("a"), **MARK}])), {}),
    ],
)
def test_request_with_marks_is_not_cached_as_a_whole(
    messages: tuple[Json, ...], fields: Json
) -> None:
    fields = {**fields, "prompt_cache_retention": "24h"}
    translation = translate(*messages, options=Options(cache="always"), **fields)
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

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


PNG = "iVBORw0KGgoAAAAN"
PDF = encoded(b"%PDF-1.7 and so on")
PLAIN_TEXT = {"type": "text", "media_type": "text/plain", "data": "ä,{}"}


def source(media_type: str, data: str) -> Json:
    return {"type": "base64", "media_type": media_type, "data": data}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/b.png", {"type": "url", "url": "https://a.example/b.png"}),
        ("HTTP://a.example/", {"type": "url", "url": "HTTP://a.example/"}),
        ("DATA:image/GIF;charset=x;BASE64,AAAA", source("image/gif", "AAAA")),
        # clients name types wrongly, which the upstream refuses
        (f"data:image/jpeg;base64,{PNG}", source("image/png", PNG)),
        ("data:image/jpg;base64,/9j/4AAQ", source("image/jpeg", "/9j/4AAQ")),
        ("data:;base64,R0lGODlh", source("image/gif", "R0lGODlh")),
        ("data:;base64,UklGRAAA", source("image/webp", "UklGRAAA")),
    ],
)
def test_image_is_translated(url: str, expected: Json) -> None:
    for given in ({"url": url, "detail": "auto"}, url):
        translation = translate(user([{"type": "image_url", "image_url": given}, text("What?")]))
        (turn,) = json.loads(translation.body)["messages"]
        assert turn["content"] == [{"type": "image", "source": expected}, text("What?")]
        assert translation.ignored == ()
    assert translate(user([image(url, detail="high")])).ignored == ("image_url.detail",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        *(
            ({"file_data": beginning + PDF}, source("application/pdf", PDF))
            for beginning in ("", "data:application/octet-stream;base64,")
        ),
        *(
            ({"file_data": beginning + encoded("ä,{}".encode())}, PLAIN_TEXT)
            for beginning in ("", "data:text/csv;base64,", "data:application/json;base64,")
        ),
        ({"file_id": "file_01"}, {"type": "file", "file_id": "file_01"}),
    ],
)
def test_file_becomes_a_document(fields: dict[str, str], expected: Json) -> None:
    for name, title in ((None, {}), ("a" * 501, {"title": "a" * 500}), (" ", {})):
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


FIVE_MINUTES: Json = {"type": "ephemeral"}
ONE_HOUR: Json = {"type": "ephemeral", "ttl": "1h"}
AGAIN = (HI, assistant("Hello"), HI)
MARK = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}


@pytest.mark.parametrize("ttl", [None, "30m", "12h"])
def test_breakpoint_becomes_one_hour(ttl: str | None) -> None:
    marked = {**text("a"), "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}
    translation = translate(user([marked]))
    (turn,) = json.loads(translation.body)["messages"]
    assert turn["content"][0]["cache_control"] == ONE_HOUR
    assert translation.ignored == (("prompt_cache_breakpoint.ttl",) if ttl == "12h" else ())


@pytest.mark.parametrize(
    ("messages", "fields", "auto", "always"),
    [
        ((system("Be."), HI), {}, None, FIVE_MINUTES),
        ((), {"tools": [TOOL]}, FIVE_MINUTES, FIVE_MINUTES),
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
        (AGAIN, {"tools": [{**TOOL, "function": {**TOOL["function"], **MARK}}]}),
        (({**HI, **MARK}, assistant("Hello"), HI), {}),
        ((HI, assistant("Hello", **MARK), HI), {}),
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
    assert translation.body.count(b'"cache_control":{"type":"ephemeral","ttl":') == 1
    assert translation.ignored == ("prompt_cache_retention",)


def test_unknown_cache_lifetime_is_named() -> None:
    options = {"ttl": "7d"}
    translation = translate(*AGAIN, prompt_cache_retention="7d", prompt_cache_options=options)
    assert json.loads(translation.body)["cache_control"] == FIVE_MINUTES
    assert translation.ignored == ("prompt_cache_retention", "prompt_cache_options.ttl")

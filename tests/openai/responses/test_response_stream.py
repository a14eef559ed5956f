"""Streamed responses: how they begin, end and fail."""

from __future__ import annotations

import pytest
from response_events import (
    CREATED,
    MODELS,
    SAYS,
    THINKS,
    between,
    called,
    check,
    documents,
    output_of,
    read,
    response_of,
    translation,
)
from upstream_events import (
    END,
    MESSAGE,
    PING,
    START,
    STOP,
    Json,
    closed,
    delta,
    error_event,
    fragment,
    opened,
    stopped,
    text,
    tool,
    wire,
)

from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.output import stream
from tornadoproxy.openai.responses.output.events import EVENTS
from tornadoproxy.openai.responses.output.response import translate_compaction
from tornadoproxy.openai.responses.output.stream import StreamTranslator

# -- the end


@pytest.mark.parametrize(
    ("reason", "status", "incomplete", "message"),
    [
        ("end_turn", "completed", None, "completed"),
        ("stop_sequence", "completed", None, "completed"),
        ("pause_turn", "completed", None, "completed"),
        (None, "completed", None, "completed"),
        ("of the future", "completed", None, "completed"),
        (["end_turn"], "completed", None, "completed"),
        ("max_tokens", "incomplete", "max_output_tokens", "incomplete"),
        ("model_context_window_exceeded", "incomplete", "max_output_tokens", "incomplete"),
    ],
)
def test_stop_reason_becomes_the_status(
    reason: object, status: str, incomplete: str | None, message: str
) -> None:
    events = read(START, opened(0, text="Hi"), closed(0), stopped(reason), STOP)
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{status}"
    assert response["status"] == status
    assert (response["incomplete_details"] or {}).get("reason") == incomplete
    assert (response["completed_at"] is None) == (status != "completed")
    assert response["output"][0]["status"] == message


REFUSED: Json = {
    "type": "message_delta",
    "delta": {"stop_reason": "refusal", "stop_details": {"explanation": "Not this."}},
}
REFUSAL = {
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "refusal", "refusal": "Not this."}],
}
CUT = (tool(0, "a"), fragment(0, "{"))


@pytest.mark.parametrize(
    ("events", "for_codex", "status"),
    [
        ((), False, "completed"),
        (SAYS, False, "completed"),
        (SAYS, True, "completed"),
        (CUT, False, "incomplete"),
        ((), True, "failed"),
        (THINKS, True, "failed"),
        (CUT, True, "failed"),
    ],
)
def test_refusal_is_a_message_or_a_failure_for_codex(
    events: list[Json], for_codex: bool, status: str
) -> None:
    response = response_of(START, *events, REFUSED, STOP, for_codex=for_codex)
    assert response["status"] == status
    refusals = [
        {name: item[name] for name in item if name != "id"}
        for item in response["output"]
        if any(part["type"] == "refusal" for part in item.get("content", []))
    ]
    if status == "failed":
        assert response["error"] == {"code": "invalid_prompt", "message": "Not this."}
        assert refusals == []
    else:
        assert response["error"] is None
        assert refusals == [REFUSAL]
    reason = {"reason": "content_filter"} if status == "incomplete" else None
    assert response["incomplete_details"] == reason


def test_refusal_is_streamed_as_a_message_of_its_own() -> None:
    events = read(START, *SAYS, REFUSED, STOP)
    refusal = [each for each in between(events) if each.get("output_index") == 1]
    assert [each["type"].partition(".")[2] for each in refusal] == [
        *("output_item.added", "content_part.added", "refusal.delta", "refusal.done"),
        *("content_part.done", "output_item.done"),
    ]


def test_fallback_names_the_model_that_responds() -> None:
    def fallback(index: int) -> list[Json]:
        to = {"model": "claude-next"}
        return [
            opened(index, "fallback", **{"from": {"model": "claude-test"}}, to=to),
            closed(index),
        ]

    first, *_, last = read(START, *SAYS, *fallback(1), opened(2, text=" you"), closed(2), *END)
    assert first["response"]["model"] == "claude-test"
    assert last["response"]["model"] == "claude-next"
    # a call that the model before did not finish is cut, another is not
    whole, cut = called(0, "weather", "{}"), called(0, "weather", "{")
    assert output_of(START, *whole, *fallback(1), *END)[0]["arguments"] == "{}"
    response = response_of(START, *cut, *fallback(1), opened(2, text="No."), closed(2), *END)
    assert (response["status"], len(response["output"])) == ("incomplete", 1)


def test_usage_is_the_sum_of_all_models() -> None:
    counts = {"input_tokens": 1, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 300}
    iterations = [
        {"type": "message", "model": "claude-test", "input_tokens": 4000, "output_tokens": 5},
        {"type": "fallback_message", "model": "claude-next", **counts, "output_tokens": 6},
    ]
    start = {**START, "message": {**MESSAGE, "usage": {**counts, "output_tokens": 1}}}
    usage = {"output_tokens": 6, "output_tokens_details": {"thinking_tokens": 2}}
    response = response_of(start, stopped("end_turn", **usage, iterations=iterations), STOP)
    assert response["usage"] == {
        "input_tokens": 4321,
        "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 300},
        "output_tokens": 11,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 4332,
    }


# -- pings and errors


def test_pings_after_the_first_keep_the_stream_alive() -> None:
    assert read(PING, PING) == []
    kinds = [each["type"] for each in read(START, PING, PING, PING, *END)]
    assert kinds[2:-1] == ["keepalive", "keepalive"]
    translator = StreamTranslator(translation())
    assert translator.ping() == b""
    begun = documents(translator.feed(wire(START)))
    check([*begun, *documents(translator.ping()), *documents(translator.feed(wire(*END)))])
    assert translator.ping() == b""


@pytest.mark.parametrize(
    ("kind", "code", "error_type"),
    [
        ("overloaded_error", "server_error", "server_error"),
        ("api_error", "server_error", "server_error"),
        ("timeout_error", "server_error", "server_error"),
        ("of the future", "server_error", "server_error"),
        ("rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
        ("invalid_request_error", "invalid_prompt", "invalid_request_error"),
        ("permission_error", "invalid_prompt", "permission_error"),
    ],
)
def test_error_in_the_middle_fails_the_response(kind: str, code: str, error_type: str) -> None:
    begun = (START, *called(0, "weather", "{}"), opened(1, text="Hel"))
    events = read(*begun, error_event(kind), text(1, "lo"), *END)
    *_, told, failed = events
    shown = {"code": code, "message": "It says why.", "param": None}
    number = told["sequence_number"]
    nested = {"type": error_type, **shown}
    assert told == {"type": "error", "sequence_number": number, **shown, "error": nested}
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": code, "message": "It says why."}
    assert response["completed_at"] is None
    # the call is whole since a block follows it; the message that is open is not done
    assert [item["type"] for item in response["output"]] == ["function_call"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "billing_error", "message": "Pay."}, "insufficient_quota"),
        (
            {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"},
            "context_length_exceeded",
        ),
    ],
)
def test_codes_that_clients_act_on_are_kept(event: Json, code: str) -> None:
    translator = StreamTranslator(translation())
    found = documents(translator.feed(wire(START, {"type": "error", "error": event})))
    assert found[-1]["response"]["error"]["code"] == found[-2]["code"] == code


def test_error_before_the_message_is_left_to_the_caller() -> None:
    translator = StreamTranslator(translation())
    assert translator.feed(wire(PING, error_event("overloaded_error"))) == b""
    assert (translator.began, translator.ended, translator.failed) == (False, True, True)
    assert translator.error is not None
    assert (translator.error.status, translator.error.message) == (529, "It says why.")


def test_failure_of_the_proxys_own_ends_the_response_once() -> None:
    error = UpstreamClosed("It was cut.")
    translator = StreamTranslator(translation())
    events = documents(translator.feed(wire(START, *SAYS)) + translator.fail(error))
    check(events)
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It was cut."}
    assert (translator.ended, translator.failed) == (True, True)
    assert translator.fail(error) == translator.feed(wire(*END)) == b""
    complete = StreamTranslator(translation())
    complete.feed(wire(START, *END))
    assert complete.fail(error) == b""
    before = documents(StreamTranslator(translation()).fail(error))
    check(before)
    assert [each["type"] for each in before] == ["error", "response.failed"]


# -- unknown and invalid events


def test_unknown_events_blocks_and_deltas_are_skipped() -> None:
    (message,) = output_of(
        *(START, {"type": "of the future", "index": 0}),
        *(opened(0, "of the future", text="x"), text(0, "y"), closed(0)),
        opened(1, "server_tool_use", id="srvtoolu_1", name="web_fetch", input={}),
        *(fragment(1, '{"url":"x"}'), closed(1)),
        *(opened(2, "web_fetch_tool_result", tool_use_id="srvtoolu_1", content={}), closed(2)),
        *(opened(3), delta(3, "of the future", text="z"), text(3, "a"), fragment(3, "{}")),
        {"type": "content_block_delta", "index": 3, "delta": "x"},
        *(closed(3), closed(9), fragment(9, "{}"), *END),
    )
    assert message["content"][0]["text"] == "a"


def test_fields_of_other_types_become_empty() -> None:
    read(
        {"type": "message_start", "message": {"id": 7, "model": None, "usage": "x"}},
        *(opened(0, text=7, citations=7), delta(0, "text_delta", text=None), closed(0)),
        *(opened(1, "tool_use", id=None, name=7, input="x"), delta(1, "input_json_delta")),
        *(closed(1), opened(2, "thinking", thinking=None), delta(2, "thinking_delta", thinking=7)),
        *(delta(2, "signature_delta"), closed(2), opened(3, ["text"])),
        opened(4, "server_tool_use", id=7, name="web_search", input=7),
        *(fragment(4, "x"), closed(4), opened(5, text="x"), closed(5)),
        *(delta(6, "text_delta", text="y"), opened(7, citations=["x"]), closed(7)),
        *({"type": "message_delta", "delta": [], "usage": 7}, STOP),
    )


@pytest.mark.parametrize("event", [STOP, opened(0), text(0, "a")])
def test_stream_without_a_beginning_is_the_upstreams_error(event: Json) -> None:
    translator = StreamTranslator(translation())
    with pytest.raises(UpstreamProtocolError):
        translator.feed(wire(event, *END))
    assert not translator.ended


OTHER_START = {**START, "message": {**MESSAGE, "id": "msg_02"}}


@pytest.mark.parametrize("broken", [wire(OTHER_START), wire(*[tool(1, "a")] * 2), b"data: {\n\n"])
def test_stream_that_breaks_ends_with_an_error(broken: bytes) -> None:
    translator = StreamTranslator(translation())
    events = documents(translator.feed(wire(START, *SAYS) + broken + wire(*END)))
    check(events)
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert isinstance(translator.error, UpstreamProtocolError)


def test_too_large_stream_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_RESPONSE", 2000)
    translator = StreamTranslator(translation())
    events = documents(b"".join([translator.feed(wire(each)) for each in (START, *SAYS)]))
    events += documents(translator.feed(wire(*[text(0, "x")] * 20)))
    check(events)
    assert "too large" in events[-1]["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("message_id", "stem"),
    [("msg_01-Ab_C", "01AbC"), ("x" * 99, "x" * 40), ("msg_é", None), (None, None)],
)
def test_ids_are_derived_from_the_messages(message_id: object, stem: str | None) -> None:
    start = {**START, "message": {**MESSAGE, "id": message_id}}
    response = response_of(start, *SAYS, *END)
    prefix, _, found = response["id"].partition("_")
    assert prefix == "resp"
    assert found == stem if stem else len(found) == 24
    assert response["output"][0]["id"] == f"msg_{found}0"


# -- compaction


def test_compaction_is_one_item_with_the_text() -> None:
    events = (START, *THINKS, opened(1, text="We did "), closed(1), opened(2, text="x."), closed(2))
    response = response_of(*events, *END, compacts=True)
    (item,) = response["output"]
    assert (item["type"], item["id"]) == ("compaction", "cmp_01AbC0")
    assert carrier.unpack_summary(item["encrypted_content"], "input") == "We did x."


@pytest.mark.parametrize(
    ("events", "code"),
    [([stopped("refusal")], "invalid_prompt"), ([*THINKS, END[0]], "server_error")],
)
def test_compaction_without_a_summary_fails(events: list[Json], code: str) -> None:
    response = response_of(START, *events, STOP, compacts=True)
    assert (response["status"], response["output"]) == ("failed", [])
    assert response["error"]["code"] == code


def test_compaction_keeps_what_the_model_did_not_say() -> None:
    said: list[Json] = [
        {"id": "msg_1", "type": "message", "role": "developer", "content": "Be brief."},
        {"id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"id": "msg_3", "type": "message", "role": "assistant", "content": "Hello."},
        {"id": "fc_1", "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "compaction_trigger"},
    ]
    message = {**MESSAGE, "content": [{"type": "text", "text": "We met."}]}
    request = translation(input=tuple(said), compacts=True)
    compacted = translate_compaction(message, request, created=CREATED)
    *kept, summary = compacted.pop("output")
    assert kept == [
        {**item, "type": "message", "status": "completed", "content": [part]}
        for item, part in zip(
            said[:2],
            [{"type": "input_text", "text": text} for text in ("Be brief.", "Hi")],
            strict=True,
        )
    ]
    assert summary["id"] == "cmp_01AbC0"
    assert compacted.pop("usage")["output_tokens"] == 1
    fields = {"id": "resp_01AbC", "object": "response.compaction", "created_at": CREATED}
    assert compacted == fields


def test_every_event_of_the_package_has_a_treatment() -> None:
    assert EVENTS.keys() == MODELS.keys()

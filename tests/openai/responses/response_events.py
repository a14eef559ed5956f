"""The events of a streamed response, read as the types and the grammar of OpenAI's API demand."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from upstream_events import Json, closed, fragment, opened, wire

from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.output.stream import StreamTranslator
from tornadoproxy.openai.responses.translation import Translation

CREATED = 1_700_000_000
ECHO: Json = {
    "object": "response",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
MODELS: dict[str, Any] = {  # Any: the package's model of each event
    get_args(model.model_fields["type"].annotation)[0]: model
    for model in get_args(get_args(ResponseStreamEvent)[0])
}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")

REDACTED: Json = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
THINKS = (opened(0, **REDACTED), closed(0))
SAYS = (opened(0, text="Hi"), closed(0))

# The events between an item's beginning and its end, each with the field that it completes.
GROWING = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.reasoning_summary_text": "text",
}


def translation(**fields: Any) -> Translation:
    """Return what a request hands to the translation of its response."""
    plain: Json = {
        "body": b"",
        "stream": True,
        "samples": False,
        "ignored": (),
        "origins": {},
        "echo": ECHO,
        "kept": False,
        "previous": None,
        "input": (),
        "for_codex": False,
        "compacts": False,
    }
    return Translation(**{**plain, **fields})


def documents(events: bytes) -> list[Json]:
    """Return the documents of whole events, whose names are their types."""
    assert events == b"" or events.endswith(b"\n\n")
    found = []
    for event in events.decode().split("\n\n")[:-1]:
        assert event.splitlines() == event.split("\n"), "for clients that split lines like this"
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def check(events: list[Json], *, strictly: bool = True) -> None:
    """Assert that events are those of a response, from its beginning as far as they go.

    :param strictly: whether the items are one after the other, as the upstream's blocks are.
    """
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    for event in events:
        if event["type"] != "keepalive":
            MODELS[event["type"]].model_validate(event, strict=True)
    kinds = [event["type"] for event in events]
    if kinds and kinds[0] != "error":
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert not {"response.created", "response.in_progress"} & {*kinds[2:]}
    assert not {*TERMINAL} & {*kinds[:-1]}, "nothing follows the end"
    items = Items(strictly)
    for event in events:
        items.take(event)
    if kinds and kinds[-1] in TERMINAL:
        response = events[-1]["response"]
        Response.model_validate(response, strict=True)
        assert response["output"] == [items.done[number] for number in sorted(items.done)]
        assert kinds[-1] != "response.completed" or not items.open


class Items:
    """The items that a client has read of a stream."""

    def __init__(self, strictly: bool) -> None:
        self.open: dict[int, Json] = {}
        self.done: dict[int, Json] = {}
        self._strictly = strictly
        self._deltas: dict[tuple[int, str], str] = {}
        self._parts: dict[int, int] = {}  # the number of open parts

    def take(self, event: Json) -> None:
        kind = event["type"].removesuffix(".delta").removesuffix(".done")
        if event["type"] == "response.output_item.added":
            self._begin(event["output_index"], event["item"])
        elif event["type"] == "response.output_item.done":
            self._finish(event["output_index"], event["item"])
        elif "output_index" not in event:
            return
        else:
            number = event["output_index"]
            assert self.open[number]["id"] == event["item_id"]
            if kind in GROWING:
                self._grow(number, kind, event)
            elif kind.endswith("part.added"):
                self._parts[number] = self._parts.get(number, 0) + 1
            elif kind.endswith("part"):
                self._parts[number] -= 1

    def _begin(self, number: int, item: Json) -> None:
        seen = {**self.open, **self.done}
        assert number not in seen
        assert item["id"] not in {each["id"] for each in seen.values()}
        if self._strictly:
            assert number == len(seen)
        self.open[number] = item

    def _finish(self, number: int, item: Json) -> None:
        begun = self.open.pop(number)
        for name in ("id", "type", "call_id", "name", "namespace", "role"):
            assert begun.get(name) == item.get(name)
        assert not self._parts.get(number)
        later = [each for each in {**self.open, **self.done} if each > number]
        assert not later or not self._strictly or item["type"] == "web_search_call"
        self.done[number] = item

    def _grow(self, number: int, kind: str, event: Json) -> None:
        if event["type"].endswith(".delta"):
            assert event["delta"]
            so_far = self._deltas.get((number, kind), "")
            self._deltas[number, kind] = so_far + event["delta"]
        else:
            assert self._deltas.pop((number, kind), "") == event[GROWING[kind]]


def read(*events: Json, **fields: Any) -> list[Json]:
    """Return the events that a client reads of a stream of `events`, which are valid.

    :param fields: of the request's translation.
    """
    translator = StreamTranslator(translation(**fields), created=CREATED)
    found = documents(translator.feed(wire(*events)))
    check(found)
    if found and found[-1]["type"] in TERMINAL:
        assert found[-1]["response"] == translator.response
        accumulate(found)
    return found


def accumulate(events: list[Json]) -> Any:  # Any: the SDK's response
    """Return the response that the SDK joins from events; ``None`` if it is not complete."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        if event["type"] not in ("keepalive", "error"):
            state.handle_event(MODELS[event["type"]].model_validate(event))
    return state._completed_response


def response_of(*events: Json, **fields: Any) -> Json:
    """Return the response object at the end of a stream of `events`."""
    response: Json = read(*events, **fields)[-1]["response"]
    return response


def output_of(*events: Json, **fields: Any) -> list[Json]:
    """Return its items, without their ids."""
    output = response_of(*events, **fields)["output"]
    return [{name: item[name] for name in item if name != "id"} for item in output]


def between(events: list[Json]) -> list[Json]:
    """The events between the two of the beginning and the last, without their numbers."""
    return [{key: each[key] for key in each if key != "sequence_number"} for each in events[2:-1]]


def called(index: int, name: str, *fragments: str) -> list[Json]:
    block = opened(index, "tool_use", id=f"toolu_{index}", name=name, input={})
    return [block, *(fragment(index, each) for each in ("", *fragments)), closed(index)]


def carried(item: Json) -> list[Json] | None:
    return carrier.unpack(item["encrypted_content"], "input")

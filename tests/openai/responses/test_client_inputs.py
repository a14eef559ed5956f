"""Inputs that clients have sent, their texts shortened: each is translated, and caches hit.

``cuts`` has, for each turn before, how many of the items it had.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st
from properties import holds_of, junk_of, not_json, spoiled
from response_requests import TAKES_SYSTEM, THOUGHT, Json, call, message, said, translate

from tornadoproxy.errors import ClientError
from tornadoproxy.openai import responses
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses import FIELDS, ITEMS
from tornadoproxy.openai.responses.carrier import pack

HERE = Path(__file__).parent
INPUTS: dict[str, Json] = json.loads((HERE / "client_inputs.json").read_text())
CODEX_TOOLS: Json = json.loads((HERE / "client_tools.json").read_text())["Codex: gpt-5.5"]
TURNS = [client for client, fields in INPUTS.items() if "cuts" in fields]

# What these clients' requests say that no response can follow.
IGNORED = {
    "input.compaction": {"codex-remote-compaction-completed, later"},
    "input.web_search_call": {
        "codex-opaque-reasoning-and-web search call",
        "enc2-ag",
        "enc2-lc",
        "enc2-lc, later",
    },
    "input_image.detail": {"codex-image-attachment", "codex-view image"},
}


def fields_of(client: str, *, carried: bool) -> Json:
    """Return a client's request.

    :param carried: whether its reasoning was this gateway's.
    """
    fields = {name: value for name, value in INPUTS[client].items() if name != "cuts"}
    if carried and isinstance(fields["input"], list):
        ours = {"encrypted_content": pack([THOUGHT])}
        fields["input"] = [
            {**item, **ours} if item.get("type") == "reasoning" else item
            for item in fields["input"]
        ]
    return fields


def history_of(fields: Json) -> Json:
    """Return what the gateway has stored of a request's conversation."""
    listed = fields["input"] if isinstance(fields["input"], list) else []
    answered = [
        call(item["call_id"], "f")
        for item in listed
        if "previous_response_id" in fields and item.get("type") == "function_call_output"
    ]
    stored = {each: said("stored") for each in responses.needs(fields, Options()).items}
    return {"earlier": [message("user", "Hi"), *answered], "known": stored, "has_store": True}


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("client", INPUTS)
def test_input_of_a_client_is_accepted_upstream(client: str, carried: bool) -> None:
    fields = fields_of(client, carried=carried)
    translation = translate(**fields, **history_of(fields))
    ignored = set(translation.ignored) - {"tools.format"}
    if not carried and any(item.get("type") == "reasoning" for item in translation.input):
        assert "input.reasoning" in ignored
    named = {name for name, clients in IGNORED.items() if client in clients}
    assert ignored - {"input.reasoning"} == named


@pytest.mark.parametrize("client", TURNS)
def test_turn_begins_as_the_turn_before_it(client: str) -> None:
    fields = fields_of(client, carried=True)
    if client.startswith("codex"):
        fields |= CODEX_TOOLS
    more = {**history_of(fields), "able": TAKES_SYSTEM}
    whole = json.loads(translate(**fields, **more).body)
    for cut in INPUTS[client]["cuts"]:
        before = json.loads(translate(**{**fields, "input": fields["input"][:cut]}, **more).body)
        if client.startswith("codex") and "compaction" not in client:
            assert before["cache_control"] == whole["cache_control"] == {"type": "ephemeral"}
        assert before.get("system") == whole.get("system")
        if client.startswith("codex"):
            assert before["tools"] == whole["tools"][: len(before["tools"])]
        assert before["messages"] == whole["messages"][: len(before["messages"])]


JUNK = junk_of(
    [
        *FIELDS,
        *ITEMS,
        "type",
        "role",
        "content",
        "text",
        "id",
        "call_id",
        "name",
        "input",
        "output",
    ],
    ["message", "reasoning", "item_reference", "input_text", "tp1.", "developer", "", "\ud800"],
)
REQUESTS = st.sampled_from(
    [{"model": "m", **fields_of(client, carried=True), **CODEX_TOOLS} for client in INPUTS]
)


@holds_of(spoiled(REQUESTS, JUNK), st.booleans())
def test_invalid_request_is_refused_or_translated(document: Json, has_store: bool) -> None:
    """The only error is the client's, as the proxy translates."""
    options = Options()
    try:
        document = responses.parse(json.dumps(document).encode())
        responses.requested_model(document)
        wanted = responses.needs(document, options)
        stored = dict.fromkeys(wanted.items, said("stored"))
        translation = responses.translate_request(
            document, options=options, earlier=[], items=stored, has_store=has_store
        )
    except ClientError:
        return
    body = json.loads(translation.body.decode(), parse_constant=not_json)
    kinds = [type(body[name]) for name in ("model", "messages", "max_tokens")]
    assert kinds == [str, list, int]
    assert all(name.isascii() and name.isprintable() for name in translation.ignored)
    listed = [responses.shown(item, "resp_1", at) for at, item in enumerate(translation.input)]
    assert {type(item["id"]) for item in listed} <= {str}

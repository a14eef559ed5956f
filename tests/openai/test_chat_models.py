"""Models: OpenAI's list of them, and their capabilities."""

from __future__ import annotations

import pytest
from openai.types import Model

from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options

OPUS = {"type": "model", "id": "claude-opus-5-5", "created_at": "2026-09-22T00:00:00Z"}
SONNET = {**OPUS, "id": "claude-sonnet-5-5", "created_at": "2026-09-28T00:00:00+00:00"}


def test_list_keeps_its_order_and_has_the_clients_names() -> None:
    assert chat_completions.translate_models([]) == {"object": "list", "data": []}
    names = {
        "gpt-5": "claude-opus-5-5",
        "gpt-4": "claude-unlisted",
        "claude-sonnet-5-5": "claude-opus-5-5",
        "*": "claude-sonnet-5-5",
    }
    found = chat_completions.translate_models([SONNET, OPUS], names)["data"]
    listed = [(entry["id"], entry["created"]) for entry in found]
    assert listed == [
        ("claude-sonnet-5-5", 1_790_553_600),
        ("claude-opus-5-5", 1_790_035_200),
        ("gpt-5", 1_790_035_200),
        ("gpt-4", 0),
    ]


@pytest.mark.parametrize(
    ("name", "names", "created"),
    [
        ("claude-opus-5-5", {}, 1_790_035_200),
        ("gpt-5", {"gpt-5": "claude-opus-5-5", "*": "claude-sonnet-5-5"}, 1_790_035_200),
        ("o9/mini", {"*": "claude-sonnet-5-5"}, 1_790_553_600),
        ("gpt-5", {"*": "claude-unlisted"}, 0),
        ("claude-unlisted", {"*": "claude-sonnet-5-5"}, None),
    ],
)
def test_model_is_found_by_any_name(name: str, names: dict[str, str], created: int | None) -> None:
    found = chat_completions.find_model([OPUS, SONNET], name, Options(models=names))
    shown = {"id": name, "object": "model", "created": created, "owned_by": "anthropic"}
    assert found == (None if created is None else shown)


@pytest.mark.parametrize(
    "created_at", [None, "soon", 7, "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59"]
)
def test_invalid_time_becomes_one_that_clients_read(created_at: object) -> None:
    found = chat_completions.translate_model({"id": "claude-x", "created_at": created_at})
    assert found["created"] >= 0
    Model.model_validate(found, strict=True)


def test_capabilities_are_read_from_the_models_entry() -> None:
    yes, no = {"supported": True}, {"supported": False}
    types = {"adaptive": yes, "enabled": no, "disabled": no, "between_tools": yes}
    entry = {
        "max_tokens": 128000,
        "capabilities": {
            "structured_outputs": yes,
            "effort": {"supported": True, "low": yes, "medium": yes, "max": no, "xhigh": None},
            "thinking": {"supported": True, "types": types},
        },
    }
    assert Capabilities.of_model(entry) == Capabilities(
        max_tokens=128000,
        structured_outputs=True,
        forced_tools=False,
        thinking=frozenset({"adaptive", "between_tools"}),
        efforts=("low", "medium"),
    )
    can_stop = {"capabilities": {"thinking": {"types": {"adaptive": yes, "disabled": yes}}}}
    assert Capabilities.of_model(can_stop).forced_tools
    assert Capabilities.of_model({"capabilities": {"effort": no}}) == Capabilities(
        structured_outputs=False, thinking=frozenset(), efforts=()
    )


@pytest.mark.parametrize(
    "entry", [{}, {"capabilities": []}, {"max_tokens": "many"}, {"max_tokens": 0}], ids=str
)
def test_unknown_capabilities_are_those_of_new_models(entry: dict[str, object]) -> None:
    assert Capabilities.of_model(entry) == Capabilities()

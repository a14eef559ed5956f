"""Upstream's list of models, as OpenAI's clients read it."""

from __future__ import annotations

import pytest
from openai.types import Model

from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Options

OPUS = {
    "type": "model",
    "id": "claude-opus-5-5",
    "display_name": "Claude Opus 5.5",
    "created_at": "2026-09-22T00:00:00Z",
}
SONNET = {**OPUS, "id": "claude-sonnet-5-5", "created_at": "2026-09-28T00:00:00+00:00"}


def test_a_model() -> None:
    told = chat_completions.translate_model(OPUS)
    assert told == {
        "id": "claude-opus-5-5",
        "object": "model",
        "created": 1_790_035_200,
        "owned_by": "anthropic",
    }
    Model.model_validate(told, strict=True)


def test_a_list_keeps_its_order() -> None:
    told = chat_completions.translate_models([SONNET, OPUS])
    assert told["object"] == "list"
    assert [entry["id"] for entry in told["data"]] == ["claude-sonnet-5-5", "claude-opus-5-5"]
    assert chat_completions.translate_models([]) == {"object": "list", "data": []}


def test_the_names_that_clients_may_use_are_listed_too() -> None:
    names = {
        "gpt-5": "claude-opus-5-5",
        "gpt-4": "claude-unlisted",
        "claude-sonnet-5-5": "claude-opus-5-5",
        "*": "claude-sonnet-5-5",
    }
    told = chat_completions.translate_models([OPUS, SONNET], names)["data"]
    assert [entry["id"] for entry in told] == [
        "claude-opus-5-5",
        "claude-sonnet-5-5",
        "gpt-5",
        "gpt-4",
    ]
    assert told[2]["created"] == told[0]["created"]
    assert told[3]["created"] == 0


@pytest.mark.parametrize(
    ("name", "created"),
    [
        ("claude-opus-5-5", 1_790_035_200),
        ("gpt-5", 1_790_035_200),
        ("o9/mini", 1_790_553_600),
        ("claude-unlisted", None),
    ],
)
def test_model_is_found_by_every_name_that_serves(name: str, created: int | None) -> None:
    options = Options(models={"gpt-5": "claude-opus-5-5", "*": "claude-sonnet-5-5"})
    told = chat_completions.find_model([OPUS, SONNET], name, options)
    assert (told and (told["id"], told["created"])) == (created and (name, created))


def test_model_that_the_upstream_does_not_list_is_found_by_star() -> None:
    options = Options(models={"*": "claude-unlisted"})
    told = chat_completions.find_model([OPUS], "gpt-5", options)
    assert told is not None
    assert told["created"] == 0
    assert chat_completions.find_model([OPUS], "gpt-5", Options()) is None


@pytest.mark.parametrize(
    "created_at", [None, "", "soon", 7, "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", []]
)
def test_a_time_that_is_none(created_at: object) -> None:
    told = chat_completions.translate_model({"id": "claude-x", "created_at": created_at})
    assert told["created"] >= 0
    Model.model_validate(told, strict=True)

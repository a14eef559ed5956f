"""Fields of chat completions: each has one treatment, which the documentation names."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from anthropic.types import message_create_params as anthropic_params
from anthropic.types.beta import message_create_params as anthropic_beta_params
from openai.types.chat import completion_create_params as openai_params

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import FIELDS, Options, Translation, Treatment

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

# Anthropic's SDK sends these fields as headers.
HEADERS = {"betas", "user_profile_id", "workspace_id"}


def treated(treatment: Treatment) -> list[str]:
    return [name for name, (each, _) in FIELDS.items() if each is treatment]


def translate(*, strict: bool = False, **fields: Any) -> Translation:  # Any: JSON
    document = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return chat_completions.translate_request(document, options=Options(strict=strict))


def fields_of(*params: type) -> set[str]:
    return {name for each in params for name in typing.get_type_hints(each)}


def test_every_field_of_openais_api_has_a_treatment() -> None:
    known = fields_of(
        openai_params.CompletionCreateParamsNonStreaming,
        openai_params.CompletionCreateParamsStreaming,
    )
    assert len(known) > 30
    assert known - FIELDS.keys() == set()
    assert set(treated(Treatment.TRANSLATED)) <= known
    assert set(treated(Treatment.REFUSED)) <= known


def test_every_field_of_anthropics_api_has_a_treatment() -> None:
    known = fields_of(
        anthropic_params.MessageCreateParamsNonStreaming,
        anthropic_beta_params.MessageCreateParamsNonStreaming,
    )
    assert len(known) > 20
    assert known - FIELDS.keys() == HEADERS
    # older models accept this one, which the types no longer have
    assert set(treated(Treatment.PASSED)) - known == {"top_k"}


@pytest.mark.parametrize("name", [*treated(Treatment.IGNORED), "new_field"])
def test_ignored_field_is_dropped_named_and_refused_if_strict(name: str) -> None:
    fields: Json = {name: "x"}
    translation = translate(**fields)
    assert translation.ignored == (name,)
    assert translation.body == translate().body
    with pytest.raises(InvalidRequest, match="CHAT_STRICT") as caught:
        translate(strict=True, **fields)
    assert caught.value.param == name


@pytest.mark.parametrize("name", treated(Treatment.PASSED))
def test_passed_field_goes_upstream_unchanged(name: str) -> None:
    fields: Json = {name: 5 if name == "top_k" else {"type": "a"}}
    body = json.loads(translate(strict=True, **fields).body)
    assert body[name] == fields[name]

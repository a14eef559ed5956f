"""The treatment of each field of a request of the Responses API.

Every field of OpenAI's API has exactly one treatment, and so has every field of Anthropic's API
that clients can add (``extra_body``). A test compares this table with the installed ``openai``
package. The table in the documentation is generated from it.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import array, boolean, obj, refuse
from tornadoproxy.openai.treatment import PASSED, Table, Treatment, ignored_fields, table

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

_TRANSLATED = {
    "include": "`reasoning.encrypted_content` is always included; other values are ignored",
    "input": "`messages`, and `system` for system and developer messages",
    "instructions": "the beginning of `system`",
    "max_output_tokens": "`max_tokens`",
    "max_tool_calls": "`max_uses` of the web search",
    "metadata": "repeated in the response; its `user_id` is treated as `user`",
    "model": "`model`, by way of `CHAT_MODELS`",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
    "prompt_cache_key": "with any value, `CHAT_CACHE=auto` caches the prompt",
    "prompt_cache_options": "`mode`: `explicit` suspends `CHAT_CACHE`; `ttl`: the one-hour cache",
    "prompt_cache_retention": "`24h`: the one-hour cache, in the request's `cache_control`",
    "reasoning": (
        "`effort`: `output_config.effort` and `thinking`; `summary`: whether thinking is shown; "
        "`mode` and `context` are ignored"
    ),
    "safety_identifier": "same as `user`, unless `user` or `metadata.user_id` is sent",
    "service_tier": "`service_tier`, for Anthropic's values; other values are ignored",
    "stream": "`stream`",
    "temperature": "`temperature`; 1, the default, and higher values are not sent",
    "text": (
        "`format`: `output_config.format`; a sentence in `system` if that cannot express it; "
        "`verbosity` is ignored, and not named"
    ),
    "tool_choice": "`tool_choice`; a sentence in `system` if the model cannot be forced",
    "tools": "`tools`; see the table of tools",
    "top_p": "`top_p`, unless `temperature` is sent; 1, the default, is not sent",
    "user": "`metadata.user_id`; its SHA-256 if it is an e-mail address, a phone number or long",
}

_STORED = {
    "previous_response_id": "the stored responses before this one; unknown ones are refused",
    "store": "whether the response is stored, if `RESPONSES_STORE` is not `off`",
}

_IGNORED = {
    "access_programs": "no counterpart",
    "background_options": "no counterpart",
    "context_management": "OpenAI's list; Anthropic's object is passed",
    "frequency_penalty": "no counterpart",
    "image": "no counterpart",
    "max_completion_tokens": "another API's name: use `max_output_tokens`",
    "max_tokens": "another API's name: use `max_output_tokens`",
    "messages": "another API's name: use `input`",
    "moderation": "no counterpart",
    "presence_penalty": "no counterpart",
    "reasoning_effort": "another API's name: use `reasoning.effort`",
    "response_format": "another API's name: use `text.format`",
    "seed": "no counterpart",
    "stop": "no counterpart",
    "stop_sequences": "no counterpart",
    "stream_options": "no padding is ever added; not named",
    "system": "another API's name: use `instructions`",
    "truncation": "`auto`: the upstream refuses a conversation that is too long",
}

_REFUSED = {
    "background": "`true` is refused: a response ends with its request",
    "conversation": "conversations are not stored: use `previous_response_id`",
    "prompt": "prompt templates are stored at OpenAI: send `instructions` and `input`",
    "top_logprobs": "more than 0 is refused: there are no log probabilities",
}

REFUSED = frozenset(_REFUSED)

_PASSED = {name: note for name, note in PASSED.items() if name != "context_management"}

FIELDS: Table = table(
    {
        Treatment.TRANSLATED: _TRANSLATED,
        Treatment.STORED: _STORED,
        Treatment.IGNORED: _IGNORED,
        Treatment.REFUSED: _REFUSED,
        Treatment.PASSED: _PASSED,
    }
)
"""The treatment of each field; fields that neither API has are ignored, and not named."""

# Ignored fields with these values request nothing, so they are not reported.
_DEFAULTS: dict[str, object] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "truncation": "disabled",
}

_SERVED = ("reasoning.encrypted_content", "web_search_call.action.sources")


def ignored(document: Json) -> list[str]:
    """Return the names of a request's dropped fields, for a header.

    :raises InvalidRequest: a field with parts that may be dropped has the wrong type.
    """
    names = [
        name
        for name in ignored_fields(document, FIELDS, _DEFAULTS)
        if name != "stream_options"
        and (name != "context_management" or isinstance(document[name], list))
    ]
    include = document.get("include")
    if include is not None and any(each not in _SERVED for each in array(include, "include")):
        names.append("include")
    reasoning = document.get("reasoning")
    reasoning = {} if reasoning is None else obj(reasoning, "reasoning")
    if reasoning.get("mode") not in (None, "standard"):
        names.append("reasoning.mode")
    if reasoning.get("context") not in (None, "auto", "all_turns"):
        names.append("reasoning.context")
    return names


def refuse_impossible(document: Json) -> None:
    """Refuse a request whose response would not be what it asks for.

    :raises InvalidRequest: it asks for what Claude or the gateway cannot do.
    """
    background = document.get("background")
    if background is not None and boolean(background, "background"):
        refuse("background", "must be false: a response ends with its request; use stream")
    if document.get("conversation") is not None:
        refuse(
            "conversation",
            "is not supported: conversations are not stored; use previous_response_id, or send the "
            "whole input",
        )
    if document.get("prompt") is not None:
        refuse(
            "prompt",
            "is not supported: templates are stored at OpenAI; send their text as instructions and "
            "input",
        )
    if document.get("top_logprobs"):
        refuse("top_logprobs", "must be 0: there are no log probabilities")
